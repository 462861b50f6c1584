"""The decoders of segmentation-models-pytorch (SMP) as heads on our backbones' feature maps.

Shapes: B images, H x W image size, K classes.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from danet.interfaces import Stage
from danet.ops.exact_depthwise import compute_exactly
from danet.registry import HEADS

Decoder = Literal[
    "unet",
    "unetplusplus",
    "fpn",
    "pspnet",
    "deeplabv3",
    "deeplabv3plus",
    "upernet",
    "segformer",
    "pan",
    "linknet",
    "manet",
    "dpt",
]
PYRAMID = (2, 4, 8, 16, 32)  # strides of SMP's encoders
LAST_ONLY = ("pspnet", "deeplabv3")
NOT_INITIALIZED = ("deeplabv3", "deeplabv3plus")  # SMP leaves these two with PyTorch's initial values
NEEDS_STRIDE_2 = ("unetplusplus", "linknet", "manet")
UNET_CHANNELS = (256, 128, 64, 32, 16)


@HEADS.register("smp")
class SMPHead(nn.Module):
    """A decoder of SMP with the defaults of its own model, then SMP's convolution to the classes.

    Logits are at the decoder's resolution; SMP resizes them with align_corners=True, and so does this by default.
    pspnet reads the backbone's last stage, as the paper does, where SMP's own model cuts the encoder at stride 8.

    Args:
        stages: the backbone's. deeplabv3 and pspnet read the last one, deeplabv3plus that (of stride 8 or 16) and
            stride 4, dpt four of one stride (a ViT's), the others strides 4, 8, 16 and 32 (pan also a second 16 in
            place of 32; unetplusplus, linknet and manet also 2).
        num_classes: K.
        decoder: which.
        align_corners: how the logits are to be resized.

    Raises:
        ValueError: the backbone does not have the stages that the decoder reads, or SMP is not installed.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        num_classes: int,
        /,
        *,
        decoder: Decoder = "deeplabv3plus",
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes, self.align_corners = num_classes, align_corners
        self._name, self._stages = decoder, tuple(stages)
        self._chosen = _chosen(decoder, self._stages)  # the stage of each of SMP's levels
        channels = [3, *(0 if index is None else stages[index].channels for index in self._chosen)]
        try:
            self.decoder, self.classifier = _build(decoder, channels, self._stages, num_classes)
        except ImportError:
            raise ValueError("head=smp needs segmentation-models-pytorch: pip install 'danet[models]'") from None
        compute_exactly(self.decoder)

    def init_weights(self) -> None:
        """Set SMP's initial values."""
        from segmentation_models_pytorch.base import initialization

        if self._name not in NOT_INITIALIZED:
            initialization.initialize_decoder(self.decoder)
            initialization.initialize_head(self.classifier)

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """The stages -> {"main": (B, K, h, w)}, at stride 1 (unet and its like), 2 (dpt), 4 or the last stage's."""
        if self._name in LAST_ONLY:
            return {"main": self.classifier(self.decoder([features[-1]]))}
        if self._name == "dpt":
            return {"main": self._dpt(features[-4:])}
        last = features[-1]
        strides = [min(stride, self._stages[-1].stride) for stride in PYRAMID]
        least = 8 if self._name == "pan" else 1  # which halves the last stage three times
        height, width = (max(size, least) * self._stages[-1].stride for size in last.shape[-2:])  # of SMP's image
        levels = [last.new_zeros(len(last), 0, height, width)]  # SMP's image, of which the size counts
        for index, stride in zip(self._chosen, strides, strict=True):
            size = height // stride, width // stride
            levels.append(last.new_zeros(len(last), 0, *size) if index is None else _padded(features[index], size))
        logits = self.classifier(self.decoder(levels))
        finest = next(index for index in self._chosen if index is not None)
        step = height // logits.shape[-2]  # image pixels per step of the logits
        rows, columns = (  # rounded up, without a negative number, which ONNX divides otherwise than Python
            (size * self._stages[finest].stride + step - 1) // step for size in features[finest].shape[-2:]
        )
        return {"main": logits[:, :, :rows, :columns]}

    def _dpt(self, features: Sequence[Tensor]) -> Tensor:
        """Logits at 8 times the size of a ViT's feature maps, which must be even for SMP."""
        height, width = features[-1].shape[-2:]
        even = [_padded(feature, (height + height % 2, width + width % 2)) for feature in features]
        return self.classifier(self.decoder(even, [None] * 4))[:, :, : 8 * height, : 8 * width]


