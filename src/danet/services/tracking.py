"""Mirroring a run to Weights & Biases.

The run folder's metrics.jsonl is authoritative; mirrored data may be lost without affecting the run. One daemon thread
calls wandb, through a bounded queue: the caller never waits for it, never sees its exceptions and is never prompted for
a key. Legend: H, W image height and width, K number of classes.
"""

import contextlib
import hashlib
import importlib.util
import io
import logging
import math
import os
import queue
import re
import secrets
import shlex
import shutil
import socket
import string
import threading
import types
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from danet.services.tensorboard_mirror import TensorBoardMirror

logger = logging.getLogger(__name__)

CACHE = Path(".cache", "wandb")  # of downloads, in the folder of outputs
MAX_PENDING = 256  # calls that may wait for the backend
GROUP_FILE = "group_url.txt"  # in wandb's folder of a run: URL of its group, for online runs
PROBE = 3.0  # seconds for connecting to the server
PATIENCE = 5.0  # seconds that a caller waits, once, before the mirror is switched off


class ScoredImage(NamedTuple):
    """A validation image as it is mirrored."""

    name: str
    image: np.ndarray  # (H, W, 3) uint8
    label: np.ndarray  # (H, W) uint8
    prediction: np.ndarray  # (H, W) uint8
    iou: Sequence[float]  # of each of the K classes; NaN where undefined
    miou: float
    error_pixels: int  # labeled pixels whose prediction is wrong


