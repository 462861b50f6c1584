import io
import json
import logging
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from conftest import load
from danet.config import REPOSITORY
from danet.datasets.shapes import Shapes
from danet.services import tracking
from danet.services.nonfinite import NonFiniteError
from danet.services.tracking import addresses, artifacts, connection
from danet.services.tracking.common import ScoredImage
from danet.services.tracking.wandb_mirror import WandbMirror
from danet.training.display import Display

NAMES = ["name", "Road"]  # a class may be named as a column is
WANDB_VARIABLES = [name for name in os.environ if name.startswith("WANDB_")] + ["NETRC"]


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for name in WANDB_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(logging.getLogger("danet"), "propagate", True)  # caplog listens at the root
    yield
    import wandb

    wandb.teardown()


def mirror(folder, **changes):
    options = {"mode": "auto", "project": "danet", "folder": folder, "config": {}, "finish_timeout": 10.0}
    return WandbMirror(**(options | changes))


def read_records(path):
    """The records of a .wandb file: 7 bytes of header, then 32 KiB blocks of checked fragments, as LevelDB's log."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # waits until wandb's process has written everything
    data = path.read_bytes()
    assert struct.unpack("<4sHB", data[:7]) == (b":W&B", 0xBEE1, 0)
    position, record = 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # no room for a fragment: padding up to the next block
            position += 32768 - position % 32768
            continue
        checksum, length, kind = struct.unpack("<IHB", data[position : position + 7])
        fragment = data[position + 7 : position + 7 + length]
        assert zlib.crc32(fragment, zlib.crc32(bytes([kind]))) == checksum
        position += 7 + length
        record += fragment
        if kind in (1, 4):  # a full record, or the last fragment of one; 2 and 3 are first and middle
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def items(updates):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}


def only(folder, pattern):
    (path,) = folder.glob(pattern)
    return path


def history(path):
    return [items(record.history.item) for record in read_records(path) if record.HasField("history")]


def test_an_offline_run_can_be_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)  # nobody to ask
    run = mirror(
        tmp_path / "run",
        name="job",
        group="sweep",
        tags=["a", "b"],
        config={"seed": 0, "head": {"name": "danet"}},
    )
    for step in range(0, 3000, 3):  # more than one block of the file
        run.log({"train/loss/main": 1 / (step + 1), "train/lr/head": 0.01}, step)
    run.log({"val/miou": 0.5, "val/iou/Sky": float("nan")}, 1000)
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    label = np.array([[0, 1, 255]], np.uint8).repeat(20, 0).repeat(10, 1)
    scored = ScoredImage("frame", image, label, label % 2, [0.5, math.nan], 0.5, 200)
    run.log_images([scored], NAMES, 1000)
    run.log_images([scored], NAMES, 2000)
    Image.fromarray(image).save(tmp_path / "matrix.png")
    run.log_confusion_matrix(np.array([[5, 1], [2, 2**40]]), NAMES, tmp_path / "matrix.png", 1000)
    run.log({"val/miou": 0.75}, 2000)
    (tmp_path / "best.pt").write_bytes(b"weights")
    run.log_checkpoint(tmp_path / "best.pt", ["best"], {"miou": 0.75})
    run.set_summary({"best/miou": 0.75})
    run.finish(0)

    path = only(tmp_path, f"run/wandb/offline-run-*/run-{run.run_id}.wandb")
    records = list(read_records(path))
    rows = [items(record.history.item) for record in records if record.HasField("history")]
    assert [(row["step"], row["val/miou"]) for row in rows if "val/miou" in row] == [(1000, 0.5), (2000, 0.75)]
    losses = {row["step"]: row["train/loss/main"] for row in rows if "train/loss/main" in row}
    assert losses == {step: 1 / (step + 1) for step in range(0, 3000, 3)}
    (started,) = [record.run for record in records if record.HasField("run")]
    assert (started.project, started.display_name, started.run_group) == ("danet", "job", "sweep")
    assert list(started.tags) == ["a", "b"]
    config = items(started.config.update)
    assert (config["seed"], config["head"]) == (0, {"name": "danet"})
    summary = {}
    for record in records:
        summary |= items(record.summary.update)
    assert summary["best/miou"] == 0.75
    metrics = [record.metric for record in records if record.HasField("metric")]
    assert any(metric.glob_name == "*" and metric.step_metric == "step" for metric in metrics)
    assert {metric.name for metric in metrics if metric.summary.max} == {"val/miou", "test/miou"}
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]

    files = path.parent / "files/media"
    pictures, _ = [row for row in rows if "val/images/captions" in row]
    assert (pictures["step"], pictures["val/images/captions"]) == (1000, ["frame"])
    (masks,) = pictures["val/images/all_masks"]
    assert list(masks) == ["prediction"]
    mask = np.asarray(Image.open(path.parent / "files" / masks["prediction"]["path"]))
    np.testing.assert_array_equal(mask, label % 2)
    table = json.loads(only(files, "table/val/confusion*.json").read_text())
    assert table["data"] == [["name", 5, 1], ["Road", 2, 2**40]]
    check_truths_and_predictions([record.artifact for record in records if record.HasField("artifact")], label)
    (artifact,) = [record.artifact for record in records if record.artifact.type == "model"]
    assert set(artifact.aliases) == {"best", "latest"}  # until there is a newer version
    assert json.loads(artifact.metadata) == {"miou": 0.75}


def check_truths_and_predictions(artifacts, label):
    """The truths are in one artifact; the two tables of predictions refer to its image and its mask."""
    (truths,) = [artifact for artifact in artifacts if artifact.type == "dataset"]
    stored = {entry.path: entry for entry in truths.manifest.contents}
    (mask,) = [path for path in stored if "/mask/" in path]
    np.testing.assert_array_equal(np.asarray(Image.open(stored[mask].local_path)), label)
    tables = [artifact for artifact in artifacts if "predictions" in artifact.name]
    assert len(tables) == 2
    for artifact in tables:
        entries = {entry.path: entry for entry in artifact.manifest.contents}
        referred = {path: entry.ref for path, entry in entries.items() if entry.ref and path.startswith("media/images")}
        image, truth = sorted(referred, key=lambda path: "/mask/" in path)
        assert referred[truth] == f"wandb-client-artifact://{truths.client_id}/{mask}"
        assert referred[image].rpartition("/media/")[2] in [path.removeprefix("media/") for path in stored]
        table = json.loads(Path(entries["val/predictions.table.json"].local_path).read_text())
        assert table["columns"] == ["name", "truth", "prediction", "mIoU", "error pixels", "name (class)", "Road"]
        (row,) = table["data"]
        assert [row[0], *row[3:]] == ["frame", 0.5, 200, 0.5, None]
        assert row[1]["path"] == row[2]["path"] == image
        assert list(row[2]["masks"]) == ["prediction"]


def test_wandbs_variables_count_where_the_configuration_is_silent(tmp_path, monkeypatch):
    given = {"WANDB_PROJECT": "their-project", "WANDB_ENTITY": "team", "WANDB_NAME": "first", "WANDB_TAGS": "a,b"}
    for name, value in {**given, "WANDB_DIR": str(tmp_path / "disk")}.items():
        monkeypatch.setenv(name, value)
    silent = mirror(tmp_path / "silent", project=None, name="folder")
    silent.finish(0)
    configured = {"project": "mine", "entity": "me", "tags": ["c"], "name": "job", "alone": False}
    mirror(tmp_path / "configured", **configured).finish(0)
    runs = []
    for folder in ("silent", "configured"):
        path = only(tmp_path, f"{folder}/wandb/offline-run-*/*.wandb")
        assert path.resolve().is_relative_to(tmp_path / "disk/wandb")
        (run,) = [record.run for record in read_records(path) if record.HasField("run")]
        runs.append((run.project, run.entity, run.display_name, list(run.tags)))
    assert runs == [("their-project", "team", "first", ["a", "b"]), ("mine", "me", "job", ["c"])]
    assert addresses.group_name(None, "sweep") == "sweep"
    monkeypatch.setenv("WANDB_RUN_GROUP", "grouped")
    assert [addresses.group_name(given, "sweep") for given in (None, "own")] == ["grouped", "own"]
    *_, address = addresses.how_to_open(tmp_path, project=None, entity=None, group="g")
    assert "https://wandb.ai/team/their-project/groups/g" in address


def test_a_resumed_run_keeps_its_id_and_its_steps(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    first = mirror(tmp_path)
    first.log({"val/miou": 0.5}, 10)
    first.finish(1)
    time.sleep(1.1)  # wandb names its folders by the second
    second = mirror(tmp_path, run_id=first.run_id)
    second.log({"val/miou": 0.6}, 20)
    second.finish(0)
    assert second.run_id == first.run_id
    paths = sorted(tmp_path.glob(f"wandb/offline-run-*/run-{first.run_id}.wandb"))
    assert f"`wandb sync {paths[0].parent} {paths[1].parent}` uploads it" in caplog.text
    rows = [history(path) for path in paths]
    assert [[(row["step"], row["val/miou"]) for row in part] for part in rows] == [[(10, 0.5)], [(20, 0.6)]]


@pytest.mark.parametrize(
    "variables", [{"WANDB_RUN_ID": "run00001"}, {"WANDB_RUN_ID": "run00001", "WANDB_SWEEP_ID": "s"}]
)
def test_the_id_to_keep_is_the_runs(tmp_path, monkeypatch, variables):
    """As an agent of wandb sets it; a resume outside of the agent continues the same record."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    run = mirror(tmp_path / "run", mode="offline")
    assert run.run_id == "run00001"
    run.log({"val/miou": 0.5}, 10)
    run.finish(0)
    assert [row["step"] for row in history(only(tmp_path, "run/wandb/offline-run-*/run-run00001.wandb"))] == [10]
    for name in variables:
        monkeypatch.delenv(name)
    again = mirror(tmp_path / "again", mode="offline", run_id=run.run_id)
    again.finish(0)
    assert again.run_id == "run00001"
    only(tmp_path, "again/wandb/offline-run-*/run-run00001.wandb")


