"""The benchmark from beginning to end: its sections, its files."""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from danet.config import REPOSITORY
from danet.services import hardware
from danet_benchmark import (
    attention,
    deployed,
    growth,
    heads,
    inference,
    loader,
    machine,
    metrics,
    operators,
    peers,
    report,
    startup,
    training,
)
from danet_benchmark.networks import Context
from danet_benchmark.results import Results, Row
from danet_benchmark.settings import BenchmarkConfig, Section

# A section is a function from the context to rows, measured as they are asked for.
ROWS: Mapping[Section, Callable[[Context], Iterable[Row]]] = {
    "attention": attention.rows,
    "training": training.rows,
    "inference": inference.rows,
    "loader": lambda context: loader.loader_rows(context.config.loader.seconds),
    "metrics": metrics.rows,
    "startup": startup.rows,
    "growth": growth.rows,
    "profile": operators.rows,
    "heads": heads.rows,
    "deployed": deployed.rows,
}

log = logging.getLogger(__name__)


def run(config: BenchmarkConfig) -> Path:
    """Measure the sections that are asked for, one after the other, and report what there is.

    Returns:
        The report; beside it lie the figures as JSON and the pictures.

    Raises:
        ValueError: the device is not there.
        OSError: the report cannot be written.
    """
    device = hardware.select_device(config.device)
    folder = Path(config.output).expanduser().absolute() if config.output else REPOSITORY / "experiments" / "results"
    page = folder / f"benchmark_{machine.slug(device)}.md"
    if not config.sections:
        report.write(Results(page.with_suffix(".json"), None), page)
        return page
    hardware.set_determinism(False)  # every contestant may have the fastest algorithms
    if device.type == "cpu":
        hardware.keep_memory()  # as a training does; it helps the peers, too
    peers.preload()
    log.info("measuring how fast this machine multiplies")
    described = machine.describe(device, config.matmul_size)
    dtype = hardware.autocast_dtype(config.precision, device)
    context = Context(config=config, device=device, dtype=dtype, machine=described)
    results = Results(page.with_suffix(".json"), described)
    results.written = lambda: report.write_page(results, page)
    commit = machine.commit()
    try:
        for name in config.sections:
            log.info("%s", name)
            with results.section(name, commit):
                results.add(name, ROWS[name](context))
            section = results.sections[name]
            log.info("%s: %s in %.0f s %s", name, section["state"], section["seconds"], section["error"] or "")
    finally:
        report.write(results, page)
    return page
