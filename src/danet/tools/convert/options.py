"""The options of convert.py, in a module that does not import PyTorch, so that they are checked at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from danet.arguments import ExistingFile, PositiveInt

SUFFIXES = {"danet": (".safetensors", ".pt"), "official": (".pt", ".pth", ".tar"), "mmseg": (".pt", ".pth")}

SETTINGS = ("output_stride", "multi_grid", "align_corners")  # that weights do not show


@dataclass(frozen=True)
class Setting:
    """A property of the model that weights do not show."""

    value: Any
    origin: str  # where the value is from, in words


Settings = dict[str, Setting]  # by SETTINGS, and "head.OPTION"


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """What to convert. The underscores are not part of the keys: these are `from` and `in`."""

    from_: Literal["official", "mmseg", "torchvision", "article", "danet"]  # whose file it is; danet: ours
    in_: ExistingFile
    out: str
    to: Literal["danet", "official", "mmseg"] = "danet"
    dataset: dict[str, Any] | None = None  # whose class names and colours the result gets
    output_stride: Literal["auto", 8, 16, 32] = "auto"
    multi_grid: Literal["auto"] | list[PositiveInt] | None = "auto"  # absolute dilations of layer4; null: none
    align_corners: Literal["auto"] | bool = "auto"

    @property
    def target(self) -> Path:
        """The file to write."""
        return Path(self.out).expanduser()

    @property
    def given(self) -> list[str]:
        """The keys about the model that the user set."""
        return [key for key in SETTINGS if getattr(self, key) != "auto"] + ["dataset"] * (self.dataset is not None)

    def problems(self) -> list[str]:
        """Contradictions between the keys, one line each."""
        out, suffixes = self.target, SUFFIXES[self.to]
        lines = []
        if (self.from_ == "danet") == (self.to == "danet"):
            lines.append(f"from = {self.from_!r}, to = {self.to!r}: one of them must be danet, the other not")
        if out.suffix not in suffixes:
            lines.append(f"out = {self.out!r}: to={self.to} must end with {' or '.join(suffixes)}")
        if out.resolve() == Path(self.in_).resolve():
            lines.append(f"out = {self.out!r}: is the file to read; give another name")
        if out.is_dir():
            lines.append(f"out = {self.out!r}: is a folder; give a file in it")
        if self.from_ == "danet":
            lines += [f"{key}: not with from=danet; such a file says it itself" for key in self.given]
        return lines
