"""Registries: every component is found by name, and its signature is its configuration schema.

A component is a class or a function whose positional-only parameters are runtime values (given by the code that
builds it) and whose keyword-only parameters are exactly the keys of its YAML file:

    @HEADS.register("fcn")
    class FCNHead(nn.Module):
        def __init__(self, stages: Sequence[Stage], num_classes: int, /, *, dropout: Fraction = 0.1): ...

A registry imports the modules of its package when it is first asked for a name, so a new file needs no other edit. So
it does with the files of folders outside of the package, which `extensions=FOLDER` on a command line names.
"""

import difflib
import gc
import importlib
import inspect
import os
import pkgutil
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any


def did_you_mean(word: str, known: list[str]) -> str:
    """The end of an error text: the nearest known word, or all of them."""
    near = difflib.get_close_matches(str(word), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"


def keyword_parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Keyword-only parameters of a class or function, with resolved annotations."""
    target = function.__init__ if inspect.isclass(function) else function
    hints = typing.get_type_hints(target, include_extras=True)
    return {
        name: parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def options_of(section: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a component's section: all of it but the name."""
    return {key: value for key, value in section.items() if key != "name"}


EXTENSIONS = "DANET_EXTENSIONS"  # environment variable, so that a run's other processes have it, too


def extension_folders() -> list[Path]:
    """The folders with components of the user's own that the environment names, as PATH names folders."""
    return [Path(name).expanduser().absolute() for name in os.environ.get(EXTENSIONS, "").split(os.pathsep) if name]


def _import_extensions() -> None:
    """Import the Python files in the user's folders; they register their components.

    Raises:
        ValueError: a file has the name of another module.
    """
    for folder in extension_folders():
        if str(folder) not in sys.path:
            sys.path.append(str(folder))  # at the end: a file there takes the place of no library
        for file in sorted(folder.glob("*.py")):
            module = importlib.import_module(file.stem)
            if not module.__file__ or not file.samefile(module.__file__):
                raise ValueError(f"{file}: there is another module called {file.stem!r}. Rename the file")


class Registry:
    """Components of one kind, by name.

    Args:
        kind: the configuration group, for example "head".
        modules: the package (all its modules) or module that registers the components.
    """

    def __init__(self, kind: str, modules: str) -> None:
        self.kind = kind
        self.modules = modules
        self._components: dict[str, Callable[..., Any]] = {}
        self._common: Callable[..., Any] | None = None
        self._loaded = False

    def register(self, name: str) -> Callable[[Any], Any]:
        """Decorator that makes a class or function known as `name`."""

        def add(component: Any) -> Any:
            if name in self._components:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._components[name] = component
            return component

        return add

    def common(self, function: Any) -> Any:
        """Decorator: the keyword-only parameters of `function` are keys of every component of this kind."""
        self._common = function
        return function

    def _load(self) -> None:
        if self._loaded:
            return
        collects = gc.isenabled()
        gc.disable()  # it would search the many objects of PyTorch's import again and again: a sixth of the start
        try:
            module = importlib.import_module(self.modules)
            for part in pkgutil.iter_modules(getattr(module, "__path__", [])):
                importlib.import_module(f"{self.modules}.{part.name}")
            _import_extensions()
        finally:
            if collects:
                gc.enable()
        self._loaded = True

    def __getitem__(self, name: str) -> Callable[..., Any]:
        """The component called `name`.

        Raises:
            KeyError: the name is unknown; the message says which one may be meant.
        """
        self._load()
        if name not in self._components:
            raise KeyError(f"unknown {self.kind} {name!r}; {did_you_mean(name, list(self._components))}")
        return self._components[name]

    def __iter__(self) -> Iterator[str]:
        """Names in alphabetical order."""
        self._load()
        return iter(sorted(self._components))

    def __contains__(self, name: object) -> bool:
        """Whether a component has this name."""
        self._load()
        return name in self._components

    def build(self, section: Mapping[str, Any], *runtime: Any) -> Any:
        """The component that a section describes, of its runtime values and its own options.

        Raises:
            KeyError: the name is unknown.
            ValueError: the component refuses its options.
        """
        component, common = self[section["name"]], self.common_options(section)
        return component(*runtime, **{k: v for k, v in options_of(section).items() if k not in common})

    def common_options(self, section: Mapping[str, Any]) -> dict[str, Any]:
        """The options in a section that every component of this kind has."""
        self._load()
        known = keyword_parameters(self._common) if self._common else {}
        return {key: section[key] for key in known if key in section}

    def schema(self, name: str) -> dict[str, inspect.Parameter]:
        """The keys that the component's section may have (besides `name`), as parameters."""
        component = self[name]
        return keyword_parameters(component) | (keyword_parameters(self._common) if self._common else {})


BACKBONES = Registry("backbone", "danet.backbones")
HEADS = Registry("head", "danet.heads")
LOSSES = Registry("loss", "danet.losses")
DATASETS = Registry("dataset", "danet.datasets")
OPTIMIZERS = Registry("optimizer", "danet.optimizers")
SCHEDULES = Registry("schedule", "danet.schedules")
