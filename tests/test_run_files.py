import csv
import errno
import json
import math
import os
import shutil
import subprocess
import sys

import pytest

from danet.services.atomic_files import naming, replacing, temporary_name, write_json, write_text
from danet.services.failures import in_words
from danet.services.metrics_file import MetricsFile
from danet.services.provenance import code_version, environment
from danet.services.tables import write_history, write_per_class


def test_metrics_are_valid_json_and_come_back(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.append({"step": 1, "train/loss": 0.1 + 0.2, "val/iou/Sky": math.nan})
    metrics.append({"step": 2, "train/loss": math.inf})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    lines = metrics.path.read_text().splitlines()
    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    assert rows == [
        {"step": 1, "train/loss": 0.1 + 0.2, "val/iou/Sky": None},
        {"step": 2, "train/loss": None},
    ]
    assert metrics.rows() == rows


def test_rows_ends_at_a_torn_line_wherever_it_was_torn(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    assert metrics.rows() == []
    metrics.append({"step": 1, "x": 1.5})
    whole = metrics.path.read_bytes()
    metrics.append({"step": 2, "x": 2.5})
    both = metrics.path.read_bytes()
    for size in range(len(whole), len(both)):
        metrics.path.write_bytes(both[:size])
        assert [row["step"] for row in metrics.rows()] == [1]
    metrics.path.write_text("oops\n" + both.decode())
    with pytest.raises(ValueError, match="line 1"):
        metrics.rows()


def test_truncate_lets_a_resumed_run_continue_as_if_never_killed(tmp_path):
    unbroken = MetricsFile(tmp_path / "a.jsonl")
    for step in range(10):
        unbroken.append({"step": step, "train/loss": 1 / (step + 3)})
    killed = MetricsFile(tmp_path / "b.jsonl")
    for step in range(7):
        killed.append({"step": step, "train/loss": 1 / (step + 3)})
    with killed.path.open("a") as file:
        file.write('{"step": 7, "tra')
    killed.truncate(4, evaluated=0, score="val/miou")
    for step in range(5, 10):
        killed.append({"step": step, "train/loss": 1 / (step + 3)})
    assert killed.path.read_bytes() == unbroken.path.read_bytes()


ROWS = [
    {"epoch": 0.5, "step": 5, "train/loss": 4.0, "train/loss/pam": 1.0, "train/lr/head": 0.1},
    {"epoch": 1, "step": 10, "train/loss": 2.0, "train/loss/pam": 3.0, "train/lr/head": 0.05},
    {"epoch": 1, "step": 10, "val/miou": 0.5, "val/pixel_accuracy": 0.75, "val/iou/Sky": 0.9},
    {"epoch": 2, "step": 20, "train/loss": None, "train/lr/head": 0.0, "perf/elapsed_seconds": 60.0},
    {"epoch": 2, "step": 20, "val/miou": None, "val/pixel_accuracy": 0.8},
]


def test_history_has_a_line_per_evaluation(tmp_path):
    write_history(ROWS, tmp_path)
    with (tmp_path / "history.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines == [
        {
            "epoch": "1",
            "step": "10",
            "train/loss": "3.0",  # the mean of 4 and 2
            "train/loss/pam": "2.0",
            "val/miou": "0.5",
            "val/pixel_accuracy": "0.75",
            "train/lr/head": "0.05",
            "perf/elapsed_seconds": "",
        },
        {
            "epoch": "2",
            "step": "20",
            "train/loss": "",
            "train/loss/pam": "",
            "val/miou": "",
            "val/pixel_accuracy": "0.8",
            "train/lr/head": "0.0",
            "perf/elapsed_seconds": "60.0",
        },
    ]


def test_history_follows_the_split_that_is_scored(tmp_path):
    rows = [{key.replace("val/", "test/"): value for key, value in row.items()} for row in ROWS]
    write_history(ROWS, tmp_path / "val")
    write_history([*rows, {"step": 30, "val/miou": 0.1}], tmp_path / "test", "test")
    as_val = (tmp_path / "val" / "history.csv").read_text()
    assert (tmp_path / "test" / "history.csv").read_text() == as_val.replace("val/", "test/")


def test_history_as_excel_equals_the_csv(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    write_history(ROWS, tmp_path)
    with (tmp_path / "history.csv").open(newline="") as file:
        expected = [[text or None for text in line] for line in csv.reader(file)]
    sheet = openpyxl.load_workbook(tmp_path / "history.xlsx").active
    lines = [[None if value is None else value for value in line] for line in sheet.iter_rows(values_only=True)]
    assert lines[0] == expected[0]
    for line, texts in zip(lines[1:], expected[1:], strict=True):
        assert line == [None if text is None else float(text) for text in texts]  # numbers, not text


def test_per_class_says_na_for_absent_classes(tmp_path):
    write_per_class(tmp_path / "per_class.csv", ["Sky", "a, b"], [0.5, math.nan], [0.75, math.nan], [12, 0])
    with (tmp_path / "per_class.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["class", "iou", "accuracy", "pixels"],
            ["Sky", "0.500000", "0.750000", "12"],
            ["a, b", "n/a", "n/a", "0"],
        ]


def test_environment_names_commit_and_dirty_flag(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment(tmp_path)["git"] == {"commit": None, "dirty": None}
    git("init", "-q")
    (tmp_path / "a.txt").write_text("a")
    git("add", "a.txt")
    git("commit", "-q", "-m", "a", "--no-verify")
    commit = git("rev-parse", "HEAD").stdout.strip()
    assert environment(tmp_path)["git"] == {"commit": commit, "dirty": False}
    (tmp_path / "a.txt").write_text("b")
    facts = environment(tmp_path)
    assert facts["git"] == {"commit": commit, "dirty": True}
    write_json(tmp_path / "environment.json", facts)
    import torch

    stored = json.loads((tmp_path / "environment.json").read_text())
    assert stored["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]

    monkeypatch.setenv("PATH", "")  # no git at all
    assert environment(tmp_path)["git"] == {"commit": None, "dirty": None}


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_json(path, {"miou": math.nan, "iou": [math.inf, 0.5]})
    assert json.loads(path.read_text()) == {"miou": None, "iou": [None, 0.5]}
    before = path.read_text()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == before


def test_an_error_in_writing_leaves_nothing_half_written(tmp_path):
    (tmp_path / "a.png").write_text("old")
    with pytest.raises(TypeError), replacing(tmp_path / "a.png") as temporary:
        temporary.open("w").write(b"half")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_text() == "old"


def test_the_code_version_is_that_of_what_a_run_uses(tmp_path):
    """A word in a docstring, a comment or an unused new component leaves yesterday's sweep comparable."""
    package = tmp_path / "danet"
    (package / "heads").mkdir(parents=True)
    (package / "training").mkdir()
    files = {
        "training/run.py": '"""A run."""\nfrom danet import loop\n',
        "loop.py": "from danet.heads.common import scale\nSTEPS = 3\n",
        "heads/common.py": "def scale(x):\n    return 2 * x\n",
        "heads/one.py": "from danet.heads import common\nclass One:\n    def __init__(self, *, width: int = 4): ...\n",
    }
    for name, text in files.items():
        (package / name).write_text(text)

    def version() -> str:
        return code_version(package, [package / "heads" / "one.py"])

    first = version()
    (package / "heads" / "two.py").write_text("class Two: ...\n")
    (package / "training" / "run.py").write_text('"""Another word."""\nfrom danet import loop  # a comment\n')
    (package / "heads" / "common.py").write_text('def scale(x):\n    """Twice x."""\n\n    return 2 * x\n')
    assert version() == first
    for name, old, new in (
        ("loop.py", "3", "4"),
        ("heads/common.py", "2 * x", "3 * x"),
        ("heads/one.py", "= 4", "= 8"),
    ):
        text = (package / name).read_text()
        (package / name).write_text(text.replace(old, new))
        assert version() != first, name
        (package / name).write_text(text)
    assert version() == first


# ---- what cannot be written ------------------------------------------------------------------------------------------

FULL = "No space left on device; free some space there, or choose another folder"


def full_disk(monkeypatch, free):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))


def write_half(path, error):
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize(
    ("error", "free", "number"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 0, errno.ENOSPC),  # as write() raises it, without a name
        (OSError(errno.EROFS, "Read-only file system", "a.png"), 10**9, None),  # of another file
        (OSError("encoder error -2 when writing image file"), 0, errno.ENOSPC),  # Pillow's, on a full disk
        (OSError("encoder error -2 when writing image file"), 10**9, None),  # Pillow's, of anything else
        (RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"), 0, errno.ENOSPC),
        (RuntimeError("shapes differ"), 10**9, None),
        (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), 10**9, errno.ENOSPC),
    ],
)
def test_an_error_in_writing_names_the_file_and_the_remedy(tmp_path, monkeypatch, error, free, number):
    full_disk(monkeypatch, free)
    path = tmp_path / "new" / "photo.png"
    with pytest.raises(type(error) if number is None else OSError) as caught:
        write_half(path, error)
    if number is None:
        assert caught.value is error
    else:
        assert caught.value.errno == number
        assert caught.value.filename == str(path)
        assert caught.value.strerror == FULL
    assert list(path.parent.iterdir()) == [], "nothing half-written is left"


def test_the_temporary_names_are_not_told(tmp_path):
    path = tmp_path / "photo.png"
    with pytest.raises(PermissionError) as caught, replacing(path) as temporary:
        raise PermissionError(errno.EACCES, "Permission denied", str(temporary))
    assert caught.value.filename == str(path)
    part = tmp_path / ".scores.77.part" / "best"
    with pytest.raises(FileNotFoundError) as caught, naming(tmp_path / "scores"):
        (part / "a.csv").write_text("x")
    assert caught.value.filename == str(tmp_path / "scores")


def test_what_killed_processes_left_half_written_is_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    own = temporary_name(tmp_path / "a.png", ".tmp")
    left = [tmp_path / own.name.replace(f"-{os.getpid()}", f"-{dead.pid}"), tmp_path / "b"]
    left[1] = left[0].with_name(left[0].name.replace("a.png", "scores").replace(".tmp", ".part"))
    other = tmp_path / f".a.png.00000000-{dead.pid}.tmp"  # another machine's
    for file in (own, left[0], other):
        file.touch()
    (left[1] / "best").mkdir(parents=True)
    write_text(tmp_path / "a.txt", "x")
    assert sorted(tmp_path.iterdir()) == sorted([own, other, tmp_path / "a.txt"])


def test_a_file_where_a_folder_is_needed_is_told(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(OSError, match="taken") as caught:
        write_text(tmp_path / "taken" / "a.txt", "x")
    assert in_words(caught.value).endswith("it is a file where a folder is needed; choose another folder")