class WandbMirror:
    """Sends a run's scalars, images and checkpoint to Weights & Biases.

    Every method except `finish` returns at once. The first failure is logged as a warning and switches the mirror off.

    Args:
        mode: "auto" is online if an API key is configured, else offline; the environment variable WANDB_MODE, if
            set, overrides it. "online" falls back to offline without a key (`mode_problem` tells beforehand) or a
            reachable server. "disabled" does not even import wandb.
        project: name of the project on the server; None takes WANDB_PROJECT, else "danet".
        entity: user or team; None takes WANDB_ENTITY, else the API key's default.
        name: display name of the run.
        group: name under which runs are shown together.
        tags: labels to filter runs by; none takes those in WANDB_TAGS.
        job_type: what the run does, in a word.
        folder: run folder; wandb writes to `folder`/wandb, or to WANDB_DIR/wandb with a link there.
        config: the resolved configuration, plain values.
        run_id: id of the run to continue; None starts a new one.
        alone: take the name and the id of a new run from WANDB_NAME and WANDB_RUN_ID, where they are set; False where
            several runs share these variables.
        init_timeout: seconds to wait for the server before going offline.
        finish_timeout: seconds to wait at the end of the run for unsent data.

    Attributes:
        run_id: id to store in checkpoints, so that a resumed run continues the same record: the actual id, which a
            sweep's agent may set.
    """

    def __init__(
        self,
        *,
        mode: Literal["auto", "online", "offline", "disabled"],
        project: str | None = None,
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        job_type: str = "train",
        folder: Path,
        config: Mapping[str, Any],
        run_id: str | None = None,
        alone: bool = True,
        init_timeout: float = 15.0,
        finish_timeout: float = 60.0,
    ) -> None:
        variables = os.environ if alone else {}
        given = run_id or variables.get("WANDB_RUN_ID")
        self.run_id = given or new_id()
        self._finish_timeout = finish_timeout
        self._calls: queue.Queue[Callable[[Any], None] | None] = queue.Queue(MAX_PENDING)
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE", "auto")  # type: ignore[assignment]  # may name any wandb mode
        self._active = mode != "disabled"
        self._truths: list[Any] = []  # of the validation images, as logged
        self._thread: threading.Thread | None = None
        if not self._active:
            return
        options = {
            "project": project_name(project),
            "entity": entity,  # wandb itself reads the variables for what is None
            "name": variables.get("WANDB_NAME") or name,
            "group": group,
            "tags": list(tags) or None,
            "job_type": job_type,
            "dir": os.environ.get("WANDB_DIR") or str(folder),
            "config": dict(config),
            "id": self.run_id,
            "resume": "allow",
            "allow_val_change": True,  # a resumed run may change the configuration
        }
        self._started = threading.Event()
        self._thread = threading.Thread(
            target=self._serve, args=(mode, folder, options, init_timeout, finish_timeout), daemon=True
        )
        self._thread.start()
        # Wait for the start, so that no data loader forks in the middle of wandb's import. The limit covers the
        # start of wandb's own process, an unresponsive server, and the second start, offline.
        if not self._started.wait(3 * init_timeout):
            self._switch_off("it did not start in time")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Mirrors scalars of optimizer step `step`."""
        # The run's own step is the x-axis: wandb's counter restarts at 0 when an offline run is resumed.
        row = {**values, "step": step}
        self._send(lambda run: run.log(row))

    def log_images(self, images: Sequence[ScoredImage], class_names: Sequence[str], step: int) -> None:
        """Mirrors images with the prediction as an overlay, and a table of them that can be sorted by any score.

        The truths are uploaded once, as an artifact to which the tables refer.

        Args:
            images: the same ones each time.
            class_names: the K names.
            step: the optimizer step.
        """
        from danet.interfaces import IGNORE  # imports PyTorch, which a check of the mode has no use for

        class_labels = {**dict(enumerate(class_names)), IGNORE: "ignored"}

        def overlay(**masks: np.ndarray) -> dict[str, Any]:
            return {name: {"mask_data": mask, "class_labels": class_labels} for name, mask in masks.items()}

        def call(run: Any) -> None:
            import wandb

            if not self._truths:
                pictures = [wandb.Image(i.image, caption=i.name, masks=overlay(ground_truth=i.label)) for i in images]
                self._truths = _log_truths(run, images, pictures)
            panel = [wandb.Image(i.image, caption=i.name, masks=overlay(prediction=i.prediction)) for i in images]
            table = wandb.Table(columns=["name", "truth", "prediction", "mIoU", "error pixels", *class_names])
            for scored, truth in zip(images, self._truths, strict=True):
                answer = wandb.Image(truth, masks=overlay(prediction=scored.prediction))
                ious = [None if math.isnan(iou) else iou for iou in (scored.miou, *scored.iou)]
                table.add_data(scored.name, truth, answer, ious[0], scored.error_pixels, *ious[1:])
            run.log({"val/images": panel, "val/predictions": table, "step": step})

        if images:
            self._send(call)

    def log_pictures(self, key: str, pictures: Mapping[str, bytes], step: int) -> None:
        """Mirrors PNG files under one key.

        Args:
            key: key of the images, such as "val/attention".
            pictures: contents of the files, by caption.
            step: the optimizer step.
        """

        def call(run: Any) -> None:
            import wandb
            from PIL import Image

            images = [wandb.Image(Image.open(io.BytesIO(png)), caption=name) for name, png in pictures.items()]
            run.log({key: images, "step": step})

        self._send(call)

    def log_confusion_matrix(
        self, matrix: np.ndarray, class_names: Sequence[str], picture: Path, step: int, split: str = "val"
    ) -> None:
        """Mirrors the confusion matrix as a table of K rows and as a picture.

        Args:
            matrix: (K, K) int64, rows are the truth; a row more for void is left out.
            class_names: the K names.
            picture: an image file that shows the matrix.
            step: the optimizer step.
            split: that was scored.
        """
        matrix = matrix[: len(class_names), : len(class_names)]
        rows = [[name, *counts] for name, counts in zip(class_names, matrix.tolist(), strict=True)]

        def call(run: Any) -> None:
            import wandb

            table = wandb.Table(columns=["truth \\ prediction", *class_names], data=rows)
            run.log(
                {
                    f"{split}/confusion_matrix": wandb.Image(str(picture)),
                    f"{split}/confusion_table": table,
                    "step": step,
                }
            )

        self._send(call)

    def log_checkpoint(self, path: Path, aliases: Sequence[str], metadata: Mapping[str, Any]) -> None:
        """Uploads a checkpoint as a version of the artifact "checkpoint-<run_id>".

        The file is read later and not copied, so it must not change: call this at the end of the run.

        Args:
            path: the file.
            aliases: names of the version, such as "best". The newest version is "latest" in any case.
            metadata: facts to show beside it.
        """

        def call(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(f"checkpoint-{self.run_id}", type="model", metadata=dict(metadata))
            artifact.add_file(str(path), policy="immutable", skip_cache=True)
            run.log_artifact(artifact, aliases=list(aliases))

        self._send(call)

    def log_inputs(self, weights: str | None, data: Mapping[str, str]) -> None:
        """Records what an online run starts from as artifacts that it uses; offline there is no such record.

        Args:
            weights: artifact of the initial weights, as `artifact_of` gives it.
            data: fingerprints by split.
        """
        self._send(lambda run: _log_inputs(run, weights, dict(data)))

    def alert(self, title: str, text: str) -> None:
        """Sends a message to whoever follows the run, as set up on the server."""
        self._send(lambda run: run.alert(title, text))

    def set_summary(self, values: Mapping[str, Any]) -> None:
        """Sets the values shown in the list of runs, such as the best mIoU."""
        summary = dict(values)
        self._send(lambda run: run.summary.update(summary))

    def finish(self, exit_code: int = 0) -> None:
        """Ends the record and waits for unsent data, at most about `finish_timeout` seconds."""
        self._send(lambda run: run.finish(exit_code=exit_code))
        self._send(None)
        if self._thread is not None:
            self._thread.join(self._finish_timeout + PATIENCE)  # wandb's own limit comes first
            if self._thread.is_alive():
                self._switch_off("it did not finish in time")
        self._active = False

    def _send(self, call: Callable[[Any], None] | None) -> None:
        """Queues a function to call with the run; None ends the thread."""
        if not self._active:
            return
        try:
            self._calls.put(call, timeout=PATIENCE)
        except queue.Full:
            self._switch_off("it does not answer")

    def _serve(self, mode: str, folder: Path, options: dict[str, Any], *timeouts: float) -> None:
        """The thread's main function: start the run, then make the queued calls in order until one fails."""
        try:
            run = _start(mode, folder, options, *timeouts)
            self.run_id = run.id
            self._started.set()
            while (call := self._calls.get()) is not None:
                call(run)
        except (Exception, SystemExit) as error:  # no failure may affect the training
            self._switch_off(f"{type(error).__name__}: {error}")
        finally:
            self._started.set()

    def _switch_off(self, reason: str) -> None:
        if not self._active:
            return
        self._active = False
        logger.warning(
            "Weights & Biases is switched off for the rest of this run: %s. metrics.jsonl in the run folder keeps "
            "everything",
            reason,
        )
        # Drop wandb's process: Python would wait for it at exit, and the next run of a sweep would inherit it.
        thread = threading.Thread(target=_teardown, name="wandb-teardown", daemon=True)
        thread.start()
        self._thread = thread  # `finish` waits for it


