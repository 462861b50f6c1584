"""Faults that happen to real processes: what is on the screen and on the disk afterwards.

docs/reliability.md lists what each fault must not do; other modules have faults, too, under the mark of the same name.
"""

import ast
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
import torch
from PIL import Image

from conftest import FAULTS, RELIABILITY, TINY, environment, load, train_command
from danet.config import REPOSITORY
from danet.datasets.camvid import CamVid
from danet.services import checkpoint
from danet.services.atomic_files import temporary_name
from danet.services.failures import BUSY
from danet.services.metrics_file import MetricsFile
from danet.services.signals import EXIT_CODE
from danet.training import run
from test_resume import assert_same_run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, mounts folders")


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
        return [name for name in files(outputs) if "/checkpoints/" not in name and not name.endswith(".tmp")]

    before = names()
    text = Script(sweep, outputs).end(BUSY)
    assert text.splitlines()[-1].startswith(f"busy: {cell.parent.parent}: another process is running this sweep")
    for devices in (1, 2):
        text = Script(train_command(f"resume={cell}", f"runtime.devices={devices}"), outputs).end(BUSY)
        assert f"{cell}: another process is still writing this run" in text.splitlines()[-1]
    assert names() == before
    first.signal(signal.SIGTERM)
    first.end(EXIT_CODE)


# ---- disk and memory -------------------------------------------------------------------------------------------------


def may_mount() -> bool:
    """Whether this process may make a small disk; in a name space of its own, which ends with the command."""
    try:
        command = ["unshare", "-m", "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"]
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def on_small_disk(place: Path, options: str, *commands: list[str]) -> list[str]:
    """A command line of commands with a small disk at `place`, which grows between them; tells of .tmp files there."""
    place.mkdir()
    lines = [f"mount -t tmpfs -o {options} tmpfs {place}"]
    for number, command in enumerate(commands):
        lines += [f"mount -o remount,size=60m {place}"] if number else []
        lines += [f'{shlex.join(command)}; echo "exit $?"', f"find {place} -name '*.tmp'"]
    return ["unshare", "-m", "bash", "-c", "\n".join(lines)]


needs_mount = pytest.mark.skipif(sys.platform != "linux" or not may_mount(), reason="mounting is not allowed here")


@needs_mount
@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "file"),
    [
        ("4k", r"config\.yaml"),
        ("300k", r"checkpoints/step_00000004\.pt"),
        ("700k", r"(metrics\.jsonl|\w+\.png|checkpoints/\w+\.pt|\w+\.csv)"),
    ],
)
def test_a_full_disk_is_told_and_the_run_goes_on_with_room(outputs: Path, size: str, file: str) -> None:
    start = train_command(*TINY, "name=full")
    text = Script(on_small_disk(outputs, f"size={size}", start, [*start, "resume=auto"]), outputs).end(0)
    first, second = text.split("exit 1\n")
    message = rf"OSError: {outputs}/\S*{file}: No space left on device; free some space there, or choose another folder"
    assert re.fullmatch(message, first.splitlines()[-1])
    assert second.splitlines()[-1] == "exit 0", "no .tmp file is left, either"
    assert "Logging error" not in text


@needs_mount
@pytest.mark.slow
def test_outputs_that_are_read_only_are_told(outputs: Path) -> None:
    text = Script(on_small_disk(outputs, "ro", train_command(*TINY)), outputs).end(0)
    assert "cannot be made (Read-only file system). DANET_OUTPUTS=FOLDER in the environment takes another" in text
    assert text.endswith("exit 1\n")


@needs_mount
@pytest.mark.slow
def test_loader_processes_without_shared_memory_are_told(outputs: Path) -> None:
    start = train_command(*TINY, "runtime.num_workers=2")
    command = f"mount -t tmpfs -o size=64k tmpfs /dev/shm && exec {shlex.join(start)}"
    text = Script(["unshare", "-m", "bash", "-c", command], outputs).end(1)
    assert text.splitlines()[-1].startswith(
        "LoadingError: /dev/shm has no room for a batch (0 MiB). In docker give --sh"
    )