def test_an_agents_id_wins_over_a_checkpoints_and_runs_of_a_group_have_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "run00002")
    grouped = mirror(tmp_path / "grouped", mode="offline", group="sweep", alone=False)
    grouped.finish(0)
    assert grouped.run_id != "run00002"
    import wandb

    wandb.teardown()  # it reads the variables when it starts
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    run = mirror(tmp_path / "run", mode="offline", run_id="earlier1")
    run.finish(0)
    assert run.run_id == "run00002"
    only(tmp_path, "run/wandb/offline-run-*/run-run00002.wandb")


def test_a_job_after_a_failed_one_does_not_log_into_its_run(tmp_path):
    failed = mirror(tmp_path / "a")
    failed.log({"val/miou": 0.1}, 1)  # and it never finishes
    logged = threading.Event()
    failed._send(lambda run: logged.set())
    assert logged.wait(10)
    after = mirror(tmp_path / "b")
    after.log({"val/miou": 0.9}, 1)
    after.finish(0)
    assert [row["val/miou"] for row in history(only(tmp_path, "a/wandb/offline-run-*/*.wandb"))] == [0.1]
    assert [row["val/miou"] for row in history(only(tmp_path, "b/wandb/offline-run-*/*.wandb"))] == [0.9]


def test_disabled_does_not_import_wandb(tmp_path):
    code = (
        "import sys; from pathlib import Path; from danet.services.tracking.wandb_mirror import WandbMirror\n"
        f"run = WandbMirror(mode='auto', project='danet', folder=Path({str(tmp_path)!r}), config={{}})\n"
        "run.log({'a': 1.0}, 1); run.finish(0); assert len(run.run_id) == 8\n"
        "assert 'wandb' not in sys.modules"
    )
    source = str(Path(tracking.__file__).parents[3])
    environment = os.environ | {"WANDB_MODE": "disabled", "PYTHONPATH": source}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not (tmp_path / "wandb").exists()


