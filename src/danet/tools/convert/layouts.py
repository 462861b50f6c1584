"""Tables of key names: ours beside the official DANet code's, mmsegmentation's and the tutorial article's.

An entry is a module or a parameter that stands in no module of the table. The names of a ResNet's stages are
torchvision's everywhere, behind a prefix.
"""

from collections.abc import Iterable
from dataclasses import dataclass

# ours, in the official code (encoding/models/sseg/danet.py), in mmsegmentation (DAHead)
DANET_HEAD = (
    ("head.branches.pam.conv_in.0", "head.conv5a.0", "decode_head.pam_in_conv.conv"),
    ("head.branches.pam.conv_in.1", "head.conv5a.1", "decode_head.pam_in_conv.bn"),
    ("head.branches.pam.attention.query", "head.sa.query_conv", "decode_head.pam.query_project"),
    ("head.branches.pam.attention.key", "head.sa.key_conv", "decode_head.pam.key_project"),
    ("head.branches.pam.attention.value", "head.sa.value_conv", "decode_head.pam.value_project"),
    ("head.branches.pam.attention.gamma", "head.sa.gamma", "decode_head.pam.gamma.scale"),
    ("head.branches.pam.conv_out.0", "head.conv51.0", "decode_head.pam_out_conv.conv"),
    ("head.branches.pam.conv_out.1", "head.conv51.1", "decode_head.pam_out_conv.bn"),
    ("head.branches.cam.conv_in.0", "head.conv5c.0", "decode_head.cam_in_conv.conv"),
    ("head.branches.cam.conv_in.1", "head.conv5c.1", "decode_head.cam_in_conv.bn"),
    ("head.branches.cam.attention.gamma", "head.sc.gamma", "decode_head.cam.gamma.scale"),
    ("head.branches.cam.conv_out.0", "head.conv52.0", "decode_head.cam_out_conv.conv"),
    ("head.branches.cam.conv_out.1", "head.conv52.1", "decode_head.cam_out_conv.bn"),
    ("head.aux_classifiers.pam.1", "head.conv6.1", "decode_head.pam_conv_seg"),
    ("head.aux_classifiers.cam.1", "head.conv7.1", "decode_head.cam_conv_seg"),
    ("head.classifier.1", "head.conv8.1", "decode_head.conv_seg"),
)

# ours, in mmsegmentation (FCNHead with one convolution, on the third stage)
AUXILIARY_HEAD = (
    ("auxiliary.conv_in.0", "auxiliary_head.convs.0.conv"),
    ("auxiliary.conv_in.1", "auxiliary_head.convs.0.bn"),
    ("auxiliary.classifier.1", "auxiliary_head.conv_seg"),
)

# ours, in the article, whose convB is query, key and value in one
ARTICLE_HEAD = (
    ("head.pam.0.0", "decoder.conv1.0"),
    ("head.pam.0.1", "decoder.conv1.1"),
    ("head.pam.1.query", "decoder.PositionAttention.convB"),
    ("head.pam.1.key", "decoder.PositionAttention.convB"),
    ("head.pam.1.value", "decoder.PositionAttention.convB"),
    ("head.pam.1.gamma", "decoder.PositionAttention.gamma"),
    ("head.cam.0.0", "decoder.conv2.0"),
    ("head.cam.0.1", "decoder.conv2.1"),
    ("head.cam.1.gamma", "decoder.ChannelAttention.beta"),
    ("head.fuse.0", "decoder.conv3.0"),
    ("head.fuse.1", "decoder.conv3.1"),
    ("head.classifier.0.0", "decoder.conv4.0"),
    ("head.classifier.0.1", "decoder.conv4.1"),
    ("head.classifier.1", "decoder.conv4.3"),
)

# The three convolutions of a deep stem (ours: conv1.0, conv1.3, conv1.6) with their normalisations.
MMSEG_STEM = {f"conv1.{index}": f"stem.{index}" for index in (0, 1, 3, 4, 6)} | {"bn1": "stem.7"}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one code base names its tensors.

    Attributes:
        backbone: prefix of the backbone's keys.
        stem: the deep stem's modules where they are not called as ours, without prefixes.
        modules: ours -> theirs, for all but the backbone.
        classifier: the key whose first dimension is the number of classes; None in a backbone alone.
        gamma: shape of the attentions' factors, which are single numbers.
        unused: prefixes of keys that take no part in the model's output -> why.
    """

    backbone: str
    stem: dict[str, str]
    modules: dict[str, str]
    classifier: str | None
    gamma: tuple[int, ...] = (1,)
    unused: dict[str, str]

    def key(self, own: str, *, deep_stem: bool) -> str | None:
        """Their name of our key; None where they have none."""
        if own.startswith("backbone."):
            renamed = self.stem if deep_stem else {}
            own = own.removeprefix("backbone.")
            return self.backbone + (_rename(own, renamed) or own)
        return _rename(own, self.modules)


def _rename(key: str, names: dict[str, str]) -> str | None:
    module, _, tensor = key.rpartition(".")
    if module in names:
        return f"{names[module]}.{tensor}"
    return names.get(key)


OFFICIAL = Layout(
    backbone="pretrained.",
    stem={},
    modules={ours: official for ours, official, _ in DANET_HEAD},
    classifier="head.conv8.1.weight",
    unused={"pretrained.fc.": "the backbone's ImageNet classifier, which the code of 2018 kept"},
)
MMSEG = Layout(
    backbone="backbone.",
    stem=MMSEG_STEM,
    modules={ours: mmseg for ours, _, mmseg in DANET_HEAD} | dict(AUXILIARY_HEAD),
    classifier="decode_head.conv_seg.weight",
    gamma=(),
    unused={},
)
ARTICLE = Layout(
    backbone="ResNet50.",
    stem={},
    modules=dict(ARTICLE_HEAD),
    classifier="decoder.conv4.3.weight",
    unused={f"decoder.PositionAttention.{name}.": "the article's code never calls it" for name in ("convC", "convD")},
)
LAYOUTS = {"official": OFFICIAL, "mmseg": MMSEG, "article": ARTICLE}


def backbone_layout(keys: Iterable[str]) -> Layout:
    """The layout of a ResNet alone: torchvision's, or mmsegmentation's with or without its prefix."""
    keys = list(keys)
    prefix = "backbone." if all(key.startswith("backbone.") for key in keys) else ""
    stem = MMSEG_STEM if f"{prefix}stem.0.weight" in keys else {}
    return Layout(
        backbone=prefix, stem=stem, modules={}, classifier=None, unused={f"{prefix}fc.": "the ImageNet classifier"}
    )
