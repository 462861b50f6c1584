"""Texts that people wrote."""

import unicodedata


def composed(text: object) -> str:
    """A text with its letters composed (NFC), since files and keyboards write a letter such as ü in two ways."""
    return unicodedata.normalize("NFC", str(text))
