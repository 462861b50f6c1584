"""What README.md tells people to type is right."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import TINY, environment, load
from danet.config import REPOSITORY

README = (REPOSITORY / "README.md").read_text().replace("\\\n", "")
COMMANDS = sorted({line.split("#")[0].strip() for line in re.findall(r"^ {4}(python src/train\.py .*)$", README, re.M)})


UNTESTED = ("resume=", "--help", "head=pooled")  # need a run, are Hydra's own, or a file that the next test adds


@pytest.mark.parametrize("command", [c for c in COMMANDS if not any(word in c for word in UNTESTED)])
def test_the_commands_compose(command: str) -> None:
    overrides = [word for word in shlex.split(command)[2:] if word != "-m" and not word.startswith("hydra")]
    if "-m" in command:  # the first value of each key
        first = r"=(?:tag\(log,)?(?:choice\(|interval\()?([^,\[{]+),.*"
        overrides = [re.sub(first, r"=\1", override) for override in overrides]
    load(overrides)


def test_the_head_that_readme_adds_trains(tmp_path: Path) -> None:
    """One file and one YAML, word for word, in a copy of the source."""
    for name in ("src", "conf", "experiments"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    blocks = re.findall(r"^(\S+/\S+\.\w+):\n\n```\w+\n(.*?)```", README, re.M | re.S)
    assert [Path(path).suffix for path, _ in blocks] == [".py", ".yaml"]
    for path, text in blocks:
        (tmp_path / path).write_text(text)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "src" / "train.py"), "head=pooled", *TINY, "train.steps=6"],
        env={**environment(tmp_path / "outputs"), "PYTHONPATH": str(tmp_path / "src")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "resnet_tiny, pooled" in done.stdout
    assert list((tmp_path / "outputs").rglob("result.json"))


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (REPOSITORY / target).exists(), target
