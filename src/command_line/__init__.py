"""The scripts' command lines, before Hydra reads them.

Hydra's grammar takes few characters without quotes, its parser wants all overrides in one piece, and neither says
which name was meant. So a path may be typed as it is, with blanks, brackets, commas, equals signs and letters of any
language; W&B's `--key=value` means key=value; unknown names are reported with a suggestion.
"""

import contextlib
import functools
import io
import multiprocessing
import os
import string
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from danet.services import signals

# Before the imports that take seconds; in the processes of several devices, which import the script, too.
if Path(sys.argv[0]).absolute().parent == Path(__file__).absolute().parents[1]:
    signals.end_at_signals()

from command_line.options import EXCLUSIVE, CommandLine, split, values_of
from command_line.paths import exists, places_in, quote_paths
from command_line.plugins import plugin_problems

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import danet.config
import danet.config.argparse_help  # before Hydra parses
from danet.config.help import help_text
from danet.config.names import Names, known_names
from danet.registry import EXTENSIONS, extension_folders
from danet.services import failures, secrets_of_environment


def start(
    main: Callable[[DictConfig], Any],
    primary: str,
    paths: Collection[str] = (),
    lists: Collection[str] = (),
    *,
    adapt: Callable[[Sequence[str]], list[str]] = list,
    check: Callable[[DictConfig, Sequence[str]], Any] | None = None,
    memory: str = "",
) -> None:
    """Check and adapt the command line, compose the configuration and run a script.

    Args:
        main: the script: takes what Hydra composes; what it returns is what Hydra's sweepers optimize.
        primary: name of its primary configuration, conf/NAME.yaml.
        paths: keys whose values are paths.
        lists: keys whose values are lists of paths.
        adapt: changes the overrides, such as `with_dataset_of_run`.
        check: only checks what Hydra composes from the overrides whose names are known, so that wrong values are
            reported together with unknown names.
        memory: the remedy if memory runs out.
    """
    typed = sys.argv[1:]
    line = CommandLine(typed, *split(typed))
    try:
        _refuse_secrets(line.overrides)
        _refuse_options(line.words)
        overrides = danet.config.without_empty_groups(take_extensions(line.overrides), primary, line.own_primary)
        folders = config_folders(overrides, line.options)
        check_names = functools.partial(_check_names, line=line, primary=primary, folders=folders)
        unknown = [] if line.completes else _problems(check_names, overrides)
        if unknown and (check is None or line.options):  # with an option such as --cfg, Hydra runs no job to tell them
            raise danet.config.ConfigError(unknown)
        if unknown:  # are reported together with wrong values, for which the rest is composed
            overrides = _with_known_names(overrides, check_names)
        adapted = overrides if line.informs else _adapted(overrides, adapt, paths)
        added = [override for override in adapted if override not in overrides]
        check_names([override for override in added if not override.startswith("+")])
    except danet.config.ConfigError as error:
        sys.exit(f"ConfigError: {error}")
    sys.argv[1:] = [*quote_paths(adapted, paths, lists, multirun=line.multirun), *line.options]

    @functools.wraps(main)
    def job(composed: DictConfig) -> Any:
        if unknown and check:
            others = _problems(check, composed, overrides)
            sys.exit(f"ConfigError: {danet.config.ConfigError([*unknown, *others])}")
        with signals.ending_in_order(pooled=multiprocessing.current_process().name.startswith("Loky")):
            if HydraConfig.get().mode == RunMode.MULTIRUN:  # Hydra reports an error and continues with the next job
                return main(composed)
            with failures.one_line(memory):
                return main(composed)

    run = hydra.main(version_base="1.3", config_path=str(danet.config.REPOSITORY / "conf"), config_name=primary)(job)
    if {"--help", "-h"} & {*line.options}:
        _show_help(run, line.options, known_names(primary, folders or (), line.own_primary))
    else:
        run()


def _refuse_secrets(overrides: Sequence[str]) -> None:
    """Refuse a command line with a secret in it.

    Raises:
        ConfigError: names the environment variable.
    """
    if name := secrets_of_environment.held_in(overrides):
        text = f"the command line has the value of the environment variable {name}, and is recorded with the run"
        raise danet.config.ConfigError([f"{text}. Leave it out: W&B and others read their variables themselves"])


