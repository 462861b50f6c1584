"""Secrets in environment variables, such as WANDB_API_KEY, which belong in no file, log or tracker."""

import os
import re
from collections.abc import Iterable

NAMES = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
SHORTEST = 8  # characters; shorter values, such as "1", may stand anywhere by chance


def held_in(texts: Iterable[str]) -> str | None:
    """The name of a secret variable whose value is part of one of the texts."""
    secret = {name: value for name, value in os.environ.items() if NAMES.search(name) and len(value) >= SHORTEST}
    return next((name for text in texts for name, value in secret.items() if value in text), None)