def _padded(feature: Tensor, size: tuple[int, int]) -> Tensor:
    """The feature map with its last row and column repeated up to a size: SMP doubles sizes exactly."""
    height, width = feature.shape[-2:]
    return F.pad(feature, (0, size[1] - width, 0, size[0] - height), mode="replicate")


def _chosen(decoder: str, stages: Sequence[Stage]) -> list[int | None]:
    """The index of the stage for each level of SMP's pyramid; None where a decoder does without."""
    strides = [stage.stride for stage in stages]
    there = f"the backbone's are {', '.join(map(str, strides))}"
    if decoder in LAST_ONLY:
        return [len(stages) - 1]
    if decoder == "dpt":
        if len(stages) < 4 or len(set(strides[-4:])) > 1:
            raise ValueError(f"decoder=dpt needs four stages of one stride, such as backbone=vit_small's; {there}")
        return []
    levels = [strides.index(stride) if stride in strides else None for stride in PYRAMID]
    if decoder == "deeplabv3plus" or (decoder == "pan" and strides[-1] < 32):  # of dilated networks
        unfit = strides[-1] not in (8, 16) if decoder == "deeplabv3plus" else strides[-2:] != [16, 16]
        if levels[1] is None or levels[2] is None or len(stages) < 4 or unfit:
            least = "4, 8 and 8 or 16" if decoder == "deeplabv3plus" else "4, 8, 16 and 16 or 32"
            raise ValueError(
                f"decoder={decoder} needs stages of strides {least}; {there}. backbone.output_stride sets it"
            )
        return [*levels[:3], len(stages) - 2, len(stages) - 1]
    missing = [stride for stride, index in zip(PYRAMID, levels, strict=True) if index is None]
    if set(missing) - ({2} if decoder not in NEEDS_STRIDE_2 else set()):
        raise ValueError(
            f"decoder={decoder} needs stages of strides {', '.join(map(str, PYRAMID[decoder not in NEEDS_STRIDE_2 :]))}"
            f"; {there}. Set backbone.output_stride=32 (timm: null)"
        )
    return levels


def _build(decoder: str, channels: list[int], stages: Sequence[Stage], num_classes: int) -> tuple[nn.Module, nn.Module]:
    """A decoder and its convolution to the classes, with the defaults of SMP's model of that name."""
    from segmentation_models_pytorch.base import SegmentationHead
    from segmentation_models_pytorch.decoders import (
        deeplabv3,
        dpt,
        fpn,
        linknet,
        manet,
        pan,
        pspnet,
        segformer,
        unet,
        unetplusplus,
        upernet,
    )

    def classify(width: int, kernel_size: int) -> nn.Module:
        return SegmentationHead(width, num_classes, kernel_size=kernel_size)

    rates: dict[str, Any] = {"atrous_rates": (12, 24, 36), "aspp_dropout": 0.5}
    match decoder:
        case "unet":
            return unet.decoder.UnetDecoder(channels, UNET_CHANNELS), classify(16, 3)
        case "unetplusplus":
            return unetplusplus.decoder.UnetPlusPlusDecoder(channels, UNET_CHANNELS), classify(16, 3)
        case "manet":
            return manet.decoder.MAnetDecoder(channels, list(UNET_CHANNELS)), classify(16, 3)
        case "linknet":
            return linknet.decoder.LinknetDecoder(channels), classify(32, 1)
        case "fpn":
            return fpn.decoder.FPNDecoder(channels), classify(128, 1)
        case "pspnet":
            return pspnet.decoder.PSPDecoder(channels), classify(512, 3)
        case "upernet":
            return upernet.decoder.UPerNetDecoder(channels), classify(256, 1)
        case "segformer":
            return segformer.decoder.SegformerDecoder(channels), classify(256, 1)
        case "pan":
            return pan.decoder.PANDecoder(channels, 5, 32), classify(32, 3)
        case "deeplabv3":
            plain = deeplabv3.decoder.DeepLabV3Decoder(channels[-1], 256, aspp_separable=False, **rates)
            return plain, classify(256, 1)
        case "deeplabv3plus":
            stride = 8 if stages[-1].stride == 8 else 16
            plus = deeplabv3.decoder.DeepLabV3PlusDecoder(
                channels, 5, 256, output_stride=stride, aspp_separable=True, **rates
            )
            return plus, classify(256, 1)
        case _:
            four = stages[-4:]
            widths, strides = [stage.channels for stage in four], [stage.stride for stage in four]
            whole = dpt.decoder.DPTDecoder(widths, strides, encoder_has_prefix_tokens=False, readout="ignore")
            return whole, dpt.decoder.DPTSegmentationHead(256, num_classes, upsampling=1)