def test_a_sweep_says_how_to_open_its_group(tmp_path, monkeypatch):
    import wandb

    place = {"project": "danet", "entity": None, "group": "my sweep"}
    sweep = tmp_path / "my sweep"
    assert addresses.how_to_open(sweep, **place) == []
    for variant in ("fcn", "pam"):
        mirror(sweep / variant / "seed0", mode="offline", group="my sweep").finish(0)
    wandb.teardown()
    _, command, address = addresses.how_to_open(sweep, **place)
    assert "https://wandb.ai/<your entity>/danet/groups/my%20sweep" in address
    listed = subprocess.run(
        f"{Path(sys.executable).parent}/{command.strip()} --dry-run", shell=True, capture_output=True, text=True
    )
    assert "Would sync 2 run(s)" in listed.stderr + listed.stdout
    for file in sweep.rglob("*.wandb"):
        file.with_name(f"{file.name}.synced").touch()  # as the upload leaves it
    assert addresses.how_to_open(sweep, **place) == []

    offline = wandb.init

    def init(**options):  # a run as a server's answer makes it
        run = offline(**(options | {"mode": "offline"}))
        monkeypatch.setattr(type(run), "url", "https://wandb.ai/me/danet/runs/abc")
        return run

    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(wandb, "init", init)
    mirror(sweep / "cam" / "seed0", mode="online", group="my sweep").finish(0)
    for file in sweep.rglob("*.wandb"):
        file.with_name(f"{file.name}.synced").touch()
    assert addresses.how_to_open(sweep, **place) == ["Weights & Biases: https://wandb.ai/me/danet/groups/my%20sweep"]


