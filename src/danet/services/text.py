"""Texts that people wrote."""

import unicodedata
from collections.abc import Sequence


def composed(text: object) -> str:
    """A text with its letters composed (NFC), since files and keyboards write a letter such as ü in two ways."""
    return unicodedata.normalize("NFC", str(text))


def position(text: str, texts: Sequence[str]) -> int | None:
    """Where a text stands among others, however their letters are composed; None where it does not."""
    return next((index for index, other in enumerate(texts) if composed(other) == composed(text)), None)
