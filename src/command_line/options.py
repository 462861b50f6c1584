"""Hydra's own options on a command line, apart from the keys with their values."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

# Hydra's own options by their long names, and the short names of those that are followed by a value.
SHORT = {
    "--cfg": "-c",
    "--package": "-p",
    "--config-path": "-cp",
    "--config-name": "-cn",
    "--config-dir": "-cd",
    "--experimental-rerun": "",
}
TAKES_VALUE = {*SHORT, *SHORT.values()}
OPTIONS = (*SHORT, *"--info --help --hydra-help --version --resolve --run --multirun --shell-completion".split())
# Of these Hydra takes one.
EXCLUSIVE = (("-m", "--multirun"), ("--cfg", "-c"), ("--info", "-i"), ("--run", "-r"), ("--shell-completion", "-sc"))
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")  # that may follow --info


@dataclass(frozen=True)
class CommandLine:
    """A command line as typed, its keys with values, and Hydra's own options."""

    typed: list[str]
    overrides: list[str]
    options: list[str]

    @property
    def words(self) -> set[str]:
        """The names of the options."""
        return {option.partition("=")[0] for option in self.options}

    @property
    def multirun(self) -> bool:
        """Whether several runs are wanted."""
        return bool(self.words & {"-m", "--multirun"}) or "hydra.mode=MULTIRUN" in self.overrides

    @property
    def completes(self) -> bool:
        """Whether a shell asks for completions; install=SHELL or query=SHELL follows."""
        return bool(self.words & {"--shell-completion", "-sc"})

    @property
    def informs(self) -> bool:
        """Whether a help is asked for, or completions."""
        return self.completes or bool(self.words & {"--help", "-h", "--hydra-help"})

    @property
    def runs(self) -> bool:
        """Whether the script is to do its work."""
        return not self.informs and not self.words & {"--cfg", "-c", "--info", "-i"}

    @property
    def own_primary(self) -> str | None:
        """The name of the user's own primary configuration."""
        return next(iter(reversed(values_of(self.options, "--config-name"))), None)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides of a command line, and Hydra's own options, which may stand between them.

    An option that is none of Hydra's and has a value, as W&B's agents and other tools write them, is an override.
    """
    overrides, options = [], []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, _ = argument.partition("=")
        if argument == "--":
            overrides += rest
            break
        if not argument.startswith("-"):
            overrides.append(argument)
        elif equals and name not in (*SHORT, "--info") and re.fullmatch(r"--[A-Za-z_][\w.@/]*", name):
            overrides.append(argument.removeprefix("--"))
        elif _is_key(name, rest):
            overrides.append(f"{name.removeprefix('--')}={rest.pop(0)}")
        else:
            option = _full(name)
            options.append(option + argument.removeprefix(name))
            if rest and not equals and (option in TAKES_VALUE or (option in ("--info", "-i") and rest[0] in INFO)):
                options.append(rest.pop(0))
    return overrides, options


def _is_key(name: str, rest: Sequence[str]) -> bool:
    """Whether an option is not one of Hydra's but a key followed by its value, as other tools write them."""
    if not re.fullmatch(r"--[A-Za-z_][\w.]*", name) or any(option.startswith(name) for option in OPTIONS):
        return False
    return bool(rest) and not rest[0].startswith("-") and "=" not in rest[0]


def _full(name: str) -> str:
    """The option that a prefix of its name stands for, if it is unambiguous."""
    meant = [option for option in OPTIONS if option.startswith(name) and name.startswith("--")]
    return meant[0] if len(meant) == 1 else name


def values_of(options: Sequence[str], name: str) -> list[str]:
    """The values given to one of Hydra's options, by its long or its short name."""
    names, found = (name, SHORT[name]), []
    for option, following in itertools.zip_longest(options, options[1:], fillvalue=""):
        word, equals, value = option.partition("=")
        if word in names:
            found.append(value if equals else following)
    return found
