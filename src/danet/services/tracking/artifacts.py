"""Artifacts of Weights & Biases: what a run uploads for reference, starts from and downloads."""

import contextlib
import hashlib
import logging
import os
import re
import shutil
import threading
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from danet.services.tracking.common import ScoredImage
from danet.services.tracking.connection import has_key, require_server

logger = logging.getLogger(__name__)

CACHE = Path(".cache", "wandb")  # of downloads, in the folder of outputs


def log_truths(run: Any, images: Sequence[ScoredImage], pictures: list[Any]) -> list[Any]:
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


def log_inputs(run: Any, weights: str | None, data: dict[str, str], patience: float) -> None:
    """Records what an online run starts from; see WandbMirror.log_inputs. Takes `patience` seconds at most."""
    import wandb

    def record() -> None:
        try:
            if weights:
                run.use_artifact(weights)
            for split, fingerprint in data.items():
                facts = {"split": split, "fingerprint": fingerprint}
                run.use_artifact(wandb.Artifact(f"data-{fingerprint[:12]}", type="dataset", metadata=facts))
        except Exception as error:  # such as of rights; the rest of the record does not depend on it
            logger.warning("Weights & Biases: the run's inputs are not recorded: %s", error)

    if not run.offline:
        recording = threading.Thread(target=record, daemon=True)  # wandb waits for a server that is lost for hours
        recording.start()
        recording.join(patience)


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

        if not has_key():  # which raises ValueError, too
            raise ValueError("no API key is configured for the download. Run `wandb login`, or set WANDB_API_KEY")
        try:
            require_server()
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
