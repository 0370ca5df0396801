"""The values that a pickle of tensors is made of, and the globals that it may name. None of them is imported or called."""

from __future__ import annotations

from dataclasses import dataclass

from deltaweights.checkpoint.tensors import ITEM_SIZES


@dataclass(frozen=True, slots=True)
class TensorView:
    """One tensor: a view of the storage with the key ``storage``; ``offset`` and ``strides`` are in elements."""

    storage: str
    storage_nbytes: int  # as the pickle states it for the whole storage
    dtype: str  # the safetensors name
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PickledStorage:
    """A storage that the pickle refers to; ``count`` is the number of elements that it states."""

    key: str
    kind: StorageType
    count: int

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.count * self.kind.item_size


@dataclass(frozen=True, slots=True)
class StorageType:
    """One of torch's storage classes."""

    dtype: str | None
    """None for an untyped storage, whose size is counted in bytes."""

    @property
    def item_size(self) -> int:
        """Bytes per counted element."""
        return 1 if self.dtype is None else ITEM_SIZES[self.dtype]


@dataclass(frozen=True, slots=True)
class DType:
    """One of torch's dtypes, by its safetensors name."""

    dtype: str


@dataclass(frozen=True, slots=True)
class Function:
    """A function that the pickle may call; ``StateDictUnpickler`` has its own implementation."""

    name: str


_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
    "bool": "BOOL", "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip

_STORAGES = {
    "Double": "F64", "Float": "F32", "Half": "F16", "BFloat16": "BF16",
    "Long": "I64", "Int": "I32", "Short": "I16", "Char": "I8", "Byte": "U8",
    "Bool": "BOOL", "ComplexFloat": "C64",
}  # fmt: skip

_REBUILD = ("tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state")

GLOBALS: dict[str, object] = {
    "collections OrderedDict": Function("OrderedDict"),
    **{f"torch._utils _rebuild_{name}": Function(f"_rebuild_{name}") for name in _REBUILD},
    "torch.storage UntypedStorage": StorageType(None),
    **{f"torch {name}Storage": StorageType(dtype) for name, dtype in _STORAGES.items()},
    **{f"torch {name}": DType(dtype) for name, dtype in _DTYPES.items()},
}

REFUSED_GLOBALS = {
    "_rebuild_qtensor": "a quantized tensor",
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_sparse_csr_tensor": "a sparse tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_meta_tensor_no_storage": "a meta tensor, which has no data",
    "_rebuild_wrapper_subclass": "a tensor subclass",
    "_rebuild_from_type_v2": "a tensor subclass, or a tensor with attributes",
    **{f"Q{kind}Storage": "a quantized tensor" for kind in ("Int8", "UInt8", "Int32", "UInt4x2", "UInt2x4")},
    "ComplexDoubleStorage": "a complex128 tensor, which no safetensors file can hold",
}
