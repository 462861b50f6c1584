"""The tables of scores in the terminal, in percent."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from danet.services.console import print_table, print_text


def print_scores(
    title: str,
    class_names: Sequence[str],
    iou: Sequence[float],
    accuracy: Sequence[float],
    pixels: Sequence[int],
    *,
    miou: float,
    pixel_accuracy: float,
) -> None:
    """Print the table of scores, one row per class, in percent.

    Args:
        title: line above the table.
        class_names: the K names.
        iou: intersection over union in [0, 1]; NaN, shown as n/a, where the class is absent.
        accuracy: recall of each class in [0, 1], or NaN.
        pixels: number of labeled pixels of each class.
        miou: mean of `iou` over the classes that occur.
        pixel_accuracy: share of all labeled pixels that are correct.
    """
    columns = {"IoU": iou, "accuracy": accuracy, "pixels": _shares(pixels)}
    last_row = ["mean IoU, pixel accuracy", _percent(miou), _percent(pixel_accuracy), ""]
    _print_classes(title, class_names, columns, last_row)


def print_evaluation(title: str, result: Mapping[str, Any]) -> None:
    """Print all scores of an evaluation, in percent.

    Args:
        title: line above the table.
        result: by class "iou", "accuracy", "boundary_iou" and "pixels"; their means "miou", "mean_accuracy" and
            "boundary_miou"; "frequency_weighted_iou" and "pixel_accuracy". Scores are in [0, 1], or NaN. Where it has
            "calibration", that is printed, too.
    """
    columns = {
        "IoU": list(result["iou"].values()),
        "accuracy": list(result["accuracy"].values()),
        "boundary IoU": list(result["boundary_iou"].values()),
        "pixels": _shares(list(result["pixels"].values())),
    }
    means = (_percent(result[key]) for key in ("miou", "mean_accuracy", "boundary_miou"))
    _print_classes(title, list(result["iou"]), columns, ["mean", *means, ""])
    others = {"frequency-weighted IoU": "frequency_weighted_iou", "pixel accuracy": "pixel_accuracy"}
    print_text("   ".join(f"{name} {_percent(result[key])} %" for name, key in others.items()))
    if "calibration" in result:
        found = result["calibration"]
        risk = dict(zip(found["risk_coverage"]["coverage"], found["risk_coverage"]["risk"], strict=True))
        print_text(
            f"calibration error {_percent(found['ece'])} %   Brier score {found['brier']:.4f}   negative log-likelihood"
            f" {found['nll']:.4f}   wrong among the surest 90 % {_percent(risk[0.9])} %"
        )


def _print_classes(
    title: str, class_names: Sequence[str], columns: Mapping[str, Sequence[float]], last_row: Sequence[str]
) -> None:
    headings = ["class", *(f"{name} %" for name in columns)]
    rows = zip(class_names, *(map(_percent, values) for values in columns.values()), strict=True)
    print_table(title, headings, rows, last_row=last_row)


def _shares(pixels: Sequence[int]) -> list[float]:
    total = max(sum(pixels), 1)
    return [count / total for count in pixels]


def _percent(share: float) -> str:
    return "n/a" if math.isnan(share) else f"{100 * share:.2f}"
