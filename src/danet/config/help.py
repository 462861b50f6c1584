"""The text of --help: what Hydra composed, each key with the comment of its YAML file."""

import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from danet.config.names import LOADER, Names
from danet.services.places import command

WIDTH = 116
KEYS = "Keys and defaults (key=value; ???: must be given):"


def help_text(shown: str, names: Names) -> str:
    """The text that Hydra shows, with the script's groups before its keys, and a comment behind each key.

    Args:
        shown: header, KEYS, the composed configuration as YAML, then examples, with empty lines between them.
        names: of the script.
    """
    header, found, rest = shown.partition(KEYS)
    composed, _, footer = rest.partition("\n\n\n")
    values = yaml.load(composed, LOADER) if found else None  # noqa: S506
    if not isinstance(values, dict):
        return shown  # by a primary configuration with a help of its own
    groups = [_wrapped(f"  {group:<13} ", ", ".join(sorted(names.options[group]))) for group in sorted(names.options)]
    parts = ["Groups (group=option) and their options:", *groups, ""] if groups else []
    lines = _lines(values, _comments(names, values))
    text = "\n".join([header.strip(), "", *parts, KEYS, *lines, "", footer.strip(), ""])
    return re.sub(r"python src/(\w+)\.py", lambda script: command(script[1]), text)


def _lines(values: Mapping[str, Any], comments: Mapping[str, str], prefix: str = "", indent: int = 2) -> Iterator[str]:
    """A line for each key, or more where the comment is long."""
    for key, value in values.items():
        path, text = f"{prefix}{key}", f"{' ' * indent}{key}:"
        is_section = isinstance(value, dict) and value
        if not is_section:
            text += f" {_plain(value)}"
        comment = comments.get(path, "")
        yield _wrapped(f"{text:<30}  # ", comment) if comment else text
        if is_section:
            yield from _lines(value, comments, f"{path}.", indent + 2)


def _plain(value: Any) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).partition("\n")[0]


def _wrapped(first: str, text: str) -> str:
    """A text behind the beginning of its first line."""
    following = " " * first.rfind("#") + "# " if "#" in first else " " * len(first)
    return textwrap.fill(
        text, WIDTH, initial_indent=first, subsequent_indent=following, break_on_hyphens=False, break_long_words=False
    )


def _comments(names: Names, values: Mapping[str, Any]) -> dict[str, str]:
    """The comments by dotted key: of the options that are chosen, else of any that has the key."""
    comments: dict[str, str] = {}
    for file in names.primaries:
        comments |= _comments_of(file, "")  # the user's own comes last
    for group, prefix in names.packages.items():
        section: Any = values
        for part in prefix.split("."):
            section = section.get(part) if isinstance(section, dict) else None
        options = names.options[group]
        default = options.get(names.defaults.get(group, "default"))
        chosen = options.get(section.get("name", "")) if isinstance(section, dict) else None
        of_chosen = _comments_of(own, prefix) if (own := chosen or default) else {}
        others = [_comments_of(file, prefix) for file in options.values() if prefix]
        of_others = {
            key: text for each in others for key, text in each.items() if key not in (prefix, f"{prefix}.name")
        }
        comments = {**of_others, **of_chosen, **comments}
    return comments


def _comments_of(file: Path, prefix: str) -> dict[str, str]:
    """The comments in a YAML file by dotted key, that at its beginning as its section's."""
    lines = file.read_text(encoding="utf-8").splitlines()
    above: list[tuple[int, str]] = []  # the sections that a line is in, with their indents
    found = {}
    if prefix and lines and lines[0].startswith("# ") and "@package" not in lines[0]:
        found[prefix] = lines[0].removeprefix("# ")
    for line in lines:
        if not (match := re.match(r"( *)([\w.]+):(?:\s|$)(?:.*?\s)??(?:# (.*))?$", line)):
            continue
        indent = len(match[1])
        above = [*(pair for pair in above if pair[0] < indent), (indent, match[2])]
        if match[3]:
            found[".".join([*([prefix] if prefix else []), *(key for _, key in above)])] = match[3]
    return found