def _log_truths(run: Any, images: Sequence[ScoredImage], pictures: list[Any]) -> list[Any]:
    """Logs the truths as an artifact, the same one for every run on these images; returns pictures that refer to it."""
    import wandb

    content = hashlib.sha256()
    for scored in images:
        content.update(scored.name.encode("utf-8", "surrogateescape") + scored.image.tobytes() + scored.label.tobytes())
    artifact = wandb.Artifact(f"truths-{content.hexdigest()[:12]}", type="dataset")
    rows = [[scored.name, picture] for scored, picture in zip(images, pictures, strict=True)]
    artifact.add(wandb.Table(columns=["name", "truth"], data=rows), "truths")
    run.log_artifact(artifact)
    for picture in pictures:
        for media in (picture, *picture._masks.values()):
            media._artifact_source = _Uncommitted(artifact, artifact.get_added_local_path_name(media._path))
    return pictures


def _log_inputs(run: Any, weights: str | None, data: dict[str, str]) -> None:
    import wandb

    if run.offline:
        return
    try:
        if weights:
            run.use_artifact(weights)
        for split, fingerprint in data.items():
            facts = {"split": split, "fingerprint": fingerprint}
            run.use_artifact(wandb.Artifact(f"data-{fingerprint[:12]}", type="dataset", metadata=facts))
    except Exception as error:  # such as of rights; the rest of the record does not depend on it
        logger.warning("Weights & Biases: the run's inputs are not recorded: %s", error)


class _Uncommitted:
    """The source of a file in an artifact that the server may not have yet; wandb's own class waits for the server.

    Uses private names of wandb 0.31. If another release ignores them, the file is uploaded again.
    """

    name = None

    def __init__(self, artifact: Any, entry: str | None) -> None:
        self.artifact = self
        self._url = f"wandb-client-artifact://{artifact._client_id}/{entry}"
        self._kept = artifact  # wandb finds it by its id only as long as it lives

    def _default_root(self) -> str:
        return os.devnull  # it has not been downloaded

    def get_entry(self, name: str) -> Any:
        return types.SimpleNamespace(ref_url=lambda: self._url)


