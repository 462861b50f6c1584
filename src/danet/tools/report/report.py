"""Report on a sweep or on runs: read, compare, write the files (src/report.py)."""

import base64
import functools
import hashlib
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from danet.arguments import ExistingFolder
from danet.config import OUTPUTS, ConfigError, shell_word
from danet.config.sections import TrackingConfig
from danet.registry import did_you_mean
from danet.services.atomic_files import replacing
from danet.services.places import WORK, command
from danet.tools.report import intervals, tables
from danet.tools.report.analysis import Analysis, analyze
from danet.tools.report.folds import pooled
from danet.tools.report.provenance import differences_that_matter, settings
from danet.tools.report.reading import read_run, read_runs, read_sweep
from danet.tools.report.study import Run, SeedState, Study, VariantRuns, without_places

if TYPE_CHECKING:
    import jinja2


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What to report and where to write it."""

    sweep: ExistingFolder | None = None  # a sweep's folder
    runs: Sequence[ExistingFolder] = ()  # or run folders; a single run gets a page of its own
    evaluation: str | None = None  # report the scores of this folder in each run's evaluations/, such as test_whole
    baseline: str | None = None  # variant to compare with; null: the sweep's baseline or the first run's variant
    output: str | None = None  # folder; null: <sweep>/report, <run>/report, or outputs/reports/<runs>
    allow_mixed: bool = False  # compare runs that differ in code, data or evaluation; the report says so
    timings: bool = True  # false: omit training time, memory and speed, which vary between identical runs
    tracking: TrackingConfig = field(default_factory=lambda: TrackingConfig(mode="disabled"))

    def problems(self) -> list[str]:
        """Problems between the keys, a line each."""
        if (self.sweep is None) == (not self.runs):
            return ["sweep, runs: set exactly one, such as sweep=outputs/sweeps/attention or runs=[FOLDER,FOLDER]"]
        return []


def write_report(config: ReportConfig) -> Path:
    """Write the report.

    The files depend only on the runs' files: the same runs give the same bytes.

    Returns:
        The page, report.html.

    Raises:
        ConfigError: the runs are not comparable, or the baseline does not exist.
        ValueError: a file of a run is missing or damaged.
    """
    folder, runs = _output(config), [Path(run) for run in config.runs]
    files: dict[str, str | bytes]
    if len(runs) == 1:
        run = read_run(runs[0], runs[0].name, config.evaluation)
        files, variants = {"report.html": run_page(run, config)}, {run.label: [run]}
    else:
        study = pooled(
            read_sweep(Path(config.sweep), config.evaluation) if config.sweep else read_runs(runs, config.evaluation)
        )
        files = comparison_files(checked(study, config), config)
        variants = {variant.name: list(variant.runs.values()) for variant in study.variants}
    for name, content in files.items():
        with replacing(folder / name) as temporary:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    _mirror(config, folder, variants, files)
    return folder / "report.html"


def _mirror(
    config: ReportConfig, folder: Path, variants: dict[str, list[Run]], files: Mapping[str, str | bytes]
) -> None:
    """Record the variants' mean scores and the pictures in Weights & Biases, in the group of the runs."""
    if config.tracking.mode == "disabled":
        return
    from danet.evaluation import tracked  # imports PyTorch

    runs = [run.folder for each in variants.values() for run in each]
    with tracked.mirror(config.tracking, "report", folder, runs, asdict(config)) as mirror:
        scores = {name: [run.miou for run in each] for name, each in variants.items() if each}
        mirror.set_summary({f"miou/{name}": statistics.mean(values) for name, values in scores.items()})
        mirror.log_pictures("report", {name: data for name, data in files.items() if isinstance(data, bytes)}, 0)


def checked(study: Study, config: ReportConfig) -> Study:
    """Check that the runs are comparable and set the requested baseline.

    Raises:
        ConfigError: they are not, or the baseline does not exist.
    """
    baseline = config.baseline or study.baseline
    names = [variant.name for variant in study.variants]
    if baseline not in names:
        raise ConfigError([f"baseline = {baseline!r}: no such variant; {did_you_mean(baseline, names)}"])
    mixed = differences_that_matter(study)
    if mixed and not config.allow_mixed:
        remedy = "compare runs that share it, or add allow_mixed=true to report the difference"
        raise ConfigError([f"{line}: {remedy}" for line in mixed])
    return replace(study, baseline=baseline, mixed=mixed)


# ---- the files -------------------------------------------------------------------------------------------------------


def comparison_files(study: Study, config: ReportConfig) -> dict[str, str | bytes]:
    """The report's files by name."""
    from danet.tools.report import figures  # imported late: errors in the runs should not wait for matplotlib

    analysis = analyze(study, timings=config.timings)
    shown = {"curves": figures.have_curves(study), "forest": bool(analysis.differences)}
    drawn = {name: getattr(figures, name) for name, worth_drawing in shown.items() if worth_drawing}
    pictures = {
        name: {form: figures.svg(draw(analysis, width), f"{name}-{form}") for form, width in figures.WIDTHS.items()}
        for name, draw in drawn.items()
    }
    contents = report_contents(analysis, config) | dict.fromkeys(shown) | pictures
    contents["pages"] = attention_pages(study, config)
    return {
        "report.md": render("report.md", **contents),
        "report.html": render("comparison.html", **contents),
        "table.tex": render("table.tex", **contents),
        "table.csv": tables.table_csv(analysis),
        "per_class.csv": tables.class_csv(analysis),
        **{f"{name}.png": figures.png(draw(analysis)) for name, draw in drawn.items()},
    }


