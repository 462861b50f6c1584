"""Weights & Biases' server: whether it can be reached, and the start and end of its runs."""

import contextlib
import importlib.util
import logging
import os
import threading
from pathlib import Path
from typing import Any

import psutil

from danet.services import network
from danet.services.tracking import addresses

logger = logging.getLogger(__name__)

GRACE = 2.0  # seconds for wandb to end its process


def mode_problem(mode: str) -> str | None:
    """Why a mode cannot be had, found without a connection; None if it can."""
    if mode == "online":
        remedy = (
            "Run `wandb login`, set WANDB_API_KEY, or use tracking.mode=auto, which logs offline until there is one"
        )
        try:
            return None if has_key() else f"no API key is configured. {remedy}"
        except ValueError as error:
            return f"{error}. {remedy}"
    if mode == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        return "TensorBoard is not installed; run pip install 'danet[tensorboard]'"
    return None


def has_key() -> bool:
    """Whether an API key is configured: in the environment, or as `wandb login` leaves it. Nothing is asked.

    Raises:
        ValueError: there is one that cannot be a key.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    mode = os.environ.pop("WANDB_MODE", None)  # has been considered; with "offline", wandb would not look for a key
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except wandb.errors.AuthenticationError as error:
        raise ValueError(str(error).rstrip(".")) from None
    finally:
        os.environ.update({"WANDB_MODE": mode} if mode else {})


def start(mode: str, folder: Path, options: dict[str, Any], init_timeout: float, finish_timeout: float) -> Any:
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
    run, key = None, False
    try:
        key = has_key()  # asked after `wandb.init`, wandb would say no
    except ValueError as error:
        logger.warning("Weights & Biases: %s; logging offline", error)
    if mode != "offline":
        try:
            if key:
                require_server()
                run = wandb.init(**options, mode="online", settings=settings)
            elif mode == "online":
                logger.warning("Weights & Biases: no API key (`wandb login` adds one); logging offline")
        except Exception as error:
            logger.warning("Weights & Biases: the server is not usable; logging offline: %s", error)
            teardown()  # else the id of the failed start counts as "in use"
    if run is None:
        run = wandb.init(**options, mode="offline", settings=settings)
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    for split in ("val", "test"):  # the list of runs shows the best score, not the last
        run.define_metric(f"{split}/miou", step_metric="step", summary="max")
    if run.url and options["group"]:
        addresses.remember_group(folder, run.url.rpartition("/runs/")[0], options["group"])
    first = "" if run.url or key else " after `wandb login`"
    logger.info("Weights & Biases: %s", run.url or f"offline; `{addresses.how_to_sync(folder, run)}` uploads it{first}")
    return run


def require_server() -> None:
    """Raises OSError if the server does not answer within a few seconds, for which wandb itself would wait long."""
    import wandb

    network.require(wandb.setup().settings.base_url)


def teardown() -> None:
    """Drops wandb's process; a broken one may raise exceptions or SystemExit, or hang."""

    def ask() -> None:
        with contextlib.suppress(Exception, SystemExit):
            import wandb

            wandb.run = None  # else the next job of a sweep would try to finish it
            wandb.teardown()

    asked = threading.Thread(target=ask, name="wandb-teardown", daemon=True)
    asked.start()
    asked.join(GRACE)
    with contextlib.suppress(psutil.Error):  # it would go on trying to reach a lost server, beyond the end of this one
        for child in psutil.Process().children():
            if child.name().startswith("wandb-core"):
                child.kill()
