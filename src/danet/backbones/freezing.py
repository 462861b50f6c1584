"""What a backbone needs so that a training can leave parts of it as they are."""

from collections.abc import Sequence
from typing import Self

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from danet.arguments import NonNegativeInt, Text
from danet.registry import did_you_mean

Freeze = list[Text] | NonNegativeInt


class Freezable(nn.Module):
    """A backbone whose parameters can be frozen: they get no gradient, and no optimizer changes or decays them.

    A batch norm whose scale and shift are frozen also keeps its running statistics, and normalizes by them in training.
    """

    def layer_groups(self) -> dict[str, list[nn.Parameter]]:
        """See interfaces.HasLayerGroups."""
        raise NotImplementedError

    def freeze(self, stages: Sequence[str] | int, batchnorm: bool) -> None:
        """Freeze parameters; to be called once they have their initial values.

        Args:
            stages: names of groups, or how many groups from the stem on.
            batchnorm: whether the batch norms of all stages are frozen.

        Raises:
            ValueError: the backbone has no such group.
        """
        groups = self.layer_groups() if stages else {}
        if isinstance(stages, int):
            if stages > len(groups):
                raise ValueError(f"freeze={stages}: there are {len(groups)} groups, {', '.join(groups)}")
            stages = [*groups][:stages]
        for name in stages:
            if name not in groups:
                raise ValueError(f"freeze: unknown group {name!r}; {did_you_mean(name, [*groups])}")
        layers = [layer for layer in self.modules() if isinstance(layer, _BatchNorm)] if batchnorm else []
        parameters = [parameter for name in stages for parameter in groups[name]]
        for parameter in parameters + [parameter for layer in layers for parameter in layer.parameters()]:
            parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Switch to training, or to evaluation; frozen batch norms stay in evaluation."""
        super().train(mode)
        for layer in self.modules():
            if isinstance(layer, _BatchNorm) and layer.affine and not layer.weight.requires_grad:
                layer.eval()
        return self
