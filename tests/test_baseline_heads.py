"""Heads of other families against the libraries that they come from, with the same weights."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mmseg_peer
from conftest import load
from danet.config import ConfigError
from danet.interfaces import Stage
from danet.model import build_model
from danet.registry import HEADS
from danet_benchmark import peers
from test_attention_heads import translated

smp = pytest.importorskip("segmentation_models_pytorch")

K = 5
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": ("Unet", {}),
    "unetplusplus": ("UnetPlusPlus", {}),
    "fpn": ("FPN", {}),
    "pspnet": ("PSPNet", {}),
    "deeplabv3": ("DeepLabV3", {"encoder_output_stride": 8}),
    "deeplabv3plus": ("DeepLabV3Plus", {"encoder_output_stride": 16}),
    "upernet": ("UPerNet", {}),
    "segformer": ("Segformer", {}),
    "pan": ("PAN", {"encoder_output_stride": 16}),
    "linknet": ("Linknet", {}),
    "manet": ("MAnet", {}),
    "dpt": ("DPT", {"encoder_name": "tu-vit_tiny_patch16_224", "decoder_readout": "ignore"}),
}


@pytest.mark.parametrize("decoder", MODELS)
def test_a_decoder_is_smps(decoder: str) -> None:
    """Logits at the image's size, of SMP's whole model and of our head on its encoder's features."""
    name, options = MODELS[decoder]
    side = 224 if decoder == "dpt" else 128
    torch.manual_seed(0)
    whole = getattr(smp, name)(
        **{"encoder_name": "tu-resnet18", "encoder_weights": None, "classes": K, **options}
    ).eval()
    image = torch.randn(2, 3, side, side)
    with torch.no_grad():
        encoded = whole.encoder(image)
        features = encoded[0] if decoder == "dpt" else encoded[1:]
        stages = [Stage(feature.shape[1], side // feature.shape[-1]) for feature in features]
        head = HEADS["smp"](stages, K, decoder=decoder).eval()
        head.decoder.load_state_dict(whole.decoder.state_dict())
        head.classifier.load_state_dict(whole.segmentation_head.state_dict())
        logits = head(features)["main"]
        resized = F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=head.align_corners)
        torch.testing.assert_close(resized, whole(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decoder", MODELS)
def test_a_decoder_starts_as_smps(decoder: str) -> None:
    """The spread of each tensor's initial values is SMP's; the values are the seed's."""
    name, options = MODELS[decoder]
    encoder = {"encoder_name": "tu-resnet18", "encoder_weights": None}
    whole = getattr(smp, name)(**{**encoder, "classes": K, **options})
    dilated = {"deeplabv3": 8, "deeplabv3plus": 16, "pan": 16}.get(decoder, 32)
    body = {"name": "timm", "model": "resnet18", "output_stride": dilated}
    if decoder == "dpt":
        body = {"name": "timm", "model": "vit_tiny_patch16_224"}
    head = build_model(body, {"name": "smp", "decoder": decoder}, K).head
    for own, peer in ((head.decoder, whole.decoder), (head.classifier, whole.segmentation_head)):
        expected = peer.state_dict()
        for key, value in own.state_dict().items():
            if value.shape != expected[key].shape:  # pspnet, whose encoder SMP cuts at stride 8
                assert decoder == "pspnet", key
            elif value.numel() > 500:
                assert value.std() == pytest.approx(float(expected[key].std()), rel=0.2, abs=1e-8), key
            elif key.endswith("bias"):
                assert value.any() == expected[key].any(), key


@pytest.mark.parametrize("decoder", sorted({*MODELS} - {"dpt"}))
def test_a_decoder_takes_any_size(decoder: str) -> None:
    """Feature maps of an image of 83 x 101 pixels; no side is divisible by a stride."""
    strides = (2, 4, 8, 16, 16) if decoder in ("deeplabv3plus", "pan") else (2, 4, 8, 16, 32)
    stages = [Stage(width, stride) for width, stride in zip((8, 8, 16, 32, 64), strides, strict=True)]
    features = [torch.randn(2, stage.channels, -(-83 // stage.stride), -(-101 // stage.stride)) for stage in stages]
    logits = HEADS["smp"](stages, K, decoder=decoder).eval()(features)["main"]
    if decoder in ("pspnet", "deeplabv3"):
        assert logits.shape == (2, K, 3, 4)
    elif decoder in ("fpn", "upernet", "segformer", "deeplabv3plus", "pan"):  # stride 4
        assert logits.shape == (2, K, 21, 26)
    else:  # all of the image, rounded up to an even number
        assert logits.shape == (2, K, 84, 102)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["head.decoder=unet"], "decoder=unet needs stages of strides 4, 8, 16, 32; the backbone's are 4, 8, 8, 8"),
        (["head.decoder=linknet", "backbone.output_stride=32"], "decoder=linknet needs stages of strides 2, 4"),
        (
            ["backbone.output_stride=32"],
            "decoder=deeplabv3plus needs stages of strides 4, 8 and 8 or 16; .* 4, 8, 16, 32",
        ),
        (["head.decoder=dpt"], "decoder=dpt needs four stages of one stride, such as backbone=vit_small's"),
        (["head=setr", "head.decoder=mla"], "decoder=mla needs stages of one stride"),
    ],
    ids=str,
)
def test_a_backbone_that_does_not_fit_is_a_configuration_error(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(["backbone=resnet18", "head=smp", "loss.weights={main: 1.0}", *overrides], probe=True)


def compared(head: Any, reference: Any, features: list[Tensor], *renamed: tuple[str, str]) -> None:
    reference = mmseg_peer.randomize(reference).eval()
    head.load_state_dict(translated(reference.state_dict(), (*renamed, *head.foreign_keys["mmseg"])))
    with torch.no_grad():
        torch.testing.assert_close(head.eval()(features)["main"], reference(features), rtol=1e-5, atol=1e-5)


def test_hrnets_head_is_mmsegmentations() -> None:
    heads: Any = mmseg_peer.mmseg_models().decode_heads
    widths = (6, 12, 24, 48)
    features = [torch.randn(2, width, 32 // 2**i, 48 // 2**i) for i, width in enumerate(widths)]
    joined = {
        "in_channels": widths,
        "in_index": (0, 1, 2, 3),
        "input_transform": "resize_concat",
        "channels": sum(widths),
    }
    options = {"num_convs": 1, "kernel_size": 1, "concat_input": False, "dropout_ratio": -1, "align_corners": False}
    reference = heads.FCNHead(**joined, **options, num_classes=K, norm_cfg=peers.BATCH_NORM)
    compared(HEADS["hrnet"]([Stage(w, 4 * 2**i) for i, w in enumerate(widths)], K), reference, features)


@pytest.mark.parametrize("decoder", ["naive", "pup", "mla"])
def test_setrs_heads_are_mmsegmentations(decoder: str) -> None:
    heads: Any = mmseg_peer.mmseg_models().decode_heads
    features = [torch.randn(2, 16, 5, 7) for _ in range(4)]
    common = {
        "num_classes": K,
        "norm_cfg": peers.BATCH_NORM,
        "align_corners": False,
        "dropout_ratio": 0,
        "channels": 32,
    }
    if decoder == "mla":
        necks: Any = mmseg_peer.mmseg_models().necks
        reference = torch.nn.Sequential(
            necks.MLANeck([16] * 4, 16, norm_cfg=peers.BATCH_NORM, act_cfg={"type": "ReLU"}),
            heads.SETRMLAHead(in_channels=(16,) * 4, in_index=(0, 1, 2, 3), mla_channels=8, **common),
        )
    else:
        kind = (
            {"num_convs": 1, "up_scale": 4, "kernel_size": 1} if decoder == "naive" else {"num_convs": 4, "up_scale": 2}
        )
        reference = heads.SETRUPHead(in_channels=16, in_index=3, **kind, **common)
    neck = (("0.norm.", "neck.norms."), ("0.mla.channel_proj.", "neck.projections."))
    neck += (("0.mla.feat_extract.", "neck.convs."), ("1.conv_seg.", "classifier.1."), ("1.", ""))
    head = HEADS["setr"]([Stage(16, 16)] * 4, K, decoder=decoder, channels=32)
    compared(head, reference, features, *(neck if decoder == "mla" else ()))