@pytest.mark.slow
def test_too_little_memory_is_told_with_the_remedy(outputs: Path, trained: Path) -> None:
    """In training, in an evaluation and for one of several images."""
    large = [*TINY, "dataset.size=1024", "train.batch_size=8"]
    limited = ["bash", "-c", 'ulimit -v 5000000; exec "$@"', "-"]
    text = Script([*limited, *train_command(*large)], outputs).end(1)
    assert re.match(r"ResourceError: out of memory \(.*\); lower train\.batch_size or", text.splitlines()[-1])
    evaluate = script("evaluate", f"run={trained}", "dataset.size=8192", "runtime.num_workers=0")
    text = Script([*limited, *evaluate], outputs).end(1)
    assert text.splitlines()[-1].startswith(("ResourceError: out of memory (", "LoadingError: "))
    assert not list(trained.glob("evaluations/.*"))
    images = outputs.parent / "images"
    images.mkdir()
    for name, size in (("a.png", (64, 64)), ("b.png", (12000, 9000)), ("c.png", (64, 64))):
        Image.new("RGB", size).save(images / name)
    predict = script("predict", f"run={trained}", f"input={images}", f"output={outputs}", "write=[labels]")
    text = Script([*limited, *predict], outputs).end(1)
    assert re.search(
        r"not done:\n  .*/b\.png: (9000x12000 is too large for the device; try|needs more memory than)", text
    )
    assert files(outputs) == ["a_labels.png", "c_labels.png", "classes.json"]


@pytest.mark.slow
def test_what_a_killed_prediction_left_half_written_is_removed(outputs: Path, trained: Path) -> None:
    images = outputs.parent / "images"
    images.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64)).save(images / f"{number}.png")
    command = script("predict", f"run={trained}", f"input={images}", f"output={outputs}", "write=[labels]")
    killed = Script(["sleep", "60"], outputs)
    killed.process.kill()
    killed.process.wait()
    mark = temporary_name(outputs / "1_labels.png", ".tmp").name.replace(f"-{os.getpid()}.", f"-{killed.process.pid}.")
    outputs.mkdir()
    (outputs / mark).write_bytes(b"half")
    Script(command, outputs).end(0)
    assert files(outputs) == ["0_labels.png", "1_labels.png", "2_labels.png", "classes.json"]


# ---- what is received ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_image_that_fails_does_not_end_a_prediction(outputs: Path, trained: Path) -> None:
    images = outputs.parent / "images"
    images.mkdir()
    for name, size in (("a.png", (4097, 31)), ("long.png", (70000, 1)), ("z.png", (1, 1))):
        Image.new("RGB", size).save(images / name)
    (images / "empty.png").touch()
    (images / "text.png").write_text("no image")
    damaged = bytearray((images / "a.png").read_bytes())
    damaged[16] ^= 0x80  # of the width
    (images / "width.png").write_bytes(damaged)
    (images / "\x1b[31mred.png").symlink_to("/etc/passwd")
    text = Script(script("predict", f"run={trained}", f"input={images}", f"output={outputs}"), outputs).end(1)
    assert "2 of 7 done" in text
    undone = text.partition("not done:\n")[2].splitlines()
    assert sorted(Path(line.split(".png: ")[0]).name for line in undone if ".png: " in line)[-4:] == [
        *("empty", "long", "text", "width")
    ]
    assert "/\\x1b[31mred.png: cannot be read" in text
    assert "\x1b" not in text
    assert {f"{name}_overlay.jpg" for name in "az"} <= set(files(outputs))
    assert "long_labels.png" in files(outputs)


@pytest.mark.slow
def test_damaged_files_are_named_together_before_training(outputs: Path, camvid) -> None:
    root = outputs.parent / "camvid"
    label = next(iter(sorted(root.glob("train_labels/*.png"))))
    image = next(iter(sorted(root.glob("valid_images/*.png"))))
    damaged = bytearray(label.read_bytes())
    damaged[16] ^= 0x80  # of the width: its checksum no longer fits
    label.write_bytes(damaged)
    image.write_bytes(image.read_bytes()[:-200])
    own = outputs.parent / "error.txt"  # in the current folder; a sweep's cell has such a file
    own.write_text("mine")
    text = Script(train_command(*camvid), outputs).end(1)
    assert own.read_text() == "mine"
    for file in (label, image):
        assert len(re.findall(rf"{file}: cannot be decoded \(.+\); restore or remove this file", text)) == 1
    assert "panicked" not in text
    assert [name for name in files(outputs) if not name.startswith(".cache")] == []


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


