"""Paths as Hydra's grammar takes them, which refuses or changes most characters without quotes."""

import os
import re
from collections.abc import Collection, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from danet.config import quoted


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
        if key in paths and not (key in lists and value.startswith("[") and not exists(value)):
            return "path"
        return "list" if key in (*lists, "hydra.searchpath") else ""

    return [_quoted(override, kind(override), multirun) for override in overrides]


def places_in(override: str) -> list[str]:
    """The places in an override whose value is a list; one that is empty where Hydra reads no list."""
    parsed = _parsed(_quoted(override, "list", multirun=False))
    read = parsed.value() if parsed else None
    return [str(place) for place in read] if isinstance(read, list) else [""]


def _quoted(override: str, kind: str, multirun: bool) -> str:
    key, equals, value = override.partition("=")
    if not (equals and value) or key.startswith("~"):
        return override
    if kind == "list" and value != "null" and (value[0] not in "['\"" or exists(value)):
        return _quoted_list(key, value, kind)  # a single one
    if kind != "path" and value.startswith("[") and value.endswith("]") and not exists(value):
        return _quoted_list(key, value[1:-1], kind)
    parsed = _parsed(override)
    if _is_as_typed(value, parsed, kind, multirun) or (kind != "path" and parsed is None and value[0] in "[{"):
        return override
    pieces = [value]
    if multirun and not exists(value):
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
            return not exists(value) and not (kind == "path" and _existing(value))
        return kind != "path" and not exists(value)  # Hydra says that it needs --multirun
    if kind != "path":
        return True
    read = parsed.value()
    if read is None or _in_quotes(value):
        return True
    # Users who know Hydra may have escaped what its grammar rejects with a backslash.
    return isinstance(read, str) and (read == value or (exists(read) and not exists(value)))


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
        if exists(first):
            others = _existing(",".join(rest)) if rest else []
            if others or not rest:
                return [first, *others]
    return []


def exists(path: str) -> bool:
    """Whether there is such a file or folder, which may begin with ~ or file://."""
    return os.path.exists(os.path.expanduser(path.removeprefix("file://")))


def _parsed(override: str) -> Override | None:
    """What Hydra's grammar makes of an override; None where it refuses it."""
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None
