"""Options of convert.py, in a module that does not import PyTorch, so that checking them is instant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from danet.arguments import ExistingFile, PositiveInt
from danet.services import atomic_files

SUFFIXES = {"danet": (".safetensors", ".pt"), "official": (".pt", ".pth", ".tar"), "mmseg": (".pt", ".pth")}

SETTINGS = ("output_stride", "multi_grid", "align_corners")  # not visible in the weights


@dataclass(frozen=True)
class Setting:
    """A property of the model that is not visible in its weights."""

    value: Any
    origin: str  # where the value comes from, in words


Settings = dict[str, Setting]  # keys: SETTINGS and "head.OPTION"


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """What to convert. The keys are `from` and `in`, without underscores."""

    from_: Literal["official", "mmseg", "torchvision", "article", "danet"]  # origin of the file; danet: ours
    in_: ExistingFile
    out: str
    to: Literal["danet", "official", "mmseg"] = "danet"
    dataset: dict[str, Any] | None = None  # source of the class names and colors
    output_stride: Literal["auto", 8, 16, 32] = "auto"
    multi_grid: Literal["auto"] | list[PositiveInt] | None = "auto"  # absolute dilations of layer4; null: none
    align_corners: Literal["auto"] | bool = "auto"

    @property
    def target(self) -> Path:
        """The file to write."""
        return Path(self.out).expanduser()

    @property
    def given(self) -> list[str]:
        """The keys describing the model that the user set."""
        return [key for key in SETTINGS if getattr(self, key) != "auto"] + ["dataset"] * (self.dataset is not None)

    def problems(self) -> list[str]:
        """Contradictions between the keys, one line each."""
        out, suffixes = self.target, SUFFIXES[self.to]
        lines = []
        if (self.from_ == "danet") == (self.to == "danet"):
            lines.append(f"from = {self.from_!r}, to = {self.to!r}: exactly one of them must be danet")
        if out.suffix not in suffixes:
            lines.append(f"out = {self.out!r}: with to={self.to} it must end with {' or '.join(suffixes)}")
        if out.resolve() == Path(self.in_).resolve():
            lines.append(f"out = {self.out!r}: same as the input file; use another name")
        if out.is_dir():
            lines.append(f"out = {self.out!r}: is a folder; name a file in it")
        manifest = out.with_suffix(".json")  # of a .pt file
        if out.suffix == ".pt" and self.to == "danet" and manifest.is_file() and not _is_manifest_of(manifest, out):
            lines.append(f"out = {self.out!r}: its manifest would replace {manifest}; use another name")
        if self.from_ == "danet":
            lines += [f"{key}: not valid with from=danet, whose files contain it" for key in self.given]
        return lines


def _is_manifest_of(manifest: Path, checkpoint: Path) -> bool:
    try:
        return bool(atomic_files.read_json(manifest).get("file") == checkpoint.name)
    except (ValueError, OSError):
        return False
