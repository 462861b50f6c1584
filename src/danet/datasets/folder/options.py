"""What is wrong with the options of a folder before any file is looked for."""

import re
from collections.abc import Mapping
from typing import Any

from danet.datasets.folder.listing import template

FOLD = re.compile(r"(\d+)/(\d+)")


def fold_of(text: str | None) -> tuple[int, int] | None:
    """The fold k and their number n of "k/n"."""
    parts = FOLD.fullmatch(text or "")
    return (int(parts[1]), int(parts[2])) if parts else None


def option_problems(options: Mapping[str, Any]) -> list[str]:
    """A line for each problem.

    Args:
        options: of ImageFolder.
    """
    lines = []
    for key in ("images", "labels"):
        if options[key]:
            try:
                template(options[key])
            except ValueError as error:
                lines.append(f"{key} = {options[key]!r}: {error}")
    if options["fold"] is not None:
        fold = fold_of(options["fold"])
        if fold is None or fold[0] >= fold[1] or fold[1] < 2:
            lines.append(f"fold = {options['fold']!r}: must be k/n with k from 0 to n - 1, such as 0/5")
    if options["range"] is not None and not options["range"][0] < options["range"][1]:
        lines.append(f"range = {options['range']}: must be the lower and then the higher value")
    if options["val_fraction"] + options["test_fraction"] >= 1:
        lines.append(f"test_fraction = {options['test_fraction']}: with val_fraction it leaves nothing to train on")
    if options["group"] not in (None, "folder"):
        try:
            re.compile(options["group"])
        except re.error as error:
            lines.append(f"group = {options['group']!r}: neither 'folder' nor a regular expression ({error})")
    return lines
