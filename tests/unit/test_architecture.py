"""The shape of the code that docs/design.md promises, read from the syntax trees: nothing here runs the program."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support.limits import PATIENCE

SOURCE = Path(__file__).parents[2] / "src" / "deltaweights"
TESTS = Path(__file__).parents[1]

ORDER = (
    "cli",
    "cluster",
    "jobs",
    "diff",
    "signing",
    "inference",
    "export",
    "staging",
    "merge",
    "recipes",
    "manifest",
    "hub",
    "checkpoint",
    "util",
    "report",
    "errors",
    "error_codes",
)
"""The packages from the top down; a module imports from its own package and from those below."""

LATE = ("merge.kernels_cpu", "merge.kernels_torch", "jobs.demo")
"""Loading one of these loads torch, numkong or numpy, so nobody does it at module level."""

PURE = (
    "util.name_groups",
    "util.litter",
    "checkpoint.layout_names",
    "checkpoint.file_type",
    "checkpoint.foreign.listing",
    "checkpoint.foreign.formats",
    "checkpoint.foreign.training",
    "checkpoint.foreign.hub_cache",
    "checkpoint.foreign.recognise",
    "checkpoint.llava_names",
    "checkpoint.naming",
    "checkpoint.wrapper_prefix",
    "recipes.stored_form",
    "merge.operation",
    "merge.rules",
    "merge.plan",
    "merge.blocks",
    "merge.record",
    "merge.shards",
    "merge.document_sizes",
    "merge.parts",
    "merge.frame",
    "merge.torch_frame",
    "merge.torch_pickle",
    "export.sizes",
    "export.sanity",
    "export.config",
    "jobs.model_card",
    "manifest.digest",
    "manifest.records",
    "manifest.parse",
)
"""Values in, values out."""

DOORS = {
    "os",
    "io",
    "pathlib",
    "shutil",
    "tempfile",
    "socket",
    "subprocess",
    "mmap",
    "fcntl",
    "time",
    "random",
    "torch",
}
"""What a pure module may not import: whatever reaches the disk, the clock or another process, and torch."""

FILE_CALLS = {"open", "read_bytes", "read_text", "write_bytes", "write_text", "stat", "exists", "unlink", "mkdir"}

MOST_LINES = 300

MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}
"""Every module by its name without the leading ``deltaweights.``; the package itself is ``__init__``."""

TEST_FILES = sorted(TESTS.rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path, *, nested: bool = True) -> Iterator[str]:
    """Yield the dotted name of all that a file imports, at module level only unless ``nested``."""
    for node in ast.walk(tree(path)) if nested else tree(path).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: imports are written in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path: Path) -> set[str]:
    """Return the modules of this package that a file imports, by their names in ``MODULES``."""
    found = set()
    for name in imports(path):
        if name.split(".")[0] == "deltaweights":
            parts = name.split(".")[1:]
            while parts and ".".join(parts) not in MODULES:
                parts.pop()  # the last part was something inside the module
            found.add(".".join(parts) or "__init__")
    return found


def package(module: str) -> str:
    """Return the package that a module is in."""
    return module.split(".", maxsplit=1)[0]


def test_the_walk_sees_the_whole_package() -> None:
    """Every package of the order exists, every module is in one, and the reader of imports finds arrows known to be there."""
    packages = {package(module) for module in MODULES} - {"__init__", "__main__"}
    assert packages == set(ORDER)
    assert {"merge.plan", "manifest.records", "staging.open_staging"} <= own_imports(MODULES["staging.staged_shards"])
    assert "merge.kernels_cpu" in own_imports(MODULES["merge.device"]), "imports inside functions count"


def test_imports_point_down() -> None:
    """A module imports only from its own package and from packages further down in the order."""
    upwards = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        if module not in {"__init__", "__main__"}
        for name in sorted(own_imports(path) - {"__init__"})
        if ORDER.index(package(name)) < ORDER.index(package(module))
    ]
    assert upwards == []


def test_only_the_command_line_asks_the_package_itself() -> None:
    """The package's front door is used by the command line alone, so importing a module below never runs in a circle."""
    users = {module for module, path in MODULES.items() if "__init__" in own_imports(path)}
    assert {package(user) for user in users} <= {"cli"}


def test_no_module_imports_itself_in_a_circle() -> None:
    """The modules can be put in one order in which each comes after those that it imports."""
    arrows = {module: own_imports(path) - {module} for module, path in MODULES.items() if module != "__init__"}
    assert list(TopologicalSorter(arrows).static_order())