def _refuse_options(words: set[str]) -> None:
    """Refuse options of Hydra that do not go together, for which it has a traceback.

    Raises:
        ConfigError: names them, and what to write.
    """
    if words & {"--help", "-h", "--hydra-help"}:
        return
    if "--resolve" in words and not words & {"--cfg", "-c"}:
        raise danet.config.ConfigError(["--resolve: is a part of --cfg; write --cfg job --resolve"])
    given = [pair for pair in EXCLUSIVE if words & {*pair}]
    if len(given) > 1:
        names = " and ".join(next(name for name in pair if name in words) for pair in given)
        one = (
            "; --cfg shows a single run: leave out -m, and give each key one value"
            if words & {"-m", "--multirun"}
            else ""
        )
        raise danet.config.ConfigError([f"{names}: do not go together{one}"])


def _check_names(overrides: Sequence[str], *, line: CommandLine, primary: str, folders: list[Path] | None) -> None:
    """Check the names of overrides, and those of Hydra's launchers and sweepers.

    Raises:
        ConfigError: see `check_arguments`.
    """

    def check(overrides: Sequence[str]) -> None:
        danet.config.check_arguments(
            overrides,
            primary,
            folders,
            own_primary=line.own_primary,
            multirun=line.multirun if line.runs else None,
            typed=line.typed,
        )

    if problems := [*_problems(check, overrides), *plugin_problems(overrides, folders, line.own_primary)]:
        raise danet.config.ConfigError(problems)


def _adapted(overrides: list[str], adapt: Callable[[Sequence[str]], list[str]], paths: Collection[str]) -> list[str]:
    """The overrides with the folders that `run=latest`, `run=NAME` or `sweep=NAME` mean, and the script's changes."""
    if "sweep" in paths:
        overrides = danet.config.with_sweep_folder(overrides)
    if "run" in paths:
        overrides = danet.config.with_run_folders(overrides)
        danet.config.require_run(overrides)
    return adapt(overrides)


def _show_help(run: Callable[[], Any], options: Sequence[str], names: Names) -> None:
    """Print the help, with the comments of the YAML files, and exit.

    Hydra composes; its own help would copy all it has composed for each group of options, which takes seconds.
    """
    arguments, overrides = sys.argv, sys.argv[1 : len(sys.argv) - len(options)]
    own = [f"{name}={value}" for name in ("--config-dir", "--config-name") for value in values_of(options, name)]
    sys.argv = [arguments[0], *overrides, *own, "--cfg", "all"]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        run()
    composed: Any = OmegaConf.create(shown.getvalue())
    template = string.Template(composed.hydra.help.template)
    del composed["hydra"]
    if template.get_identifiers() == ["CONFIG"]:
        print(help_text(template.substitute(CONFIG=OmegaConf.to_yaml(composed)), names), end="")
        sys.exit()
    sys.argv = arguments  # a user's primary configuration has a help of its own
    run()


def _with_known_names(overrides: Sequence[str], check_names: Callable[[Sequence[str]], None]) -> list[str]:
    """The overrides whose names are known. Options of groups come first: they decide which keys there are."""
    kept, of_files = list[str](), _problems(check_names, [])
    for override in sorted(overrides, key=lambda override: "." in override.partition("=")[0]):
        if _problems(check_names, [*kept, override]) == of_files:
            kept.append(override)
    return [override for override in overrides if override in kept]


def _problems(check: Callable[..., Any], *given: Any) -> list[str]:
    """What a check finds wrong."""
    try:
        check(*given)
    except danet.config.ConfigError as error:
        return list(error.problems)
    return []


def take_extensions(overrides: Sequence[str]) -> list[str]:
    """The overrides without `extensions=FOLDER` (or a list of folders), which goes to the environment.

    Raises:
        ConfigError: there is no such folder.
    """
    rest, places = [], []
    for override in overrides:
        key, _, value = override.partition("=")
        if key.lstrip("+") == "extensions":
            value = danet.config.unquoted(value)
            listed = value[1:-1].split(",") if value.startswith("[") and not exists(value) else [value]
            places += [os.path.abspath(os.path.expanduser(danet.config.unquoted(place.strip()))) for place in listed]
        else:
            rest.append(override)
    if missing := [place for place in places if not os.path.isdir(place)]:
        raise danet.config.ConfigError([f"extensions = {place!r}: no such folder" for place in missing])
    if places:
        os.environ[EXTENSIONS] = os.pathsep.join(places)
    return rest


def config_folders(overrides: Sequence[str], options: Sequence[str]) -> list[Path] | None:
    """Folders of configuration that the command line adds; None where they cannot be looked into from here."""
    if values_of(options, "--config-path"):
        return None
    places = [os.path.abspath(folder) for folder in values_of(options, "--config-dir")]
    places += map(str, extension_folders())
    for override in overrides:
        if override.lstrip("+").startswith("hydra.searchpath="):
            places += places_in(override)
    places = [place.removeprefix("file://") for place in places]
    if any(not place or "://" in place or "$" in place for place in places):
        return None
    return [Path(place) for place in places]