DOORS = {  # "FILE" is the checkpoint, "RUN" a run whose last checkpoint it is
    "resume": ("train", "resume=RUN"),
    "init_from": ("train", *TINY, "init_from=FILE"),
    "pretrained": ("train", *TINY[1:], "backbone=resnet18", "backbone.pretrained=FILE"),
    "pretrained_timm": ("train", *TINY[1:], "backbone=mobilenetv2", "backbone.pretrained=FILE"),
    "evaluate": ("evaluate", "checkpoint=FILE", "dataset=shapes"),
    "evaluate_run": ("evaluate", "run=RUN"),
    "predict": ("predict", "checkpoint=FILE", "input=RUN", "output=OUT"),
    "attention": ("attention", "checkpoint=FILE", "image=[RUN/a.png]", "output=OUT"),
    "export": ("export", "checkpoint=FILE", "out=OUT.onnx"),
    "convert": ("convert", "from=official", "in=FILE", "out=OUT.pt"),
    "convert_danet": ("convert", "from=danet", "to=mmseg", "in=FILE", "out=OUT.pth"),
}


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS)
def test_a_malicious_checkpoint_runs_at_no_door(outputs: Path, trained: Path, door: str) -> None:
    """Its manifest fits. Its code would make a file."""
    marker, folder = outputs.parent / "executed", trained / "checkpoints"
    (last,) = folder.glob("step_*.pt")
    content = {"model": {}, "step": 2, "run": Payload(marker), "config": (trained / "config.yaml").read_text()}
    for file in (last, folder / "best.pt"):
        torch.save(content, file)
        facts = {"size": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        manifest = file.with_suffix(".json")
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **facts}))
    (trained / "result.json").unlink()
    Image.new("RGB", (64, 64)).save(trained / "a.png")
    name, *arguments = DOORS[door]
    places = {"FILE": folder / "best.pt", "RUN": trained, "OUT": outputs.parent / "out"}
    for key, path in places.items():
        arguments = [argument.replace(key, str(path)) for argument in arguments]
    text = Script(script(name, *arguments), outputs).end(1)
    assert not marker.exists()
    assert str(folder) in text
    torch.load(folder / "best.pt", weights_only=False)  # the payload itself works
    assert marker.exists()


@pytest.mark.slow
def test_secrets_are_in_no_file(outputs: Path, trained: Path) -> None:
    """Neither one that a received configuration asks for, nor the user's own."""
    secret = "0123456789abcdef0123456789abcdef01234567"
    config = trained / "config.yaml"
    config.write_text(config.read_text().replace("tags: []", "tags: ['${oc.env:WANDB_API_KEY}']"))
    (trained / "result.json").unlink()
    with_key = ["env", f"WANDB_API_KEY={secret}"]
    resume = train_command(f"resume={trained}", "tracking.mode=offline")
    Script([*with_key, *resume], outputs).end(0)
    own = train_command(*TINY, "tracking=wandb", "tracking.mode=offline", "tracking.tags=['${oc.env:WANDB_API_KEY}']")
    text = Script([*with_key, *own], outputs).end(1)
    assert "tracking.tags.0: has the value of the environment variable WANDB_API_KEY" in text
    text = Script([*with_key, *train_command(*TINY, f"tracking.tags=[{secret}]")], outputs).end(1)
    assert "the command line has the value of the environment variable WANDB_API_KEY" in text
    written = [file for folder in (outputs, trained) for file in folder.rglob("*") if file.is_file()]
    assert len(written) > 10
    assert not [file for file in [*written, *outputs.parent.glob("printed_*")] if secret.encode() in file.read_bytes()]


