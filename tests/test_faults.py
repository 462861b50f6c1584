"""Faults that happen to real processes: what is on the screen and on the disk afterwards.

docs/reliability.md lists what each fault must not do; other modules have faults, too, under the mark of the same name.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image

from conftest import TINY, environment, train_command
from danet.config import REPOSITORY
from danet.datasets.camvid import CamVid
from danet.services.failures import BUSY
from danet.services.signals import EXIT_CODE

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, mounts folders"),
]


def script(name: str, *overrides: str) -> list[str]:
    return [sys.executable, str(REPOSITORY / "src" / f"{name}.py"), *overrides]


class Script:
    """A script in a session of its own, as a terminal's or a scheduler's job is.

    Args:
        command: its command line.
        outputs: takes the place of outputs/; what it prints goes to a file beside it.
    """

    started: ClassVar[list[subprocess.Popen[bytes]]] = []

    def __init__(self, command: list[str], outputs: Path, **options: object) -> None:
        self._printed = outputs.parent / f"printed_{time.monotonic_ns()}"
        with self._printed.open("w") as file:
            self.process = subprocess.Popen(
                command,
                env=environment(outputs),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=outputs.parent,
                **options,  # type: ignore[call-overload]
            )

        self.started.append(self.process)

    @property
    def text(self) -> str:
        return self._printed.read_text(errors="replace")

    def wait_for(self, is_there: Callable[[], object]) -> None:
        while not is_there():
            assert self.process.poll() is None, self.text
            time.sleep(0.02)

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        (os.killpg if group else os.kill)(self.process.pid, number)

    def end(self, code: int, seconds: float = 180) -> str:
        assert self.process.wait(seconds) == code, self.text
        assert "Traceback" not in self.text, self.text
        return self.text


def heeds(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


@pytest.fixture(autouse=True)
def _nothing_goes_on() -> Iterator[None]:
    yield
    while Script.started:
        process = Script.started.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def camvid(tmp_path: Path) -> list[str]:
    """A small data set on the disk, and a run of a few steps on it."""
    CamVid.tiny(tmp_path / "camvid")
    own = [f"dataset.root={tmp_path / 'camvid'}", "train.batch_size=2"]
    return ["dataset=camvid", *(o for o in TINY if not o.startswith(("dataset.", "train.batch_size"))), *own]


# ---- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "group", "delay"),
    [
        pytest.param(signal.SIGTERM, False, 0, id="SIGTERM"),
        pytest.param(signal.SIGINT, True, 0.2, id="Ctrl-C"),
        *(pytest.param(signal.SIGTERM, False, delay, id=f"{delay} s", marks=pytest.mark.slow) for delay in (1, 2, 3)),
        *(pytest.param(n, True, 4, id=n.name, marks=pytest.mark.slow) for n in (signal.SIGHUP, signal.SIGUSR1)),
    ],
)
def test_a_signal_during_the_start_ends_it_at_once(outputs: Path, number, group, delay) -> None:
    started = Script(train_command(*TINY, "train.steps=100000"), outputs)
    started.wait_for(lambda: heeds(started.process.pid, signal.SIGTERM))
    time.sleep(delay)
    started.signal(number, group=group)
    text = started.end(EXIT_CODE, 20)
    assert f"{number.name} received: stop" in text or "everything is saved" in text
    assert not outputs.exists() or "everything is saved" in text


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_signal_during_the_data_check_ends_it_though_the_disk_hangs(outputs: Path, camvid, devices: int) -> None:
    """A pipe without a writer stands for a network disk that does not answer."""
    image = outputs.parent / "camvid" / "train_images" / "train1.png"
    image.unlink()
    os.mkfifo(image)
    started = Script(train_command(*camvid, f"runtime.devices={devices}"), outputs)
    started.wait_for(lambda: "run folder" in started.text)
    time.sleep(1)
    started.signal(signal.SIGTERM)
    text = started.end(EXIT_CODE, 30)
    assert text.splitlines()[-1] == "SIGTERM received: stopped; nothing was there to save"
    assert files(outputs) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "group"), [(signal.SIGTERM, False), (signal.SIGINT, True)], ids=["SIGTERM", "Ctrl-C"]
)
def test_a_signal_ends_an_evaluation_and_nothing_is_left(outputs: Path, trained: Path, number, group) -> None:
    started = Script(script("evaluate", f"run={trained}", "dataset.val_images=100000"), outputs)
    started.wait_for(lambda: list(trained.glob("evaluations/.*")))
    before = files(trained)
    started.signal(number, group=group)
    assert "received: stopped" in started.end(EXIT_CODE, 20)
    assert not list(trained.glob("evaluations/*"))
    assert [name for name in files(trained) if name not in before] == []


def test_a_signal_whose_exception_is_lost_comes_again(tmp_path: Path) -> None:
    """Python drops what is raised in a destructor."""
    program = f"""
import sys, time
sys.path.insert(0, {str(REPOSITORY / "src")!r})
from danet.services import signals
signals.INSIST = 0.2
signals.end_at_signals()
class Slow:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(60)
with signals.ending_in_order():
    Slow()
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    process.terminate()
    assert process.wait(20) == EXIT_CODE
    process.stdout.close()


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("trained") / "outputs"
    Script(train_command(*TINY, "train.steps=2", "train.eval_every=2"), outputs).end(0)
    (file,) = outputs.rglob("config.yaml")
    return file.parent


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path) -> Path:
    """A copy of a run of two steps."""
    shutil.copytree(trained_once, tmp_path / "run")
    return tmp_path / "run"


# ---- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_labels_swapped_before_a_resume_are_noticed(outputs: Path, camvid) -> None:
    labels = sorted((outputs.parent / "camvid" / "train_labels").iterdir())
    for label in labels:
        Image.open(label).save(label, compress_level=0)
    one, other = (label.read_bytes() for label in labels)
    assert len(one) == len(other)
    started = Script(train_command(*camvid, "train.steps=100000"), outputs)
    started.wait_for(lambda: list(outputs.rglob("step_*.json")))
    started.signal(signal.SIGTERM)
    started.end(EXIT_CODE)
    (folder,) = (file.parent for file in outputs.rglob("config.yaml"))
    for label, content in zip(labels, (other, one), strict=True):
        label.write_bytes(content)
    text = Script(train_command(f"resume={folder}"), outputs).end(1)
    assert "the data has changed since this run began" in text
    assert "train: content" in text
    assert "fingerprint" not in text


# ---- two processes ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_start_of_a_sweep_or_run_is_told_that_it_is_busy(outputs: Path) -> None:
    sweep = train_command("-m", *TINY, "train.steps=100000", "train.save_every=10", "seed=0,1")
    first = Script(sweep, outputs)
    first.wait_for(lambda: list(outputs.rglob("step_*.json")))
    (cell,) = (file.parent for file in outputs.rglob("config.yaml"))

    def names() -> list[str]:
        return [name for name in files(outputs) if "/checkpoints/" not in name]

    before = names()
    text = Script(sweep, outputs).end(BUSY)
    assert text.splitlines()[-1].startswith(f"busy: {cell.parent.parent}: another process is running this sweep")
    for devices in (1, 2):
        text = Script(train_command(f"resume={cell}", f"runtime.devices={devices}"), outputs).end(BUSY)
        assert f"{cell}: another process is still writing this run" in text.splitlines()[-1]
    assert names() == before
    first.signal(signal.SIGTERM)
    first.end(EXIT_CODE)