def test_auto_is_online_only_with_a_key(tmp_path, monkeypatch):
    import wandb

    modes = []
    monkeypatch.setattr(connection, "require_server", lambda: None)

    def init(**options):
        modes.append(options["mode"])
        raise wandb.errors.CommError("no network")

    monkeypatch.setattr(wandb, "init", init)
    mirror(tmp_path)
    assert modes == ["offline"]
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password " + "a" * 40)
    mirror(tmp_path)
    assert modes == ["offline", "online", "offline"]
    monkeypatch.setenv("WANDB_MODE", "offline")
    mirror(tmp_path)
    assert modes[3:] == ["offline"]
    for given in ("dryrun", "OFFLINE", "unheard"):
        monkeypatch.setenv("WANDB_MODE", given)
        mirror(tmp_path)
        assert modes.pop() == "offline"
    (tmp_path / ".netrc").unlink()
    connection.teardown()  # a process remembers the key
    monkeypatch.delenv("WANDB_MODE")
    mirror(tmp_path, mode="online")  # would open a menu
    assert modes[4:] == ["offline"]


def test_an_unreachable_server_means_offline(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    run = mirror(tmp_path)
    run.log({"val/miou": 0.5}, 3)
    run.finish(0)
    assert "logging offline" in caplog.text
    (row,) = history(only(tmp_path, "wandb/offline-run-*/*.wandb"))
    assert (row["step"], row["val/miou"]) == (3, 0.5)


def test_without_a_server_it_is_not_waited_for(tmp_path, monkeypatch):
    import wandb

    modes = []

    def init(**options):
        modes.append(options["mode"])
        raise wandb.errors.CommError("no run")

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", "http://{}:{}".format(*server.getsockname()))
        mirror(tmp_path).finish()  # waits until it is switched off
    wandb.teardown()  # it reads the variables when it starts
    mirror(tmp_path).finish()
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    mirror(tmp_path).finish()
    assert modes == ["online", "offline", "offline", "online", "offline"]


def test_a_failure_is_one_warning(tmp_path, monkeypatch, caplog):
    import wandb

    def broken(*_, **__):
        raise RuntimeError("out of order")

    run = mirror(tmp_path)
    monkeypatch.setattr(wandb.Run, "log", broken)
    for step in range(1000):
        run.log({"val/miou": 0.5}, step)
    run.finish(0)
    monkeypatch.setattr(wandb, "init", broken)
    run = mirror(tmp_path)
    run.log({"val/miou": 0.5}, 1)
    run.finish(0)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert all("out of order" in text for text in warnings)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc to find wandb's process")
def test_a_hanging_backend_does_not_hold_the_run(tmp_path):
    """wandb's process is stopped: neither the logging, nor the end of the run, nor Python's exit waits for it."""
    code = f"""
import time, os, signal
from pathlib import Path
from danet.services.tracking import wandb_mirror
wandb_mirror.PATIENCE = 0.5
run = wandb_mirror.WandbMirror(
    mode="offline", project="danet", folder=Path({str(tmp_path)!r}), config={{}}, finish_timeout=0.5
)
process, *_ = " ".join(file.read_text() for file in Path("/proc/self/task").glob("*/children")).split()
os.kill(int(process), signal.SIGSTOP)
print(process, flush=True)
start = time.monotonic()
for step in range(1000):
    run.log({{"x" * 1000: 1.0}}, step)
assert time.monotonic() - start < 3
run.finish(0)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(tracking.__file__).parents[3])}
    # wandb's process inherits the output, so a pipe would stay open as long as that process is stopped.
    with (tmp_path / "out").open("w+") as out, (tmp_path / "err").open("w+") as err:
        done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=out, stderr=err, timeout=60)
    shown = (tmp_path / "err").read_text()
    if stopped := (tmp_path / "out").read_text():
        os.kill(int(stopped), signal.SIGKILL)
    assert done.returncode == 0, shown
    assert "switched off" in shown


def test_a_key_that_cannot_be_one_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    assert "WANDB_API_KEY invalid" in (connection.mode_problem("online") or "")
    with pytest.raises(ValueError, match="WANDB_API_KEY invalid"):
        artifacts.download("me/danet/weights:best", tmp_path)
    mirror(tmp_path).finish(0)
    assert "WANDB_API_KEY invalid" in caplog.text
    assert len(history(only(tmp_path, "wandb/offline-run-*/*.wandb"))) == 0


@pytest.mark.parametrize("key", ["", "a" * 40])
def test_who_is_logged_in_is_not_told_to_log_in(tmp_path, monkeypatch, caplog, key):
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    with caplog.at_level(logging.INFO):
        mirror(tmp_path, mode="offline").finish(0)
    (line,) = [text for text in caplog.messages if "wandb sync" in text]
    assert ("after `wandb login`" in line) == (not key)


def test_nothing_is_asked_on_a_terminal(tmp_path):
    pty = pytest.importorskip("pty")
    try:
        ours, theirs = pty.openpty()
    except OSError as error:  # as in a container without /dev/pts
        pytest.skip(f"no terminal can be made: {error}")
    code = (
        "from pathlib import Path; from danet.services.tracking.wandb_mirror import WandbMirror\n"
        f"run = WandbMirror(mode='online', project='danet', folder=Path({str(tmp_path)!r}), config={{}})\n"
        "run.log({'val/miou': 0.5}, 1); run.finish(0)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(tracking.__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdin=theirs, stdout=theirs, stderr=theirs, timeout=60
    )
    shown = os.read(ours, 10000).decode()
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0
    assert [line for line in shown.splitlines() if "no API key" not in line] == []
    assert len(history(only(tmp_path, "wandb/offline-run-*/*.wandb"))) == 1


@pytest.mark.parametrize(("error", "alert"), [(NonFiniteError("loss nan"), "nan"), (OSError("disk"), "crash")])
def test_a_run_that_fails_alerts(tmp_path, monkeypatch, error, alert):
    sent = []
    monkeypatch.setattr(WandbMirror, "alert", lambda self, title, text: sent.append((title, text)))
    place = {"sweep": None, "name": "run", "run_id": None, "step": 0, "total_steps": 1, "best_miou": None}
    for wanted, count in ((alert, 1), ("best", 1)):
        config = load(["tracking.mode=disabled", f"tracking.alerts=[{wanted}]"])
        with pytest.raises(type(error)), Display(config, tmp_path, Shapes("val"), **place):
            raise error
        assert sent == [(f"Stopped by {type(error).__name__}", f"{tmp_path}: {error}")] * count


class Server:
    """What the server's side of artifacts is asked for."""

    def __init__(self):
        self.used, self.downloads, self.offline = [], 0, False

    def artifact(self, name):
        if "missing" in name:
            raise ValueError(f"artifact {name} not found")
        return self

    version = "v3"

    def download(self, root):
        self.downloads += 1
        Path(root).mkdir(parents=True, exist_ok=True)
        (Path(root) / "step_00000012.pt").write_bytes(b"last")
        (Path(root) / "best.pt").write_bytes(b"weights")

    def use_artifact(self, artifact):
        self.used.append(artifact if isinstance(artifact, str) else artifact.metadata)


def test_weights_come_from_an_artifact(tmp_path, monkeypatch):
    import wandb

    server, cache = Server(), tmp_path / "cache"
    monkeypatch.setattr(wandb, "Api", lambda: server)
    with pytest.raises(ValueError, match="must be wandb:ENTITY/PROJECT/NAME:ALIAS"):
        artifacts.download("danet/model", cache)
    with pytest.raises(ValueError, match="no API key .* `wandb login`"):
        artifacts.download("me/danet/model:best", cache)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()  # it reads the variables when it starts
    with pytest.raises(ValueError, match="cannot be downloaded: 127.0.0.1:9"):
        artifacts.download("me/danet/model:best", cache)
    monkeypatch.setattr(artifacts, "require_server", lambda: None)
    with pytest.raises(ValueError, match="missing:best not found"):
        artifacts.download("me/danet/missing:best", cache)
    file = artifacts.download("me/danet/model:best", cache)
    assert file.read_bytes() == b"weights"
    assert artifacts.artifact_of(file, cache) == "me/danet/model:v3"
    assert artifacts.artifact_of(tmp_path / "best.pt", cache) is None
    artifacts.download("me/danet/model:best", cache)
    monkeypatch.delattr(wandb, "Api")
    assert artifacts.download("me/danet/model:v3", cache) == file
    assert server.downloads == 1


def test_inputs_are_recorded_online_and_cannot_end_the_record(tmp_path, monkeypatch):
    run = mirror(tmp_path, mode="offline")
    run.log_inputs("me/danet/model:v3", {"val": "f" * 64})  # wandb refuses it offline
    run.log({"val/miou": 0.5}, 1)
    run.finish(0)
    assert len(history(only(tmp_path, "wandb/offline-run-*/*.wandb"))) == 1
    online = Server()
    artifacts.log_inputs(online, "me/danet/model:v3", {"val": "f" * 64}, patience=5)
    assert online.used == ["me/danet/model:v3", {"split": "val", "fingerprint": "f" * 64}]
    monkeypatch.delattr(Server, "use_artifact")
    artifacts.log_inputs(online, "me/danet/model:v3", {}, patience=5)


SWEEP = REPOSITORY / "conf/wandb_sweep.yaml"


def chosen_by_the_server(parameters):
    """A value of each parameter, in the form in which the server sends them to an agent."""
    firsts = {
        key: [*given.get("values", []), given.get("value", given.get("max"))] for key, given in parameters.items()
    }
    return {key: {"value": values[0]} for key, values in firsts.items()}


def test_a_sweep_of_the_server_sets_keys_that_exist():
    from wandb.sdk.launch.sweeps import utils

    sweep = yaml.safe_load(SWEEP.read_text())
    assert (REPOSITORY / sweep["program"]).is_file()
    assert sweep["metric"] == {"name": "val/miou", "goal": "maximize"}
    choice = chosen_by_the_server(sweep["parameters"])
    config = load(utils.create_sweep_command_args({"args": choice})["args_no_hyphens"])
    assert config.optimizer["lr"] == sweep["parameters"]["optimizer.lr"]["max"]
    for other in sweep["parameters"]["head"]["values"]:
        load(["recipe=quickstart", f"head={other}"])


def test_tensorboard_reads_what_a_run_wrote(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    first = tracking.open_mirror(mode="tensorboard", folder=tmp_path, config={"seed": 0}, name="run")
    for step in (1, 2, 3):
        first.log({"train/loss": 1 / step}, step)
    time.sleep(1.1)  # its files are named by the second
    run = tracking.open_mirror(mode="tensorboard", folder=tmp_path, config={}, run_id=first.run_id, step=2)
    first.finish(1)
    run.log({"val/miou": 0.5}, 2)  # goes on from step 2, whose evaluation was broken off
    run.log({"train/loss": 0.25}, 3)  # is done again
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    label = np.array([[0, 1, 255]], np.uint8).repeat(20, 0).repeat(10, 1)
    run.log_images([ScoredImage("frame", image, label, label % 2, [0.5, math.nan], 0.5, 200)], NAMES, 3)
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    (tmp_path / "matrix.png").write_bytes(png.getvalue())
    run.log_images([ScoredImage("frame", image, label, label % 2, [0.5, math.nan], 0.5, 200)], NAMES, 3, "test")
    run.log_pictures("val/attention", {"frame": png.getvalue()}, 3)
    run.log_confusion_matrix(np.eye(2, dtype=np.int64), NAMES, tmp_path / "matrix.png", 3)
    run.set_summary({"best/miou": 0.75})
    run.finish(0)
    assert run.run_id == first.run_id
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert len(events.Images("test/images/frame")) == 1
    (shown,) = events.Images("val/images/frame")
    pixels = np.asarray(Image.open(io.BytesIO(shown.encoded_image_string)))
    np.testing.assert_array_equal(pixels[:, :30], image)
    truth, prediction = pixels[:, 30:60], pixels[:, 60:]
    assert [len(np.unique(part.reshape(-1, 3), axis=0)) for part in (truth, prediction)] == [2, 2]
    for key in ("val/attention/frame", "val/confusion_matrix"):
        (shown,) = events.Images(key)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(shown.encoded_image_string))), image)
    (text,) = events.Tensors("summary/text_summary")
    assert b"0.75" in text.tensor_proto.string_val[0]


def test_a_failure_of_tensorboard_is_one_warning(tmp_path, caplog):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("a file where the folder is to be")
    run = tracking.open_mirror(mode="tensorboard", folder=tmp_path, config={})
    for step in (1, 2):
        run.log({"a": 1.0}, step)
    run.finish(0)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "TensorBoard is switched off" in warnings[0]


def test_an_evaluation_that_fails_ends_its_record_as_failed(tmp_path, monkeypatch):
    from danet.config.sections import TrackingConfig
    from danet.evaluation import tracked

    codes = []
    opened = types.SimpleNamespace(finish=lambda exit_code=0: codes.append(exit_code))
    monkeypatch.setattr(tracked, "open_mirror", lambda **options: opened)
    with tracked.mirror(TrackingConfig(mode="disabled"), "evaluate", tmp_path, [], {}):
        pass
    with pytest.raises(OSError, match="full"), tracked.mirror(TrackingConfig(mode="disabled"), "x", tmp_path, [], {}):
        raise OSError("full")
    assert codes == [0, 1]
