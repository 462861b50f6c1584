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

    _frozen_norms: tuple[str, ...] = ()  # by name: a batch norm may be replaced by one over several processes

    def layer_groups(self) -> list[list[nn.Module]]:
        """See interfaces.HasLayerGroups."""
        raise NotImplementedError

    def freeze(self, stages: Sequence[str] | int, batchnorm: bool) -> None:
        """Freeze parameters; to be called once they have their initial values.

        Args:
            stages: names of layer groups, "stem", "stage1", ..., or how many of them from the stem on.
            batchnorm: whether the batch norms of all stages are frozen.

        Raises:
            ValueError: the backbone has no such group.
        """
        groups = self.layer_groups() if stages else []
        names = [f"stage{index}" if index else "stem" for index in range(len(groups))]
        if isinstance(stages, int):
            if stages > len(groups):
                raise ValueError(f"freeze={stages}: there are {len(groups)} groups, {', '.join(names)}")
            stages = names[:stages]
        for name in stages:
            if name not in names:
                raise ValueError(f"freeze: unknown group {name!r}; {did_you_mean(name, names)}")
            for module in groups[names.index(name)]:
                module.requires_grad_(False)
        norms = {name: layer for name, layer in self.named_modules() if isinstance(layer, _BatchNorm)}
        for layer in norms.values() if batchnorm else ():
            layer.requires_grad_(False)
        self._frozen_norms = tuple(
            name for name, layer in norms.items() if layer.affine and not layer.weight.requires_grad
        )

    def train(self, mode: bool = True) -> Self:
        """Switch to training, or to evaluation; frozen batch norms stay in evaluation."""
        super().train(mode)
        for name in self._frozen_norms:
            self.get_submodule(name).eval()
        return self
