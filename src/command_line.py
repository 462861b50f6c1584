"""The scripts' command lines, before Hydra reads them.

Hydra's grammar takes few characters without quotes, its parser wants all overrides in one piece, and neither says
which name was meant. So a path may be typed as it is, with blanks, brackets, commas, equals signs and letters of any
language; W&B's `--key=value` means key=value; unknown names are reported with a suggestion.
"""

import contextlib
import functools
import io
import itertools
import multiprocessing
import os
import re
import string
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from danet.services import signals

# Before the imports that take seconds; in the processes of several devices, which import the script, too.
if Path(sys.argv[0]).absolute().parent == Path(__file__).absolute().parent:
    signals.end_at_signals()

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import danet.config
import danet.config.argparse_help  # before Hydra parses
from danet.config import quoted
from danet.config.help import help_text
from danet.config.names import Names, known_names
from danet.registry import EXTENSIONS, did_you_mean, extension_folders
from danet.services import failures, secrets_of_environment

# Hydra's own options by their long names, and the short names of those that are followed by a value.
SHORT = {
    **{"--cfg": "-c", "--package": "-p", "--config-path": "-cp", "--config-name": "-cn", "--config-dir": "-cd"},
    **{"--experimental-rerun": ""},
}
TAKES_VALUE = {*SHORT, *SHORT.values()}
OPTIONS = (
    *SHORT,
    "--info",
    "--help",
    "--hydra-help",
    "--version",
    "--resolve",
    "--run",
    "--multirun",
    "--shell-completion",
)
EXCLUSIVE = (  # of which Hydra takes one
    *(("-m", "--multirun"), ("--cfg", "-c"), ("--info", "-i"), ("--run", "-r"), ("--shell-completion", "-sc")),
)
# Launchers that are packages of their own.
INSTALLED_BY = {
    ("hydra/launcher", "ray"): "pip install -c constraints.txt -e '.[ray]'",
    ("hydra/launcher", "joblib"): "pip install -e '.[launchers]'",
    ("hydra/launcher", "submitit_slurm"): "pip install -e '.[launchers]'",
    ("hydra/launcher", "submitit_local"): "pip install -e '.[launchers]'",
}
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")  # that may follow --info


def start(
    main: Callable[[DictConfig], Any],
    primary: str,
    paths: Collection[str] = (),
    lists: Collection[str] = (),
    *,
    adapt: Callable[[Sequence[str]], list[str]] = list,
    check: Callable[[DictConfig], Any] | None = None,
    memory: str = "",
) -> None:
    """Check and adapt the command line, compose the configuration and run a script.

    Args:
        main: the script: takes what Hydra composes; what it returns is what Hydra's sweepers optimize.
        primary: name of its primary configuration, conf/NAME.yaml.
        paths: keys whose values are paths.
        lists: keys whose values are lists of paths.
        adapt: changes the overrides, such as `with_dataset_of_run`.
        check: only checks the values that Hydra composes, so that they are reported together with unknown names.
        memory: the remedy if memory runs out.
    """
    typed = sys.argv[1:]
    overrides, options = split(typed)
    words = {option.partition("=")[0] for option in options}
    multirun = bool(words & {"-m", "--multirun"}) or "hydra.mode=MULTIRUN" in overrides
    completes = bool(words & {"--shell-completion", "-sc"})  # install=SHELL or query=SHELL follows
    informs = completes or bool(words & {"--help", "-h", "--hydra-help"})
    runs = not informs and not words & {"--cfg", "-c", "--info", "-i"}
    own_primary = next(iter(reversed(_values(options, "--config-name"))), None)
    try:
        _refuse_secrets(overrides)
        _refuse_options(words)
        overrides = danet.config.without_empty_groups(take_extensions(overrides), primary, own_primary)
        folders = config_folders(overrides, options)
        check_names = functools.partial(
            _check_names,
            primary=primary,
            folders=folders,
            own_primary=own_primary,
            multirun=multirun if runs else None,
            typed=typed,
        )
        unknown = [] if completes else _problems(check_names, overrides)
        if unknown and (check is None or options):  # with an option such as --cfg, Hydra runs no job to report them
            raise danet.config.ConfigError(unknown)
        if unknown:  # are reported together with wrong values, for which the rest is composed
            of_files = _problems(check_names, [])
            overrides = [override for override in overrides if _problems(check_names, [override]) == of_files]
        adapted = overrides if informs else _adapted(overrides, adapt, paths)
        added = [override for override in adapted if override not in overrides]
        check_names([override for override in added if not override.startswith("+")])
    except danet.config.ConfigError as error:
        sys.exit(f"ConfigError: {error}")
    sys.argv[1:] = [*quote_paths(adapted, paths, lists, multirun=multirun), *options]

    @functools.wraps(main)
    def job(composed: DictConfig) -> Any:
        if unknown and check:
            sys.exit(f"ConfigError: {danet.config.ConfigError([*unknown, *_problems(check, composed)])}")
        with signals.ending_in_order(pooled=multiprocessing.current_process().name.startswith("Loky")):
            if HydraConfig.get().mode == RunMode.MULTIRUN:  # Hydra reports an error and continues with the next job
                return main(composed)
            with failures.one_line(memory):
                return main(composed)

    run = hydra.main(version_base="1.3", config_path=str(danet.config.REPOSITORY / "conf"), config_name=primary)(job)
    if {"--help", "-h"} & {*options}:
        _show_help(run, options, known_names(primary, folders or (), own_primary))
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
        one = "; --cfg shows a single run: leave out -m, and give each key one value" if words & {"--cfg", "-c"} else ""
        raise danet.config.ConfigError([f"{names}: do not go together{one}"])


