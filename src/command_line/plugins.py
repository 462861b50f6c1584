"""The launchers and sweepers that Hydra finds, so that a misspelled one is told with the nearest."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

import danet.config
from danet.registry import did_you_mean

# Launchers that are packages of their own.
INSTALLED_BY = {
    ("hydra/launcher", "ray"): "pip install 'danet[ray]'",
    ("hydra/launcher", "joblib"): "pip install 'danet[launchers]'",
    ("hydra/launcher", "submitit_slurm"): "pip install 'danet[launchers]'",
    ("hydra/launcher", "submitit_local"): "pip install 'danet[launchers]'",
}


def plugin_problems(overrides: Sequence[str], folders: Sequence[Path] | None, own_primary: str | None) -> list[str]:
    """A line for each launcher and sweeper that there is not, and for each key that the chosen one does not have."""
    given = dict(override.partition("=")[::2] for override in overrides)
    lines: list[str] = []
    for group, default in (("hydra/launcher", "basic"), ("hydra/sweeper", "variants")):
        section = group.replace("/", ".")
        keys = [key for key in given if key.startswith(f"{section}.")]
        if folders is None or not (group in given or keys):
            continue
        plugins = _plugins(group, folders)
        chosen = given.get(group, "" if own_primary or folders else default)  # a user's recipe may choose one
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
