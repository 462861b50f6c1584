"""Which Pythons the project takes: what make says of others, and what Python 3.14 needs."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import REPOSITORY
from danet.config import argparse_help
from test_layering import SOURCE, imports

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(folder: Path, *arguments: str, first: str = "pass", path: str | None = None) -> list[str]:
    """The lines of `make` in a folder without .venv, where `python3` runs the statement `first` before other code."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, folder)
    python = folder / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} -c "{first}\n$2"\necho "$@"\nexit 3\n')
    python.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment = kept | {"PATH": path or f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    command = [shutil.which("make") or "make", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 2
    assert not (folder / ".venv").exists()
    return done.stdout.splitlines()


@needs_make
@pytest.mark.parametrize(
    ("version", "target"), [("(3, 10, 12)", "train"), ("(3, 15, 0)", "test"), ("(2, 7, 18)", "setup")]
)
def test_make_names_a_python_that_is_too_old_or_too_new_first(version: str, target: str, tmp_path: Path) -> None:
    found = ".".join(version.strip("()").split(", ")[:2])
    first, *_ = make(tmp_path, target, first=f"import sys; sys.version_info = {version}")
    assert first == f"python3 is Python {found}; this needs 3.11 to 3.14. Name another: make {target} PYTHON=python3.12"


@needs_make
@pytest.mark.parametrize("version", ["(3, 11, 0)", "(3, 14, 2)"])
def test_make_goes_on_with_a_python_that_fits(version: str, tmp_path: Path) -> None:
    first, second, *_ = make(tmp_path, "train", first=f"import sys; sys.version_info = {version}")
    assert (first, second) == ("python3 -m venv .venv", "-m venv .venv")


@needs_make
def test_make_names_what_is_missing_first(tmp_path: Path) -> None:
    """Debian has ensurepip, without which there is no .venv, in a package of its own."""
    first, *_ = make(tmp_path, "test", first="import sys; sys.modules['ensurepip'] = None")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert first == f"python3 cannot make environments. On Debian and Ubuntu: apt install python{version}-venv"


@needs_make
def test_make_says_first_that_there_is_no_python(tmp_path: Path) -> None:
    first, *_ = make(tmp_path, "train", "PYTHON=python3.99")
    assert first.startswith("python3.99 not found. Install Python 3.11 to 3.14, or name one: make train PYTHON=")


def test_makefile_and_package_name_the_same_pythons() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.15"
    assert "(3, 11) <= sys.version_info[:2] <= (3, 14)" in (REPOSITORY / "Makefile").read_text()
    assert re.search(r"Python 3\.11 to 3\.14", (REPOSITORY / "README.md").read_text())


def test_a_help_that_is_no_text_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by Python 3.14, whose check fails for Hydra's."""
    checked = []

    def check(parser: argparse.ArgumentParser, action: argparse.Action) -> None:
        assert "%" not in str.__str__(action.help)  # type: ignore[arg-type]
        checked.append(action.help)

    monkeypatch.setattr(argparse.ArgumentParser, "_check_help", check, raising=False)
    argparse_help.check_texts_only()
    parser: Any = argparse.ArgumentParser(add_help=False)  # its own option would be checked, too
    parser._check_help(SimpleNamespace(help=object()))
    parser._check_help(SimpleNamespace(help="text"))
    assert checked == ["text"]
    with pytest.raises(AssertionError):
        parser._check_help(SimpleNamespace(help="100 %"))


def test_the_scripts_and_nothing_else_change_argparse() -> None:
    start = SOURCE / "command_line" / "__init__.py"
    assert [path for path in SOURCE.rglob("*.py") if "danet.config.argparse_help" in imports(path)] == [start]
    scripts = set(SOURCE.glob("*.py"))
    assert len(scripts) == 12
    assert {path for path in SOURCE.rglob("*.py") if "command_line" in imports(path)} == scripts