# ---- saving ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_killed_in_twenty_saves_is_the_run_that_was_not(outputs: Path) -> None:
    """Every kill comes when a temporary file is there."""
    overrides = [*TINY, "train.steps=60", "train.save_every=1", "train.eval_every=60", "runtime.deterministic=true"]
    Script(train_command(*overrides), outputs).end(0)
    (reference,) = (file.parent for file in outputs.rglob("config.yaml"))
    others = outputs.parent / "others"
    command, kills = train_command(*overrides), 0
    while not list(others.rglob("result.json")):
        started = Script(command, others)
        begun, last = time.monotonic(), max(others.rglob("step_*.pt"), default=None)
        while started.process.poll() is None:
            new = max(others.rglob("step_*.pt"), default=None) != last
            if kills < 20 and new and list(others.rglob("checkpoints/*.tmp")):
                started.signal(signal.SIGKILL, group=True)
                kills += 1
                break
            assert time.monotonic() - begun < 120
            time.sleep(0.001)
        assert started.process.wait(60) in (0, -signal.SIGKILL), started.text
        (folder,) = (file.parent for file in others.rglob("config.yaml"))
        command = train_command(f"resume={folder}")
    assert kills == 20
    assert not list(others.rglob("*.tmp"))
    assert_same_run(folder, reference)


@pytest.mark.slow
def test_a_process_that_hangs_is_not_waited_for_forever(outputs: Path) -> None:
    """One of two is stopped; the other saves the last step and says why it ends."""
    never = ["train.steps=100000", "train.eval_every=100000", "train.save_every=100000"]
    command = train_command(*TINY, *never, "runtime.devices=2", "runtime.rank_timeout=0.1")
    started = Script(command, outputs)
    started.wait_for(lambda: metrics(outputs))
    ranks = [p for p in psutil.Process(started.process.pid).children() if "spawn_main" in " ".join(p.cmdline())]
    assert len(ranks) == 2
    ranks[1].suspend()
    text = started.end(1, 120)
    assert "another process of this run has ended, or has not answered for 0.1 minutes (runtime.rank_timeout)" in text
    last = int(re.findall(r"step (\d+) is saved. Resume with", text)[-1])
    assert last >= 3
    (folder,) = (file.parent for file in outputs.rglob("config.yaml"))
    _, alive = psutil.wait_procs(ranks, timeout=30)  # whoever adopts them may take a moment to notice their end
    assert not alive
    assert checkpoint.load_newest(folder / "checkpoints")["step"] == last


