"""The work of src/inspect_data.py: opens a data set as training would, looks at it, writes the page.

K classes, N images of a split.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from danet import config
from danet.arguments import NonNegativeInt, PositiveInt
from danet.config import RunConfig, shell_word
from danet.data import check, measure
from danet.registry import DATASETS
from danet.services.atomic_files import write_text
from danet.services.places import command
from danet.services.templates import page_template
from danet.tools.inspect_data import contents
from danet.tools.inspect_data.contents import Split
from danet.tools.inspect_data.findings import LEVELS, Finding, find
from danet.tools.inspect_data.pictures import Picture

SPLITS = ("train", "val", "test")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """How much the page shows."""

    examples: NonNegativeInt = 3  # close-ups of each class
    crops: NonNegativeInt = 12  # training crops
    pairs: NonNegativeInt = 6  # similar images of each two splits
    similar: Annotated[float, Field(ge=0, lt=0.5)] = 0.25  # share of the hash's bits in which they differ at most
    workers: PositiveInt = 4  # threads that read images


@dataclass(frozen=True, kw_only=True)
class InspectionConfig:
    """What is to be shown of a run's data, and where."""

    output: str | None = None  # folder; null: outputs/data/NAME_FINGERPRINT
    inspect: InspectOptions = field(default_factory=InspectOptions)


def run(run_config: RunConfig, options: InspectionConfig, overrides: Sequence[str] = ()) -> Path:
    """Write the page and its pictures.

    Args:
        run_config: the run whose data are shown; it is not started.
        options: what is shown, and where.
        overrides: of the command line, for the page.

    Returns:
        The page, index.html.

    Raises:
        ValueError: no image of a split can be read.
    """
    shown = options.inspect
    splits, findings = _open(run_config, shown.workers)
    if run_config.normalization == "data":
        run_config = replace(run_config, normalization=splits["train"].measured.normalization())
    findings += find(run_config, splits, shown.similar, files_are_good=not findings)
    crops, crop_findings = contents.crops(run_config, splits["train"].dataset, shown.crops, shown.workers)
    findings = sorted([*findings, *crop_findings], key=lambda finding: finding.rank)
    pairs = contents.similar_pairs(splits, shown.similar, shown.pairs)
    classes = contents.classes(splits, shown.examples)
    train_set = splits["train"].dataset
    place = config.OUTPUTS / "data" / f"{run_config.dataset['name']}_{train_set.fingerprint()[:6]}"
    folder = Path(options.output).expanduser().absolute() if options.output else place
    page = page_template("danet.tools.inspect_data", percent=percent, grouped=grouped).render(
        name=run_config.dataset["name"],
        description=train_set.description,
        splits=splits,
        findings=findings,
        classes=classes,
        ignored=contents.ignored(splits),
        together=contents.co_occurrence(splits["train"]),
        sizes=contents.sizes(splits),
        channels=contents.channels(run_config, splits),
        pairs=pairs,
        crops=crops,
        command=" ".join([command("inspect_data"), *map(shell_word, overrides)]),
    )
    pictures = {f"crops/{number:02}": crop for number, crop in enumerate(crops, start=1)}
    for number, row in enumerate(classes):
        pictures |= {f"classes/{number:03}_{place}": picture for place, picture in enumerate(row.examples, start=1)}
    for compared in pairs:
        for number, pair in enumerate(compared.pairs, start=1):
            sides = zip("ab", pair.pictures, strict=True)
            pictures |= {f"similar/{compared.split}_{compared.other}_{number:02}{side}": shown for side, shown in sides}
    _write(folder, page, pictures)
    for finding in findings:
        if finding.level != "note":
            log.info("%s: %s", finding.level, finding.title)
    counts = {level: sum(finding.level == level for finding in findings) for level in LEVELS}
    log.info(", ".join(f"{count} {level}{'s' * (count != 1)}" for level, count in counts.items()))
    log.info("%s: open it in a browser", folder / "index.html")
    return folder / "index.html"


def _open(run_config: RunConfig, workers: int) -> tuple[dict[str, Split], list[Finding]]:
    """The splits that there are, measured, and what the check before training finds in them."""
    section, cache_dir = run_config.dataset, config.OUTPUTS / ".cache"
    splits: dict[str, Split] = {}
    problems = []
    for name in SPLITS:
        try:
            dataset = DATASETS.build(section, name)
        except ValueError as error:  # those that training needs have been looked for before
            log.info("no %s split: %s", name, error)
            continue
        report = None
        try:
            report = check.check(dataset, cache_dir=cache_dir, workers=workers, split=name)
        except check.DataError as error:
            problems.append(Finding.of_data_error(name, str(error)))
        measured = measure.measure(dataset, cache_dir=cache_dir, workers=workers, name=name)
        if not measured.readable.any():
            raise ValueError(f"{name}: no image can be read; {command('prepare')} dataset={section['name']} says why")
        splits[name] = Split(name, dataset, measured, report)
    return splits, problems


def _write(folder: Path, page: str, pictures: dict[str, Picture]) -> None:
    """Write the page and its pictures; those of an earlier page that this one lacks are removed."""
    write_text(folder / "index.html", page)
    for name, picture in pictures.items():
        picture.save(folder / "pictures" / f"{name}.jpg")
    for file in (folder / "pictures").glob("*/*.jpg"):
        if file.relative_to(folder / "pictures").with_suffix("").as_posix() not in pictures:
            file.unlink()


# ---- the template ----------------------------------------------------------------------------------------------------


def percent(share: float) -> str:
    """A share in percent, with two digits that count; what is there is never shown as 0."""
    value = 100 * share
    if value == 0 or not math.isfinite(value):
        return "0 %" if value == 0 else "–"
    digits = max(0, 1 - math.floor(math.log10(abs(value)))) if value < 10 else 1 if value < 99.95 else 0
    return f"{value:.{min(digits, 4)}f} %" if value >= 0.0001 else "< 0.0001 %"


def grouped(number: int) -> str:
    """A number with commas between thousands."""
    return f"{number:,}"
