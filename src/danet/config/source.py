"""Wrong values in components' sections, found from the source: told at once, because PyTorch is not imported."""

import ast
import collections.abc
import functools
import inspect
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import danet
from danet import arguments
from danet.registry import options_of
from danet.schema import COMPONENTS, check_values

ROOT = Path(danet.__file__).parents[1]
KNOWN = {**vars(collections.abc), **vars(typing), **vars(arguments)}
Definition = ast.FunctionDef | ast.ClassDef


def source_problems(kind: str, section: Any) -> list[str]:
    """What `check_component` would find wrong between a section and the component's signature, as far as known."""
    if not isinstance(section, Mapping):
        return []
    problems: list[str] = []
    if (known := parameters(kind, str(section.get("name")))) is not None:
        check_values(options_of(section), known, f"{kind}.", problems)
    return problems


def parameters(kind: str, name: str) -> dict[str, inspect.Parameter] | None:
    """The keys of a component's section, as `Registry.schema` has them; None if the source does not show them.

    A type that only an import would show is Any.
    """
    own: dict[str, inspect.Parameter] | None = None
    common: dict[str, inspect.Parameter] = {}
    for file in _files(COMPONENTS[kind].modules):
        text = file.read_text(encoding="utf-8")
        if f'"{name}"' not in text and ".common" not in text:
            continue
        for definition, decorator in _decorated(file):
            if ast.unparse(decorator).endswith(".common"):
                common = _keywords(definition, file) or {}
            elif f'"{name}"' in text and _registers(decorator, name):
                own = _keywords(definition, file)
    return None if own is None else own | common


def _files(module: str) -> list[Path]:
    """The file of a module, or those of a package and of the packages in it."""
    place = ROOT.joinpath(*module.split("."))
    return sorted(place.rglob("*.py")) or [place.with_suffix(".py")]


@functools.cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _decorated(file: Path) -> Iterator[tuple[Definition, ast.expr]]:
    for node in ast.walk(_tree(file)):
        if isinstance(node, Definition):
            yield from ((node, decorator) for decorator in node.decorator_list)


def _registers(decorator: ast.expr, name: str) -> bool:
    """Whether it is `@X.register(...)` of this name, or of a variable in whose file the name stands."""
    if not (isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith(".register")):
        return False
    (given,) = decorator.args
    return not isinstance(given, ast.Constant) or given.value == name


def _keywords(definition: Definition, file: Path) -> dict[str, inspect.Parameter] | None:
    """Those of a function, or of the `__init__` of a class or of its first base in the same file."""
    if isinstance(definition, ast.ClassDef):
        parts = [*_tree(file).body, *definition.body]
        names = {part.name: part for part in parts if isinstance(part, ast.FunctionDef | ast.ClassDef)}
        wanted = "__init__" if "__init__" in names else ast.unparse(definition.bases[0]) if definition.bases else ""
        return _keywords(names[wanted], file) if wanted in names else None
    return {
        argument.arg: inspect.Parameter(
            argument.arg,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if default is None else ...,
            annotation=_type(argument.annotation, file),
        )
        for argument, default in zip(definition.args.kwonlyargs, definition.args.kw_defaults, strict=True)
    }


def _type(node: ast.expr | None, file: Path) -> Any:
    """What an annotation means; Any for one that takes more than this module's types and those of arguments.py."""
    if node is None:
        return Any
    try:
        return eval(ast.unparse(node), {}, _Names(file))
    except (NameError, AttributeError):
        return Any


class _Names(dict[str, Any]):
    """The types that a file's annotations may name: standard ones, its own, and those it imports of the package."""

    def __init__(self, file: Path) -> None:
        super().__init__(KNOWN)
        self.file = file

    def __missing__(self, name: str) -> Any:
        for node in _tree(self.file).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
                return _type(node.value, self.file)
            if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
                module = str(node.module)
                return _type(ast.Name(name), _files(module)[0]) if module.startswith("danet.") else Any
        raise KeyError(name)
