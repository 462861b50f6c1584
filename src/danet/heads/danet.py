"""DANet: two attention modules on the backbone's last feature map, and the head that fuses them.

Source: Fu et al., "Dual Attention Network for Scene Segmentation", CVPR 2019, section 3. Where the paper and
the authors' code (github.com/junfu1115/DANet) differ, this follows the code, which gave the published
results, and says so.

Shapes: B images, C channels, H x W size of the feature map, N = H * W positions, D = C / reduction channels
of query and key, K classes.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from danet.arguments import PositiveInt, Probability
from danet.interfaces import Stage
from danet.ops.channel_products import channel_products
from danet.ops.contiguous_conv import ManyChannelsConv2d
from danet.ops.position_attention import Form, is_dense, position_attention, position_weights, softmax
from danet.registry import HEADS


class PositionAttention(nn.Module):
    """The position attention module (PAM, section 3.2): each position aggregates all positions, weighted by similarity.

    Args:
        channels: C.
        reduction: query and key have C / reduction channels. The paper keeps C; the code divides it by 8.
        form: how the same sums are computed (position_attention.py); "dense" needs memory for N x N weights.

    Raises:
        ValueError: `reduction` leaves no channel.
    """

    def __init__(self, channels: int, reduction: int = 8, form: Form = "auto") -> None:
        super().__init__()
        self.form = form
        if reduction > channels:
            raise ValueError(f"reduction={reduction} leaves none of the {channels} channels; lower it")
        self.query = nn.Conv2d(channels, channels // reduction, kernel_size=1)
        self.key = nn.Conv2d(channels, channels // reduction, kernel_size=1)
        self.value = nn.Conv2d(channels, channels, kernel_size=1)
        self.gamma = nn.Parameter(torch.zeros(1))  # alpha in the paper; the module starts as the identity

    def compared(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Query and key, whose products are the energies: (B, D, N) each."""
        return self.query(x).flatten(2), self.key(x).flatten(2)

    def attention(self, x: torch.Tensor, positions: Sequence[int] | None = None) -> torch.Tensor:
        """Equation 1, for looking at: (B, C, H, W) -> weights (B, N, N), or (B, P, N) of P positions."""
        query, key = self.compared(x)
        return position_weights(query if positions is None else query[:, :, positions], key)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Equation 2, E_j = alpha * sum_i(s_ji * D_i) + A_j: (B, C, H, W) -> (B, C, H, W)."""
        (query, key), value = self.compared(x), self.value(x).flatten(2)  # (B, D or C, N)
        if is_dense(self.form, query):
            weights = position_weights(query, key)  # equation 1, s_ji = softmax over i of B_i . C_j: (B, N, N)
            gathered = value @ weights.transpose(1, 2).to(value.dtype)
        else:
            gathered = position_attention(query, key, value, self.form)
        # A float32 gamma would make the sum float32 under autocast.
        return self.gamma.to(gathered.dtype) * gathered.view_as(x) + x


class ChannelAttention(nn.Module):
    """The channel attention module (CAM, section 3.3): each channel aggregates all channels, without convolutions.

    Args:
        energy: "plain" is equation 3: the most similar channel weighs most, nearly always the channel itself.
            "max_minus" is the code: the products are subtracted from their row's maximum before the softmax,
            so the least similar channel weighs most.
    """

    def __init__(self, energy: Literal["max_minus", "plain"] = "max_minus") -> None:
        super().__init__()
        self.energy = energy
        self.gamma = nn.Parameter(torch.zeros(1))  # beta in the paper

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        """Equation 3, x_ji = softmax over i of A_i . A_j, in float32 at least: (B, C, H, W) -> (B, C, C)."""
        energy = channel_products(x.flatten(2))
        if self.energy == "max_minus":
            # What is added to a whole row changes no weight, so the maximum needs no gradient.
            energy = energy.detach().amax(dim=-1, keepdim=True) - energy
        return softmax(energy)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Equation 4, E_j = beta * sum_i(x_ji * A_i) + A_j: (B, C, H, W) -> (B, C, H, W)."""
        # As in equation 4 and the code. The paper's text transposes the weights; rows then do not sum to 1.
        rows = x.flatten(2).transpose(1, 2)  # (B, N, C), as a channels_last map lies in memory
        gathered = (rows @ self.attention(x).transpose(1, 2).to(x.dtype)).transpose(1, 2)
        return self.gamma.to(gathered.dtype) * gathered.view_as(x) + x


@HEADS.register("danet")
class DANetHead(nn.Module):
    """Both attentions side by side, their sum classified at the feature map's resolution (section 3.4).

    A branch is a 3x3 convolution to C = in_channels / 4, the attention, a 3x3 convolution. In training each
    branch is also classified by itself, for a loss of its own; so does the code, the paper does not say.

    Args:
        stages: the backbone's; the last one counts.
        num_classes: K.
        pam: whether there is a position attention branch.
        cam: whether there is a channel attention branch.
        reduction: see PositionAttention.
        attention: PositionAttention's form.
        cam_energy: see ChannelAttention.
        dropout: probability of dropping a channel before a classifier.
        aux_loss: whether the branches have classifiers.
        align_corners: how the logits are to be resized; True in the authors' code, False in mmsegmentation.

    Raises:
        ValueError: both attentions are off, or `reduction` leaves no channel.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        num_classes: int,
        /,
        *,
        pam: bool = True,
        cam: bool = True,
        reduction: PositiveInt = 8,
        attention: Form = "auto",
        cam_energy: Literal["max_minus", "plain"] = "max_minus",
        dropout: Probability = 0.1,
        aux_loss: bool = True,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        if lines := self.problems({"pam": pam, "cam": cam}):
            raise ValueError("; ".join(lines))
        self.num_classes = num_classes
        self.align_corners = align_corners
        in_channels = stages[-1].channels
        channels = in_channels // 4

        def conv(in_channels: int) -> nn.Module:
            kind = nn.Conv2d if in_channels == channels else ManyChannelsConv2d
            return nn.Sequential(
                kind(in_channels, channels, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            )

        def branch(attention: nn.Module) -> nn.Sequential:
            return nn.Sequential(OrderedDict(conv_in=conv(in_channels), attention=attention, conv_out=conv(channels)))

        def classifier() -> nn.Module:
            return nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, num_classes, kernel_size=1))

        self.branches: Any = nn.ModuleDict()
        if pam:
            self.branches["pam"] = branch(PositionAttention(channels, reduction, attention))
        if cam:
            self.branches["cam"] = branch(ChannelAttention(cam_energy))
        self.classifier = classifier()
        self.aux_classifiers = nn.ModuleDict({name: classifier() for name in self.branches if aux_loss})

    @staticmethod
    def problems(options: dict[str, Any]) -> list[str]:
        """What is wrong with a combination of options, a line each."""
        if options["pam"] or options["cam"]:
            return []
        return ["pam=false and cam=false leaves no attention; switch one on, or use head=fcn"]

    def attention_modules(self) -> dict[str, nn.Module]:
        """The attention modules, by branch."""
        return {name: branch.attention for name, branch in self.branches.items()}

    def forward(self, features: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The last is (B, in_channels, H, W) -> {"main": (B, K, H, W)}; in training with `aux_loss` "pam", "cam"."""
        outputs = {name: branch(features[-1]) for name, branch in self.branches.items()}  # (B, C, H, W) each
        logits = {"main": self.classifier(sum(outputs.values()))}
        if self.training:
            logits |= {name: classify(outputs[name]) for name, classify in self.aux_classifiers.items()}
        return logits