POISONED_RANK = '''
"""Cross entropy that is NaN in one step of one process."""

import math
import os

from danet.losses.cross_entropy import CrossEntropy
from danet.registry import LOSSES


@LOSSES.register("poisoned_rank")
class PoisonedRank(CrossEntropy):
    """Its seventh loss of rank 1 is NaN."""

    calls = 0

    def forward(self, logits, label):
        self.calls += 1
        term = super().forward(logits, label)
        bad = self.calls == 7 and os.environ.get("RANK") == "1"
        return term._replace(total=term.total * math.nan) if bad else term
'''


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_loss_that_is_nan_on_one_rank_alone_changes_no_weight_of_any(outputs: Path, policy: str) -> None:
    parts = outputs.parent / "parts"
    (parts / "loss").mkdir(parents=True)
    (parts / "poisoned_rank.py").write_text(POISONED_RANK)
    (parts / "loss" / "poisoned_rank.yaml").write_text("name: poisoned_rank\nweights: {main: 1.0}\n")
    own = [f"extensions={parts}", "loss=poisoned_rank", "head.aux_loss=false", "runtime.devices=2"]
    started = Script(train_command(*TINY, *own, f"train.on_nonfinite={policy}"), outputs)
    text = started.end(1 if policy == "stop" else 0)
    ((_, images),) = re.findall(r"(step 7: loss nan, gradient norm nan; images: )([^.]*)", text)
    assert len(images.split(", ")) == 4  # those of both processes
    (folder,) = (file.parent for file in outputs.rglob("config.yaml"))
    saved = checkpoint.load_newest(folder / "checkpoints")
    assert saved["step"] == (4 if policy == "stop" else 12)
    assert all(value.isfinite().all() for value in saved["model"].values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "group"),
    [pytest.param(signal.SIGTERM, False, id="SIGTERM"), pytest.param(signal.SIGINT, True, id="Ctrl-C")],
)
def test_a_signal_to_a_sweep_saves_all_runs_in_progress_and_begins_no_other(outputs: Path, number, group) -> None:
    never = ["train.steps=100000", "train.eval_every=100000", "train.save_every=100000"]
    command = train_command("-m", *TINY, *never, "seed=0,1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    started = Script(command, outputs)
    started.wait_for(lambda: sum(file.stat().st_size > 0 for file in outputs.rglob("metrics.jsonl")) == 2)
    processes = psutil.Process(started.process.pid).children(recursive=True)
    started.signal(number, group=group)
    text = started.end(EXIT_CODE, 60)
    assert text.splitlines()[-1] == f"{number.name} received: the runs have saved and stopped; the same command goes on"
    folders = sorted(file.parent for file in outputs.rglob("config.yaml"))
    assert [folder.name for folder in folders] == ["seed0", "seed1"]
    assert all(checkpoint.load_newest(folder / "checkpoints")["step"] >= 3 for folder in folders)
    assert not list(outputs.rglob("error.txt"))
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive


@pytest.mark.slow
def test_a_cell_that_hangs_holds_no_other_one(outputs: Path, camvid) -> None:
    """The disk of one of three data sets does not answer; a signal ends the sweep, which then runs that cell alone."""
    (first,) = (option for option in camvid if option.startswith("dataset.root="))
    roots = [outputs.parent / name for name in ("camvid", "second", "third")]
    for root in roots[1:]:
        shutil.copytree(roots[0], root)
    image = roots[0] / "train_images" / "train1.png"
    picture = image.read_bytes()
    image.unlink()
    os.mkfifo(image)
    own = [option for option in camvid if option != first]
    command = train_command("-m", *own, "dataset.root=" + ",".join(map(str, roots)), "train.steps=2", "seed=0")
    command += ["sweep.name=try", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    started = Script(command, outputs)
    started.wait_for(lambda: len([*outputs.rglob("result.json")]) == 2)
    time.sleep(1)
    started.signal(signal.SIGTERM)
    started.end(EXIT_CODE, 60)
    done = {file: file.stat().st_mtime_ns for file in outputs.rglob("result.json")}
    image.unlink()
    image.write_bytes(picture)
    text = Script(command, outputs).end(0)
    assert "1 of 3 runs to do" in text
    assert len([*outputs.rglob("result.json")]) == 3
    assert all(file.stat().st_mtime_ns == then for file, then in done.items())


@pytest.mark.slow
def test_three_thousand_steps_take_no_more_memory_than_one_thousand(outputs: Path) -> None:
    started = Script(
        train_command(*TINY, "train.steps=100000", "train.eval_every=500", "train.save_every=500"), outputs
    )
    used = []
    for step in (1000, 3000):
        started.wait_for(lambda step=step: f'"step": {step - step % 3},' in metrics(outputs))
        process = psutil.Process(started.process.pid)
        used.append((process.memory_info().rss, process.num_fds(), process.num_threads()))
    started.signal(signal.SIGTERM)
    started.end(EXIT_CODE)
    assert used[1][0] < 1.1 * used[0][0]  # a single batch kept at each step would be a third more
    assert used[1][1] <= used[0][1] + 2
    assert used[1][2] <= used[0][2] + 2


def metrics(outputs: Path) -> str:
    return "".join(file.read_text() for file in outputs.rglob("metrics.jsonl"))


@pytest.mark.usefixtures("without_pictures")
def test_a_clock_that_goes_back_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("danet.config.OUTPUTS", tmp_path)
    monkeypatch.setattr(time, "time", itertools.count(2e9, -3600).__next__)
    outcome = run.start(load(TINY))
    assert outcome.finished
    seconds = [row["seconds"] for row in MetricsFile(outcome.folder / "metrics.jsonl").rows()]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


# ---- the table -------------------------------------------------------------------------------------------------------


def test_the_table_of_faults_names_the_tests_there_are() -> None:
    """The mark `faults` comes from that table; see conftest.py."""
    there = {
        (file.stem, node.name)
        for file in Path(__file__).parent.glob("test_*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert FAULTS - there == set()
    own = {test for test in there if test[0] == Path(__file__).stem}
    assert {name for _, name in own - FAULTS} == {"test_the_table_of_faults_names_the_tests_there_are"}
    table = RELIABILITY.read_text().partition("## Faults")[2]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 32
    assert [row for row in rows if "::" not in row] == []