@pytest.mark.parametrize(
    ("library", "expected"), [("torch", {"merge.kernels_torch"}), ("numkong", {"merge.kernels_cpu"})]
)
def test_one_module_each_imports_what_computes(library: str, expected: set[str]) -> None:
    """Torch and numkong are each imported by one module of the merge; models run on torch."""
    users = {module for module, path in MODULES.items() if any(name.split(".")[0] == library for name in imports(path))}
    assert {user for user in users if package(user) not in {"inference", "cluster"}} == expected


def test_only_one_package_knows_transformers() -> None:
    """What loads a model is imported in the package that runs models, and inside functions there; launchers ask accelerate, too."""
    heavy = {"transformers", "accelerate", "PIL"}
    users = {module for module, path in MODULES.items() if {name.split(".")[0] for name in imports(path)} & heavy}
    assert {package(user) for user in users} == {"inference", "cluster"}


def test_what_computes_is_behind_late_imports() -> None:
    """The kernels are imported by the choice of device alone, and they and the demo only inside functions."""
    users = {module for module, path in MODULES.items() if own_imports(path) & {*LATE} - {"jobs.demo"}}
    assert users == {"merge.device"}
    late = tuple(f"deltaweights.{module}" for module in LATE)
    early = {
        module for module, path in MODULES.items() if any(name.startswith(late) for name in imports(path, nested=False))
    }
    assert not early


def test_importing_all_others_loads_no_torch() -> None:
    """A process that imports every module but kernels and demo has loaded nothing that is slow to load."""
    wanted = [f"deltaweights.{m}" for m in MODULES if m not in {"__init__", "__main__", *LATE}] + ["deltaweights"]
    program = f"""
import importlib, sys
for name in {wanted!r}:
    importlib.import_module(name)
print(sorted({{"torch", "numkong", "numpy", "transformers", "accelerate"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_reach_nothing(module: str) -> None:
    """Rules, plan, blocks, record, digest and manifest import nothing that reaches disk, clock or torch, and open no file."""
    path = MODULES[module]
    assert not {name.split(".")[0] for name in imports(path)} & DOORS
    calls = [node.func for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    names = {call.id for call in calls if isinstance(call, ast.Name)}
    names |= {call.attr for call in calls if isinstance(call, ast.Attribute)}
    assert not names & FILE_CALLS


def test_modules_stay_short() -> None:
    """No module is longer than can be read in one go."""
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert {module: lines for module, lines in lengths.items() if lines > MOST_LINES} == {}


def test_everything_public_says_what_it_is() -> None:
    """Every module, class, function and public method has a docstring, but for methods that a base or a Protocol describes."""
    assert [module for module, path in MODULES.items() if not ast.get_docstring(tree(path))] == []
    silent = [
        f"{module}.{name}"
        for module, path in MODULES.items()
        for name, node in public(tree(path), "")
        if not ast.get_docstring(node) and name.split(".")[-1] not in described()
    ]
    assert silent == []


@cache
def described() -> frozenset[str]:
    """Return the names of all methods that the package's protocols describe."""
    classes = [node for path in MODULES.values() for node in tree(path).body if isinstance(node, ast.ClassDef)]
    protocols = [node for node in classes if "Protocol" in {ast.unparse(base).partition("[")[0] for base in node.bases}]
    return frozenset(child.name for node in protocols for child in node.body if isinstance(child, Named))


def test_no_two_classes_share_a_name() -> None:
    """One class name means one thing in the whole package."""
    homes: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, set()).add(module)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


Named = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, Named]]:
    """Yield the public functions and classes of a module, and those of its public classes, with their names."""
    for child in node.body:
        if isinstance(child, Named) and not child.name.startswith("_"):
            yield f"{prefix}{child.name}", child
            if isinstance(child, ast.ClassDef) and not child.bases:
                yield from public(child, f"{prefix}{child.name}.")


def test_nothing_prints_or_catches_blindly() -> None:
    """No module calls ``print`` (results go through click, remarks through the report) or has a bare ``except:``."""
    found = []
    for module, path in MODULES.items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found.append(f"{module}:{node.lineno}: print")
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                found.append(f"{module}:{node.lineno}: bare except")
    assert found == []


def test_every_test_states_the_fact_it_proves() -> None:
    """Every test function has a docstring, and every file of tests has a test."""
    silent, empty = [], []
    for path in TEST_FILES:
        body = ast.parse(path.read_text(encoding="utf-8"), str(path)).body
        tests = [node for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
        silent += [f"{path.name}: {node.name}" for node in tests if not ast.get_docstring(node)]
        empty += [] if tests or not path.name.startswith("test_") else [path.name]
    assert (silent, empty) == ([], [])
