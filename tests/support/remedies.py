"""Every remedy that the code can give, read from its source: what it says, with ``{}`` where a value comes in."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SRC = Path(__file__).parents[2] / "src" / "deltaweights"

POSITIONAL = {"MalformedAt": 1, "Recognised": 2, "StoredForm": 1, "advising": 0, "Interrupted": 1}
"""Calls of which an argument is a remedy, and which one."""

TABLES = ("_BY_PREFIX", "_BY_TEXT")
"""Tables of (start of a file, what it is, remedy)."""

Definitions = dict[str, list[ast.expr]]


def remedies() -> set[str]:
    """Return the text of every remedy, and of every part that one is put together from."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SRC.rglob("*.py"))]
    everywhere = _definitions(node for tree in trees for node in tree.body)
    found: set[str] = set()
    for tree in trees:
        for node in tree.body:
            local = _definitions(ast.walk(node)) if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else {}
            for expression in _roots(node):
                _collect(expression, {**everywhere, **local}, found, set())
    return found


def pattern(template: str) -> re.Pattern[str]:
    """Return what matches a remedy that is made by a template."""
    return re.compile(".*".join(map(re.escape, template.split("{}"))), re.DOTALL)


def _definitions(nodes: Iterator[ast.AST]) -> Definitions:
    """Return what names stand for: constants and variables, and what functions return."""
    found: Definitions = {}
    for node in nodes:
        for name, value in _assignments(node):
            found.setdefault(name, []).append(value)
        if isinstance(node, ast.FunctionDef):
            returned = [each.value for each in ast.walk(node) if isinstance(each, ast.Return) and each.value]
            found.setdefault(f"{node.name}()", []).extend(returned)
    return found


def _assignments(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    targets = node.targets if isinstance(node, ast.Assign) else []
    if isinstance(node, (ast.AnnAssign, ast.AugAssign)) and node.value is not None:
        targets = [node.target]
    for target in targets:
        value = node.value  # type: ignore[attr-defined]
        if isinstance(target, ast.Name):
            yield target.id, value
        elif isinstance(target, ast.Tuple):
            for at, element in enumerate(target.elts):
                for each in (value.body, value.orelse) if isinstance(value, ast.IfExp) else (value,):
                    same = isinstance(each, ast.Tuple) and len(each.elts) == len(target.elts)
                    if isinstance(element, ast.Name) and isinstance(each, ast.Tuple) and same:
                        yield element.id, each.elts[at]


def _roots(top: ast.AST) -> Iterator[ast.expr]:
    """Return the expressions in a definition that are remedies."""
    for node in ast.walk(top):
        for name, value in _assignments(node):
            if "remed" in name.lower():
                yield value
            if name in TABLES:
                yield from (row.elts[2] for row in ast.walk(value) if isinstance(row, ast.Tuple) and len(row.elts) == 3)
        if isinstance(node, ast.Call):
            yield from (keyword.value for keyword in node.keywords if "remed" in (keyword.arg or ""))
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if called in POSITIONAL and len(node.args) > POSITIONAL[called]:
                yield node.args[POSITIONAL[called]]
        if isinstance(node, ast.FunctionDef):
            named = [*node.args.posonlyargs, *node.args.args]
            defaults = [*zip(named[::-1], node.args.defaults[::-1], strict=False)]
            for argument, default in [*defaults, *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]:
                if "remed" in argument.arg and default is not None:
                    yield default


def _collect(node: ast.expr, known: Definitions, found: set[str], seen: set[str]) -> None:
    """Add the texts that an expression may have to ``found``."""
    match node:
        case ast.Constant(value=str(text)) if _is_said(text):
            found.add(text)
        case ast.JoinedStr(values=parts):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)
            if _is_said(text):
                found.add(text)
            for part in parts:
                if isinstance(part, ast.FormattedValue):
                    _collect(part.value, known, found, seen)
        case ast.IfExp(body=one, orelse=other) | ast.BinOp(left=one, right=other):
            _collect(one, known, found, seen)
            _collect(other, known, found, seen)
        case ast.BoolOp(values=values) | ast.Dict(values=values):
            for value in values:
                _collect(value, known, found, seen)
        case ast.Subscript(value=value):
            _collect(value, known, found, seen)
        case ast.Name(id=name) | ast.Call(func=ast.Name(id=name)):
            key = f"{name}()" if isinstance(node, ast.Call) else name
            if key not in seen:
                for value in known.get(key, ()):
                    _collect(value, known, found, {*seen, key})


def _is_said(text: str) -> bool:
    """Return whether a text says something itself: a word alone is a name, or joins others."""
    return " " in text.strip() and len(re.findall("[A-Za-z]{2,}", text)) > 1