def open_mirror(*, mode: str, **options: Any) -> "WandbMirror | TensorBoardMirror":
    """Open the record that `mode` names: "tensorboard", or a mode of WandbMirror, which says what the options are."""
    if mode == "tensorboard":
        from danet.services.tensorboard_mirror import TensorBoardMirror

        return TensorBoardMirror(**options)
    return WandbMirror(mode=mode, **options)  # type: ignore[arg-type]  # checked with the configuration


def new_id() -> str:
    """A random id of a run, in W&B's form."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


def project_name(configured: str | None) -> str:
    """Name of the project on the server: as configured, else WANDB_PROJECT, else "danet"."""
    return configured or os.environ.get("WANDB_PROJECT") or "danet"


def group_name(configured: str | None, default: str | None) -> str | None:
    """Name of the runs' group: as configured, else WANDB_RUN_GROUP, else `default`."""
    return configured or os.environ.get("WANDB_RUN_GROUP") or default


def _start(mode: str, folder: Path, options: dict[str, Any], init_timeout: float, finish_timeout: float) -> Any:
    """Starts the wandb run: online if requested and possible, else offline."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would look up a host name
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", str(finish_timeout))  # older releases ignore it
    import wandb

    if wandb.run is not None:  # left open by a failed job of the same sweep; this one would log into it
        wandb.run.finish(exit_code=1)
    Path(options["dir"]).mkdir(parents=True, exist_ok=True)  # wandb would write to /tmp instead
    # The terminal belongs to the progress bar, and a run's code is in git.
    settings = wandb.Settings(
        init_timeout=init_timeout, console="off", silent=True, disable_code=True, x_save_requirements=False
    )
    run = None
    if mode != "offline":
        try:
            if has_key():
                _require_server()
                run = wandb.init(**options, mode="online", settings=settings)
            elif mode == "online":
                logger.warning("Weights & Biases: no API key (`wandb login` adds one); logging offline")
        except Exception as error:
            logger.warning("Weights & Biases: the server is not usable; logging offline: %s", error)
            _teardown()  # else the id of the failed start counts as "in use"
    if run is None:
        run = wandb.init(**options, mode="offline", settings=settings)
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    for split in ("val", "test"):  # the list of runs shows the best score, not the last
        run.define_metric(f"{split}/miou", step_metric="step", summary="max")
    if run.url and options["group"]:
        address = _group_url(run.url.rpartition("/runs/")[0], options["group"])
        (folder / "wandb").mkdir(parents=True, exist_ok=True)
        (folder / "wandb" / GROUP_FILE).write_text(f"{address}\n", encoding="utf-8")
    logger.info("Weights & Biases: %s", run.url or f"offline; `{_how_to_sync(folder, run)}` uploads it")
    return run


def download(reference: str, cache: Path) -> Path:
    """Downloads the weights in an artifact.

    Args:
        reference: "entity/project/name:alias", or a version such as "entity/project/name:v3".
        cache: folder for downloads. A version that is there is not looked for on the server.

    Returns:
        The file; `artifact_of` tells its artifact.

    Raises:
        ValueError: the reference is malformed, or there is no such artifact, key, network or file of weights.
    """
    if not re.fullmatch(r"[^/:]+/[^/:]+/[^/:]+:[^/:]+", reference):
        raise ValueError("must be wandb:ENTITY/PROJECT/NAME:ALIAS, such as wandb:me/danet/checkpoint-1a2b3c4d:best")
    folder = cache.joinpath(*re.split("[/:]", reference))
    if not folder.is_dir():
        import wandb

        if not has_key():
            raise ValueError("no API key is configured for the download. Run `wandb login`, or set WANDB_API_KEY")
        try:
            _require_server()
            artifact = wandb.Api().artifact(reference)
            folder = folder.with_name(artifact.version)
            if not folder.is_dir():
                part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
                artifact.download(root=str(part))
                with contextlib.suppress(OSError):  # another process of the run may have been first
                    part.rename(folder)
                shutil.rmtree(part, ignore_errors=True)
        except Exception as error:  # of many kinds; all mean that the file cannot be had
            raise ValueError(f"cannot be downloaded: {error}") from None
    files = [file for pattern in ("best.pt", "*.safetensors", "*.pt") for file in sorted(folder.glob(pattern))]
    if not files:
        raise ValueError(f"the artifact holds no weights (.pt or .safetensors): {folder}")
    return files[0]


def artifact_of(file: Path, cache: Path) -> str | None:
    """The artifact that `download` took a file from, as "entity/project/name:version"; None for other files."""
    if not file.is_relative_to(cache):
        return None
    *place, version = file.parent.relative_to(cache).parts
    return f"{'/'.join(place)}:{version}"


def mode_problem(mode: str) -> str | None:
    """Why a mode cannot be had, found without a connection; None if it can."""
    if mode == "online" and not has_key():
        remedy = "set WANDB_API_KEY, or use tracking.mode=auto, which logs offline until there is one"
        return f"no API key is configured. Run `wandb login`, {remedy}"
    if mode == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        return "TensorBoard is not installed; run pip install -e '.[tensorboard]'"
    return None


def has_key() -> bool:
    """Whether an API key is configured: in the environment, or as `wandb login` leaves it. Nothing is asked."""
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    mode = os.environ.pop("WANDB_MODE", None)  # has been considered; with "offline", wandb would not look for a key
    try:
        return bool(wandb.login(prompt=False, verify=False))
    finally:
        os.environ.update({"WANDB_MODE": mode} if mode else {})


def _require_server() -> None:
    """Raises OSError if the server does not answer within a few seconds, for which wandb itself would wait long.

    Behind a proxy only wandb can tell.
    """
    import wandb

    if urllib.request.getproxies():
        return
    address = urllib.parse.urlsplit(wandb.setup().settings.base_url)
    host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    problems = [f"{host}:{port} does not answer within {PROBE:g} s"]

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=PROBE).close()
            problems.clear()
        except OSError as error:
            problems[:] = [f"{host}:{port}: {error}"]

    probe = threading.Thread(target=connect, daemon=True)  # looking up a name has no time limit of its own
    probe.start()
    probe.join(PROBE)
    if problems:
        raise OSError(problems[0])


def _how_to_sync(folder: Path, run: Any) -> str:
    """The command that uploads everything of an offline run; resumed ones have a folder for each start.

    Where WANDB_DIR is elsewhere, the run folder gets a link, by which the next start finds this one.
    """
    place, link = Path(run.dir).parent, folder / "wandb" / Path(run.dir).parent.name
    if not link.exists():
        with contextlib.suppress(OSError):  # a file system without links
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(place.absolute())
    runs = [file.parent for file in sorted(folder.glob(f"wandb/offline-run-*-{run.id}/*.wandb")) if not _is_sent(file)]
    return shlex.join(["wandb", "sync", *map(str, runs or [place])])


def how_to_open(sweep: Path, *, project: str | None, entity: str | None, group: str) -> list[str]:
    """Instructions for viewing the runs of a sweep side by side, as lines; empty if nothing was tracked.

    Args:
        sweep: folder that contains the run folders.
        project: project of the runs, as configured.
        entity: user or team of the runs, as configured.
        group: name of the runs' group.
    """
    lines = [
        f"Weights & Biases: {url}"
        for url in sorted({file.read_text(encoding="utf-8").strip() for file in sweep.rglob(f"wandb/{GROUP_FILE}")})
    ]
    offline = [file.parent for file in sweep.rglob("wandb/offline-run-*/*.wandb") if not _is_sent(file)]
    if offline:
        patterns = sorted({"/".join(("*",) * (len(run.relative_to(sweep).parts) - 2)) for run in offline})
        paths = [f"{shlex.quote(str(sweep))}/{pattern}/wandb/offline-run-*" for pattern in patterns]
        lines.append(f"Weights & Biases: upload {len(offline)} offline runs with")
        lines.append(f"  wandb sync {' '.join(paths)}")
        user = entity or os.environ.get("WANDB_ENTITY") or "<your entity>"
        address = f"https://wandb.ai/{user}/{project_name(project)}"
        lines.append(f"  and open {_group_url(address, group)}")
    return lines


def _group_url(project: str, group: str) -> str:
    return f"{project}/groups/{urllib.parse.quote(group, safe='')}"


def _is_sent(file: Path) -> bool:
    """Whether `wandb sync` has marked a run's file as uploaded."""
    return file.with_name(f"{file.name}.synced").exists()


def _teardown() -> None:
    """Drops wandb's process; a broken one may raise exceptions or SystemExit, or hang."""
    with contextlib.suppress(Exception, SystemExit):
        import wandb

        wandb.run = None  # else the next job of a sweep would try to finish it
        wandb.teardown()
