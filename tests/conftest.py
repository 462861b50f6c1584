"""What several tests share: composing the configuration, and running the scripts as a user does."""

import gc
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

import danet.config
from danet.config import REPOSITORY, RunConfig
from danet.services import curves, figures

# Threads of several test processes would fight over the cores; one each is also what makes sums repeatable.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "offline"
# What the caller's terminal and network say of themselves.
for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
    os.environ.pop(name, None)
for name in [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy")]:
    del os.environ[name]

CAMVID = REPOSITORY.parent / "shared" / "camvid"
needs_camvid = pytest.mark.skipif(not CAMVID.is_dir(), reason=f"{CAMVID} is not there")

# A run of a few seconds.
TINY = [
    "backbone.widths=[8,8,16,32]",
    "dataset.size=64",
    "dataset.train_images=24",
    "dataset.val_images=6",
    "train.batch_size=4",
    "train.steps=12",
    "train.log_every=3",
    "train.eval_every=6",
    "train.save_every=4",
    "train.precision=fp32",  # "auto" would make results depend on the processor
    "runtime.num_workers=0",
    "runtime.device=cpu",
    "evaluate.samples=0",
    "tracking=disabled",
]

# The table of faults and the tests that inject them, which it gives the mark `faults`.
RELIABILITY = REPOSITORY / "docs" / "reliability.md"
FAULTS = set(re.findall(r"`(test_\w+)::(test_\w+)`", RELIABILITY.read_text()))

LONGEST = ["distributed", "run", "resume", "camvid_run", "training_step", "scoring", "export"]


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses by the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark faults. Begin with the modules that take longest, so that two processes end at the same time."""
    for item in items:
        if (item.path.stem, item.name.partition("[")[0]) in FAULTS:
            item.add_marker("faults")
    ranks = {f"test_{name}": rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


def pytest_collection_finish() -> None:
    """Spare the garbage collector what was imported, which it would walk through in every test."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """Names that are not UTF-8 may be logged; xdist cannot send them."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


def load(overrides: Sequence[str] = (), *, probe: bool = False) -> RunConfig:
    """The run configuration that the command line `python src/train.py <overrides>` gives."""
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return danet.config.load(compose("train", overrides=list(overrides)), overrides, probe=probe)


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that takes the place of outputs/ in this process."""
    monkeypatch.setattr(danet.config, "OUTPUTS", tmp_path / "outputs")
    return tmp_path / "outputs"


@pytest.fixture(scope="module")
def without_pictures() -> Iterator[None]:
    """The runs of a module that looks at no picture of them write empty files, as drawing takes half of their time."""

    def plot(*arguments: Any, **_: Any) -> None:
        (path,) = (argument for argument in arguments if isinstance(argument, Path))
        path.touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "plot_curves", plot)
        patch.setattr(figures, "plot_confusion_matrix", plot)
        yield


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser, as Playwright drives it."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


Train = Callable[..., subprocess.CompletedProcess[str]]


def train_command(*overrides: str) -> list[str]:
    """The command line of src/train.py."""
    return [sys.executable, str(REPOSITORY / "src" / "train.py"), *overrides]


def environment(outputs: Path) -> dict[str, str]:
    """Of a script under test: its runs go to `outputs`."""
    return {**os.environ, "DANET_OUTPUTS": str(outputs), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Runs src/train.py in a process of its own, from a folder that is not the repository."""

    def run(*overrides: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            train_command(*overrides),
            cwd=tmp_path,
            env=environment(tmp_path / "outputs"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


def run_folders(outputs: Path) -> list[Path]:
    """All run folders below `outputs`, oldest first."""
    return sorted(path.parent for path in outputs.rglob("config.yaml"))