def _check_names(
    overrides: Sequence[str], *, folders: list[Path] | None, own_primary: str | None, **options: Any
) -> None:
    """Check the names on a command line, and those of Hydra's launchers and sweepers.

    Raises:
        ConfigError: see `check_arguments`.
    """
    check = functools.partial(danet.config.check_arguments, folders=folders, own_primary=own_primary, **options)
    if problems := [*_problems(check, overrides), *_plugin_problems(overrides, folders, own_primary)]:
        raise danet.config.ConfigError(problems)


def _plugin_problems(overrides: Sequence[str], folders: Sequence[Path] | None, own_primary: str | None) -> list[str]:
    """A line for each launcher and sweeper that there is not, and for each key that the chosen one does not have."""
    given = dict(override.partition("=")[::2] for override in overrides)
    lines: list[str] = []
    for group, default in (("hydra/launcher", "basic"), ("hydra/sweeper", "variants")):
        section = group.replace("/", ".")
        keys = [key for key in given if key.startswith(f"{section}.")]
        if folders is None or not (group in given or keys):
            continue
        plugins = _plugins(group, folders)
        chosen = given.get(group, "" if own_primary else default)
        if chosen not in plugins:
            if group in given and re.fullmatch(r"[\w.-]*", chosen):  # else in quotes, an interpolation: Hydra reads it
                lines.append(_unknown_plugin(group, chosen, plugins))
            continue
        for key in keys:
            name = key.removeprefix(f"{section}.").partition(".")[0]
            if (own := plugins[chosen]) is not None and name not in own:
                others = [f"{group}={other}" for other, known in plugins.items() if known and name in known]
                hint = f"add {' or '.join(others)}" if others else did_you_mean(name, sorted(own))
                lines.append(f"{key}: {group}={chosen} has no such key; {hint}")
    return lines


def _unknown_plugin(group: str, name: str, plugins: Collection[str]) -> str:
    """What to say of a launcher or a sweeper that there is not."""
    if (group, name) in INSTALLED_BY and name not in plugins:
        return f"{group}={name}: is not installed; run {INSTALLED_BY[group, name]}"
    near = [known for known in sorted(plugins, reverse=True) if name and name in known.split("_")]
    return f"{group}={name}: unknown option; {did_you_mean(near[0] if near else name, sorted(plugins))}"


def _plugins(group: str, folders: Sequence[Path]) -> dict[str, set[str] | None]:
    """The launchers or sweepers that Hydra and YAML files have, with their keys; None where these are not known."""
    Plugins.instance()  # lets those that are installed register themselves, as Hydra does
    store, found = ConfigStore.instance(), dict[str, set[str] | None]()
    for file in store.list(group):
        node = store.load(f"{group}/{file}").node
        found[file.removesuffix(".yaml")] = {*map(str, node)} if isinstance(node, DictConfig) else None
    for place in (danet.config.REPOSITORY / "conf", *folders):
        for yaml in (place / group).glob("*.yaml"):
            section = OmegaConf.load(yaml)
            plain = isinstance(section, DictConfig) and "defaults" not in section
            found[yaml.stem] = {*map(str, section)} if plain else None
    return found


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
    own = [f"{name}={value}" for name in ("--config-dir", "--config-name") for value in _values(options, name)]
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


def _problems(check: Callable[[Any], Any], given: Any) -> list[str]:
    """What a check finds wrong."""
    try:
        check(given)
    except danet.config.ConfigError as error:
        return list(error.problems)
    return []


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
            listed = value[1:-1].split(",") if value.startswith("[") and not _exists(value) else [value]
            places += [os.path.abspath(os.path.expanduser(danet.config.unquoted(place.strip()))) for place in listed]
        else:
            rest.append(override)
    if missing := [place for place in places if not os.path.isdir(place)]:
        raise danet.config.ConfigError([f"extensions = {place!r}: no such folder" for place in missing])
    if places:
        os.environ[EXTENSIONS] = os.pathsep.join(places)
    return rest


def _values(options: Sequence[str], name: str) -> list[str]:
    """The values given to one of Hydra's options, by its long or its short name."""
    names, values = (name, SHORT[name]), []
    for option, following in itertools.zip_longest(options, options[1:], fillvalue=""):
        word, equals, value = option.partition("=")
        if word in names:
            values.append(value if equals else following)
    return values


