"""Hydra 1.3 under Python 3.14: imported by the scripts before Hydra builds its parser.

argparse of Python 3.14 checks each help text when an option is added. Hydra gives --shell-completion an object that
becomes a text only when it is printed, and every script would end with "badly formed help string". Hydra 1.4, not yet
released when this was written, skips the check itself: with it this module is needless.
"""

import argparse
from typing import Any


def check_texts_only() -> None:
    """Let argparse check a help that is text, and no other."""
    check = getattr(argparse.ArgumentParser, "_check_help", None)
    if check is None:  # before Python 3.14
        return

    def check_text(parser: argparse.ArgumentParser, action: Any) -> None:
        if isinstance(action.help, str):
            check(parser, action)

    argparse.ArgumentParser._check_help = check_text  # type: ignore[attr-defined]


check_texts_only()
