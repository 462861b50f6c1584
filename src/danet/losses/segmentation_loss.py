"""A loss applied to every output of the model.

A term of a loss is a total and a count; its value is total / count (`mean_loss`). Totals and counts are summed over
processes before the division, so the value does not depend on how a batch is divided among them. Over the parts of
accumulate_steps the loop averages values: a part with few valid pixels counts as much as the others. A batch in which
every pixel is ignored has count 0 and loss 0, with zero gradients.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from danet.arguments import NonNegativeFloat
from danet.interfaces import LossTerm
from danet.losses.criterion import Labels
from danet.losses.presence import presence_loss
from danet.ops.enlarged_loss import enlarged_loss
from danet.registry import LOSSES

# Official DANet gives its three outputs equal weight; 0.4 for the stage-3 outputs and 0.2 for "presence" are
# mmsegmentation's, 1 for each of U2-Net's "side1" to "side6" its authors'.
OUTPUT_WEIGHTS = {"main": 1.0, "pam": 1.0, "cam": 1.0, "aux": 0.4, "coarse": 0.4, "presence": 0.2, "side": 1.0}


def weight_of(output: str, weights: Mapping[str, float]) -> float | None:
    """The weight of an output by its name, or by that without its number; None where there is none."""
    return weights.get(output, weights.get(output.rstrip("0123456789")))


def mean_loss(total: Tensor, count: Tensor) -> Tensor:
    """A loss's value: its total over the count, 0 where nothing counts. A count of weights may be far below 1."""
    return (total / count.where(count != 0, 1.0)).where(count != 0, 0.0)


@LOSSES.common
class SegmentationLoss(nn.Module):
    """Applies one criterion to every output of the model; logits of whole images have `presence_loss`.

    Args:
        criterion: a registered loss, see interfaces.Criterion.
        weights: the factor of each output in the loss that is minimized; an output of weight 0 is left out.
    """

    def __init__(self, criterion: nn.Module, /, *, weights: dict[str, NonNegativeFloat] = OUTPUT_WEIGHTS) -> None:
        super().__init__()
        self.criterion = criterion
        self.weights = dict(weights)

    def forward(self, outputs: dict[str, Tensor], label: Tensor, *, align_corners: bool) -> dict[str, LossTerm]:
        """{name: (B, K, h, w) or (B, K)}, (B, H, W) -> terms by name, "main", or "main/dice" where there are several.

        Logits are resized to the label's size. A term's weight has the output's in it.

        Raises:
            ValueError: the model has an output for which no weight is configured.
        """
        terms = {}
        for name, logits in outputs.items():
            weight = weight_of(name, self.weights)
            if weight is None:
                raise ValueError(
                    f"loss.weights has no entry for the model's output {name!r}."
                    f" Add `{name}: 1.0`, or 0 to leave it out"
                )
            if weight > 0:
                if logits.ndim == 2:
                    by_part = {"": presence_loss(logits, label)}
                else:
                    by_part = enlarged_loss(logits, label, self.criterion, align_corners)
                for part, term in by_part.items():
                    terms["/".join(filter(None, (name, part)))] = term._replace(weight=weight * term.weight)
        return terms


def build_loss(section: dict[str, Any], num_classes: int, labels: Labels) -> SegmentationLoss:
    """The loss that a configuration section (name, its options, weights) describes."""
    return SegmentationLoss(LOSSES.build(section, num_classes, labels), **LOSSES.common_options(section))