def config_folders(overrides: Sequence[str], options: Sequence[str]) -> list[Path] | None:
    """Folders of configuration that the command line adds; None where they cannot be looked into from here."""
    if _values(options, "--config-path"):
        return None
    places = [os.path.abspath(folder) for folder in _values(options, "--config-dir")]
    places += map(str, extension_folders())
    for override in overrides:
        if override.lstrip("+").startswith("hydra.searchpath="):
            parsed = _parsed(_quoted(override, "list", multirun=False))
            read = parsed.value() if parsed else None
            places += [str(place) for place in read] if isinstance(read, list) else [""]
    places = [place.removeprefix("file://") for place in places]
    if any(not place or "://" in place or "$" in place for place in places):
        return None
    return [Path(place) for place in places]


# ---- paths -----------------------------------------------------------------------------------------------------------


def quote_paths(
    overrides: Sequence[str], paths: Collection[str], lists: Collection[str] = (), *, multirun: bool = False
) -> list[str]:
    """Overrides as Hydra takes them: quoted where its grammar would refuse or change what was typed.

    Args:
        overrides: as typed.
        paths: keys whose values are paths. They are taken literally, but for `null` and what is in quotes already.
        lists: keys whose values are lists of paths, as hydra.searchpath's; in `paths`, too, where one may stand alone.
        multirun: commas separate values; one that belongs to a path is recognized by the file or folder.
    """

    def kind(override: str) -> str:
        key, _, value = override.lstrip("+").partition("=")
        if key in paths and not (key in lists and value.startswith("[") and not _exists(value)):
            return "path"
        return "list" if key in (*lists, "hydra.searchpath") else ""

    return [_quoted(override, kind(override), multirun) for override in overrides]


def _quoted(override: str, kind: str, multirun: bool) -> str:
    key, equals, value = override.partition("=")
    if not (equals and value) or key.startswith("~"):
        return override
    if kind == "list" and value != "null" and (value[0] not in "['\"" or _exists(value)):
        return _quoted_list(key, value, kind)  # a single one
    if kind != "path" and value.startswith("[") and value.endswith("]") and not _exists(value):
        return _quoted_list(key, value[1:-1], kind)
    parsed = _parsed(override)
    if _is_as_typed(value, parsed, kind, multirun) or (kind != "path" and parsed is None and value[0] in "[{"):
        return override
    pieces = [value]
    if multirun and not _exists(value):
        if parsed is None and re.fullmatch(r"\w+\(.*\)", value):  # such as glob(*), which needs Hydra's own parser
            return override
        pieces = _existing(value) or value.split(",")
    return f"{key}={','.join(_piece(key, piece, literal=kind == 'path' or len(pieces) == 1) for piece in pieces)}"


def _quoted_list(key: str, inner: str, kind: str) -> str:
    """A list with its elements quoted: those of a list of paths that exist, else those that the grammar refuses."""
    override = f"{key}=[{inner}]"
    known = _existing(inner) if kind == "list" else []
    if not known and (_parsed(override) is not None or re.search(r"[\[\]{}]", inner)):
        return override
    pieces = known or [piece.strip() for piece in inner.split(",")]
    changed = f"{key}=[{','.join(_piece(key, piece, literal=bool(known)) for piece in pieces)}]"
    return changed if _parsed(changed) else override  # else Hydra says where its grammar ends


def _is_as_typed(value: str, parsed: Override | None, kind: str, multirun: bool) -> bool:
    """Whether Hydra parses a value as it was meant."""
    if parsed is None:
        return False
    if parsed.is_sweep_override():
        if multirun:
            return not _exists(value) and not (kind == "path" and _existing(value))
        return kind != "path" and not _exists(value)  # Hydra says that it needs --multirun
    if kind != "path":
        return True
    read = parsed.value()
    if read is None or _in_quotes(value):
        return True
    # Users who know Hydra may have escaped what its grammar rejects with a backslash.
    return isinstance(read, str) and (read == value or (_exists(read) and not _exists(value)))


def _piece(key: str, piece: str, *, literal: bool) -> str:
    """One of several values between commas."""
    parsed = None if _in_quotes(piece) else _parsed(f"{key}={piece}")
    plain = parsed is not None and not parsed.is_sweep_override()
    return piece if _in_quotes(piece) or piece == "null" or (plain and not literal) else quoted(piece)


def _in_quotes(value: str) -> bool:
    return re.fullmatch(r"""(["']).*\1""", value, re.DOTALL) is not None


def _existing(text: str) -> list[str]:
    """The files and folders that a text with commas names, each as short as possible; empty where it names others."""
    parts = text.split(",")
    for count in range(1, len(parts) + 1):
        first, rest = ",".join(parts[:count]).lstrip(), parts[count:]
        if _exists(first):
            others = _existing(",".join(rest)) if rest else []
            if others or not rest:
                return [first, *others]
    return []


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path.removeprefix("file://")))


def _parsed(override: str) -> Override | None:
    """What Hydra's grammar makes of an override; None where it refuses it."""
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None