def report_contents(analysis: Analysis, config: ReportConfig) -> dict[str, Any]:
    """Everything in a report of several runs except its pictures."""
    return {
        "analysis": analysis,
        "main_table": tables.main_table(analysis),
        "class_table": tables.class_table(analysis),
        "runs_table": tables.runs_table(analysis.study),
        "findings": paragraphs("findings.txt", analysis),
        "power_notes": paragraphs("power_notes.txt", analysis),
        "how_to_read": [text.split(": ", 1) for text in paragraphs("how_to_read.txt", analysis)],
        "provenance": settings(analysis.study, _command(config)),
    }


def run_page(run: Run, config: ReportConfig) -> str:
    """The page of a single run."""
    study = Study(run.label, [VariantRuns(run.label, [SeedState(run.seed, "done", run)])], run.label, [run.seed])
    costs = tables.cost_columns(analyze(study, timings=config.timings))
    scores = [
        ("mIoU, %", tables.percent(run.miou)),
        ("Pixel accuracy, %", tables.percent(run.number("pixel_accuracy"))),
        ("Mean accuracy, %", tables.percent(run.number("mean_accuracy"))),
        ("Best at step", str(run.result.get("step"))),
        *((f"{column.title}, {column.unit}", cell) for column, (cell,) in costs),
    ]
    scored = run.folder / "evaluations" / config.evaluation if config.evaluation else run.folder
    pictures = {"Training": run.folder / "curves.png", "Confusion": scored / "confusion_matrix.png"}
    galleries = {"Worst": "worst", "Best": "best"} if config.evaluation else {"Samples": "samples"}
    return render(
        "run.html",
        run=run,
        scores=scores,
        pictures={title: file for title, file in pictures.items() if file.is_file()},
        galleries={title: sorted((scored / name).glob("*.png")) for title, name in galleries.items()},
        pages=attention_pages(study, config),
        provenance=settings(study, _command(config)),
        config=without_places((run.folder / "config.yaml").read_text(encoding="utf-8")),
    )


def attention_pages(study: Study, config: ReportConfig) -> list[tuple[str, str]]:
    """Name and relative address of attention pages: the sweep's, and each variant's from its first run with some."""
    folders = [("all variants", Path(config.sweep) / "attention")] if config.sweep else []
    for variant in study.variants:
        runs = [run for _, run in sorted(variant.runs.items()) if any((run.folder / "attention").glob("*.html"))]
        folders += [(run.label, run.folder / "attention") for run in runs[:1]]
    return [
        (f"{label}: {page.stem}", quote(Path(os.path.relpath(page, _output(config))).as_posix()))
        for label, folder in folders
        for page in sorted(folder.glob("*.html"))
    ]


# ---- templates -------------------------------------------------------------------------------------------------------

TEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **dict(zip("\\~^", (r"\textbackslash{}", r"\textasciitilde{}", r"\textasciicircum{}"), strict=True)),
    **dict(zip("<>±−×Δ✓–…", r"$<$ $>$ $\pm$ $-$ $\times$ $\Delta$ \checkmark -- \ldots{}".split(), strict=True)),
}


def render(template: str, **values: Any) -> str:
    """A file of the report, from a template in templates/."""
    return _templates(latex=template.endswith(".tex")).get_template(template).render(values)


def paragraphs(template: str, analysis: Analysis) -> list[str]:
    """The paragraphs of a text, without its line breaks."""
    text = render(template, analysis=analysis, draws=intervals.DRAWS)
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()]


@functools.cache
def _templates(latex: bool) -> "jinja2.Environment":
    import jinja2  # imported late: errors in the runs should not wait for it

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("danet.tools.report"),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = (tables.split, tables.percent, tables.points, tables.limits, tables.p_value)
    environment.filters |= {function.__name__: function for function in filters}
    environment.filters |= {"md": _markdown, "tex": _tex, "small": _small_tex, "base64": _base64}
    if not latex:
        return environment
    return environment.overlay(  # LaTeX needs the braces
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
    )


def _markdown(text: str) -> str:
    return "".join(f"\\{character}" if character in "\\|*_<`" else character for character in text)


def _tex(text: str) -> str:
    return "".join(TEX.get(character, character) for character in text)


def _small_tex(text: str) -> str:
    return rf"{{\scriptsize {_tex(text)}}}" if text else ""


def _base64(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode("ascii")


# ---- places ----------------------------------------------------------------------------------------------------------


def _output(config: ReportConfig) -> Path:
    if config.output:
        return Path(config.output).expanduser().absolute()
    if config.sweep or len(config.runs) == 1:
        return Path(config.sweep or config.runs[0]) / "report"
    names = [Path(run).name for run in config.runs]
    digest = hashlib.sha256("\n".join(config.runs).encode()).hexdigest()[:6]
    return OUTPUTS / "reports" / f"{names[0]}_and_{len(names) - 1}_more_{digest}"


def _command(config: ReportConfig) -> str:
    """The command line that makes this report; paths inside the repository are relative to it."""
    what = f"sweep={_place(config.sweep)}" if config.sweep else f"runs=[{','.join(map(_place, config.runs))}]"
    keys = [f"evaluation={config.evaluation}"] if config.evaluation else []
    keys += [f"baseline={config.baseline}"] if config.baseline else []
    keys += ["allow_mixed=true"] if config.allow_mixed else []
    keys += [] if config.timings else ["timings=false"]
    return " ".join([command("report"), *map(shell_word, [what, *keys])])


def _place(path: str) -> str:
    folder = Path(path).resolve()
    return folder.relative_to(WORK).as_posix() if folder.is_relative_to(WORK) else f"…/{folder.name}"
