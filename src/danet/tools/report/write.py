"""The work of src/report.py: reads a sweep or runs, compares them, writes the report's files."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from danet.config import OUTPUTS, REPOSITORY, ConfigError, shell_word
from danet.registry import ExistingFolder, did_you_mean
from danet.services.records import replacing
from danet.tools.report import collect
from danet.tools.report.study import Study


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What to report, and where to."""

    sweep: ExistingFolder | None = None  # a sweep's folder
    runs: Sequence[ExistingFolder] = ()  # or run folders; one alone becomes a page of its own
    baseline: str | None = None  # variant to compare with; null: the sweep's own, or that of the first run
    output: str | None = None  # folder; null: <sweep>/report, <run>/report, or outputs/reports/<runs>
    allow_mixed: bool = False  # compare runs of different code, data or evaluation all the same, and say so
    timings: bool = True  # false: leave out training time, memory and speed, which differ between equal runs

    def problems(self) -> list[str]:
        """What is wrong between the keys, a line each."""
        if (self.sweep is None) == (not self.runs):
            return ["sweep, runs: give one of them, such as sweep=outputs/sweeps/attention or runs=[FOLDER,FOLDER]"]
        return []


def write_report(config: ReportConfig) -> Path:
    """Write the report.

    The files depend on the runs' files alone: the same runs give the same bytes.

    Returns:
        The page, report.html.

    Raises:
        ConfigError: the runs differ in what they must share, or there is no such baseline.
        ValueError: a file of a run is missing or damaged.
    """
    from danet.tools.report import page  # here, for what is wrong with the runs need not wait for matplotlib

    folder = _output(config)
    if len(config.runs) == 1:
        run = collect.read_run(Path(config.runs[0]), Path(config.runs[0]).name)
        return _write(folder, {"report.html": page.run_page(run, _command(config), timings=config.timings).encode()})
    study = (
        collect.read_sweep(Path(config.sweep)) if config.sweep else collect.read_runs([Path(r) for r in config.runs])
    )
    return _write(folder, files(checked(study, config), config))


def checked(study: Study, config: ReportConfig) -> Study:
    """The study with the baseline asked for, if its runs may be compared.

    Raises:
        ConfigError: they may not, or there is no such baseline.
    """
    from danet.tools.report.comparable import differences_that_matter

    baseline = config.baseline or study.baseline
    known = {variant.name: variant for variant in study.variants}
    if baseline not in known:
        raise ConfigError([f"baseline = {baseline!r}: no such variant; {did_you_mean(baseline, list(known))}"])
    mixed = differences_that_matter(study)
    if mixed and not config.allow_mixed:
        remedy = "compare runs that share it, or give allow_mixed=true and the report says so"
        raise ConfigError([f"{line}: {remedy}" for line in mixed])
    return replace(study, baseline=baseline, mixed=mixed)


def files(study: Study, config: ReportConfig) -> dict[str, bytes]:
    """The report's files by name."""
    from danet.tools.report import figures, page, writers
    from danet.tools.report.analysis import analyse

    analysis, command = analyse(study, timings=config.timings), _command(config)
    texts = {
        "report.md": writers.markdown(analysis, command),
        "report.html": page.comparison_page(analysis, command),
        "table.tex": writers.latex(analysis),
        "table.csv": writers.table_csv(analysis),
        "per_class.csv": writers.class_csv(analysis),
    }
    pictures = {"curves.png": figures.png(figures.curves(analysis))}
    if analysis.compared:
        pictures["forest.png"] = figures.png(figures.forest(analysis))
    return {**{name: text.encode() for name, text in texts.items()}, **pictures}


def _output(config: ReportConfig) -> Path:
    if config.output:
        return Path(config.output).expanduser().absolute()
    if config.sweep or len(config.runs) == 1:
        return Path(config.sweep or config.runs[0]) / "report"
    names = [Path(run).name for run in config.runs]
    digest = hashlib.sha256("\n".join(config.runs).encode()).hexdigest()[:6]
    return OUTPUTS / "reports" / f"{names[0]}_and_{len(names) - 1}_more_{digest}"


def _command(config: ReportConfig) -> str:
    """The command line that makes this report, with paths from the repository on where they lie in it."""
    what = f"sweep={_place(config.sweep)}" if config.sweep else f"runs=[{','.join(map(_place, config.runs))}]"
    keys = [f"baseline={config.baseline}"] if config.baseline else []
    keys += ["allow_mixed=true"] if config.allow_mixed else []
    keys += [] if config.timings else ["timings=false"]
    return " ".join(["python src/report.py", *map(shell_word, [what, *keys])])


def _place(path: str) -> str:
    folder = Path(path).resolve()
    return folder.relative_to(REPOSITORY).as_posix() if folder.is_relative_to(REPOSITORY) else f"…/{folder.name}"


def _write(folder: Path, contents: Mapping[str, bytes]) -> Path:
    for name, content in contents.items():
        with replacing(folder / name) as temporary:
            temporary.write_bytes(content)
    return folder / "report.html"
