"""What README.md and the pages in docs/ tell people to type is right, and where they point is something."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import command_line

import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from conftest import TINY, environment, load
from danet.config import REPOSITORY, check_arguments

PAGES = {path.relative_to(REPOSITORY).as_posix(): path for path in (REPOSITORY / "docs").glob("*.md")}
PAGES |= {"README.md": REPOSITORY / "README.md"}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
SCRIPT = r"python src/(\w+)\.py\b"
PATHS = ("run", "checkpoint", "input", "in", "out", "sample", "dataset.root")
SLOW = [pytest.mark.slow]
# Shown for what is said of it, Hydra's own, or with parts that are not there.
UNTESTED = (
    "head.aux_los=",
    "--help",
    " --c",
    " -sc ",
    "head=pooled",
    "extensions=",
    "=night",
    "init_from=wandb:",
    "...",
)


def commands(texts: Iterable[str] = TEXTS.values()) -> list[str]:
    """The commands of our scripts: lines of indented blocks, and what stands between backticks."""
    found = set()
    for text in texts:
        joined = re.sub(r"\\\n *", "", text)
        lines = re.findall(rf"^ {{4}}(?:.*\| )?({SCRIPT}.*)$", joined, re.M)
        lines += re.findall(rf"`({SCRIPT}[^`]*)`", joined)
        found |= {re.split(r" +#", line)[0].strip() for line, _ in lines}
    return sorted(command for command in found if not any(word in command for word in UNTESTED))


def script_and_words(command: str) -> tuple[str, list[str]]:
    """`python src/NAME.py WORD ...` -> NAME and the words."""
    _, script, *words = shlex.split(command.removesuffix(" ..."))
    return Path(script).stem, words


def overrides_of(words: Sequence[str]) -> list[str]:
    """What Hydra composes for a command, of a sweep the first run."""
    overrides = [word for word in words if word != "-m" and not word.startswith("hydra")]
    if "-m" in words:  # the first value of each key
        first = r"=(?:tag\(log,)?(?:choice\(|interval\()?([^,\[{]+),.*"
        overrides = [re.sub(first, r"=\1", override) for override in overrides]
    return command_line.quote_paths(overrides, PATHS)


def test_the_commands_name_what_there_is() -> None:
    assert len(commands()) > 60
    for command in commands():
        script, words = script_and_words(command)
        check_arguments([word for word in words if word != "-m"], script, multirun="-m" in words)


OF_README = commands([TEXTS["README.md"]])


@pytest.mark.parametrize("command", [pytest.param(c, marks=() if c in OF_README else SLOW) for c in commands()])
def test_the_commands_compose(command: str) -> None:
    script, words = script_and_words(command)
    if script == "train" and not any(word.startswith("resume=outputs") for word in words):
        load(overrides_of(words))
    else:
        with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
            compose(script, overrides=overrides_of(words))


@pytest.mark.slow
def test_the_commands_of_readme_for_a_run_work(tmp_path: Path) -> None:
    """Those that need nothing but a run of the built-in data and photos, on a tiny one."""

    def run(script: str, *words: str) -> None:
        command = [sys.executable, str(REPOSITORY / "src" / f"{script}.py"), *words]
        environ = environment(tmp_path / "outputs")
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

    run("train", *TINY, "head=danet")
    (tmp_path / "PHOTOS").mkdir()
    Image.new("RGB", (80, 64), "gray").save(tmp_path / "PHOTOS" / "a.png")
    tried = [
        script_and_words(command)
        for command in OF_README
        if "run=latest" in command and not any(word in command for word in ("photo.jpg", "serve", "compare"))
    ]
    assert {script for script, _ in tried} == {"attention", "evaluate", "predict"}
    for script, words in tried:
        run(script, *words)


def test_the_head_that_a_page_adds_trains(tmp_path: Path) -> None:
    """One file and one YAML, word for word, in a copy of the source."""
    for name in ("src", "conf", "experiments"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    blocks = re.findall(r"^(\S+/\S+\.\w+):\n\n```\w+\n(.*?)```", TEXTS["docs/extending.md"], re.M | re.S)
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


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", TEXTS[name]):
        assert (PAGES[name].parent / target).exists(), target


def test_readme_is_short_and_narrow() -> None:
    lines = TEXTS["README.md"].splitlines()
    assert len(lines) <= 130
    assert [line for line in lines if len(line) > 110 and not line.startswith("![")] == []


@pytest.mark.slow
def test_the_website_is_made(tmp_path: Path) -> None:
    """Strictly: a link to nothing fails. The reference has every key of the training script with its comment."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    keys = (tmp_path / "site" / "keys.html").read_text(encoding="utf-8")
    assert "clip the gradients" in keys
    assert "max_grad_norm" in keys
    assert "labels_and_probabilities" in (tmp_path / "site" / "python.html").read_text(encoding="utf-8")
