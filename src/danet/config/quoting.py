"""Texts as Hydra's grammar and as a shell take them."""

import json
import re
import shlex
from typing import Any


def quoted(text: str) -> str:
    """A text in quotes, as Hydra's grammar takes any."""
    # In quotes a backslash is itself, but before a quote, where it must be doubled.
    return "'" + re.sub(r"(\\*)('|$)", lambda match: 2 * match[1] + ("\\'" if match[2] else ""), text) + "'"


def unquoted(value: str) -> str:
    """The reverse of `quoted`, for double quotes, too; a value without quotes stays as it is."""
    if not re.fullmatch(r"""(["']).*\1""", value, re.DOTALL):
        return value
    return re.sub(rf"(\\*)({value[0]}|$)", lambda match: match[1][: len(match[1]) // 2] + match[2], value[1:-1])


def shell_word(argument: str) -> str:
    """An argument as a shell takes it, for commands that people copy; square brackets stay as they are."""
    return argument if re.fullmatch(r"[\w@%+=:,./\[\]-]*", argument) else shlex.quote(argument)


def hydra_text(value: Any) -> str:
    """A plain value as Hydra's grammar takes it: as JSON, except text, in which no interpolation is resolved."""
    if isinstance(value, str):
        return quoted(value.replace("${", "\\${"))
    if isinstance(value, list):
        return f"[{','.join(map(hydra_text, value))}]"
    if isinstance(value, dict):
        keys = {key: re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", str(key)) for key in value}  # no quotes are allowed there
        return "{" + ",".join(f"{keys[key]}:{hydra_text(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)
