"""SegFormer's backbones MiT-B0 to B5, as segmentation-models-pytorch (SMP) keeps them.

Source: Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers", NeurIPS 2021.
The whole SegFormer is this backbone with head=smp head.decoder=segformer.

Shapes: B images, H x W image size, C channels.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from danet.arguments import ExistingFile
from danet.backbones.pretrained import load_backbone, read_backbone
from danet.interfaces import IMAGENET_MEAN, IMAGENET_STD
from danet.registry import BACKBONES


@BACKBONES.register("mit")
class MixTransformer(nn.Module):
    """A hierarchical transformer with four stages.

    Args:
        model: which.
        pretrained: False or a file with weights in the authors' naming, such as their mit_b0.pth.

    Attributes:
        net: SMP's encoder.
        out_channels, strides, in_channels, mean, std: see interfaces.Backbone.

    Raises:
        ValueError: SMP is not installed, or the weights do not fit.
    """

    def __init__(
        self,
        *,
        model: Literal["mit_b0", "mit_b1", "mit_b2", "mit_b3", "mit_b4", "mit_b5"] = "mit_b0",
        pretrained: Literal[False] | ExistingFile = False,
    ) -> None:
        super().__init__()
        try:
            from segmentation_models_pytorch.encoders import get_encoder
        except ImportError:
            raise ValueError("backbone=mit needs segmentation-models-pytorch: pip install 'danet[models]'") from None
        with torch.device("cpu"):  # as SMP computes with values
            net = get_encoder(model, weights=None)
        self.net = net.to(torch.get_default_device())
        self.out_channels = tuple(self.net.out_channels[2:])  # SMP counts the image and an empty map of stride 2
        self.strides = (4, 8, 16, 32)
        self.in_channels, self.mean, self.std = 3, IMAGENET_MEAN, IMAGENET_STD
        if pretrained:
            tensors = read_backbone(pretrained, landmark="patch_embed1.proj.weight")
            tensors = {key: value for key, value in tensors.items() if not key.startswith("head.")}
            load_backbone(self.net, tensors, pretrained, names="SegFormer's", causes={"": "weights of another size"})

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalized images (B, 3, H, W) -> (B, C, ceil(H / stride), ceil(W / stride)) each."""
        return list(self.net(image)[2:])
