"""The options of export.py, in a module that does not import PyTorch, so that they are checked at once."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from danet.arguments import Fraction, NonNegativeFloat, Temperature
from danet.config.sections import ModelSource


@dataclass(frozen=True, kw_only=True)
class ExportConfig(ModelSource):
    """What to export, as what, and how well it has to agree with PyTorch."""

    to: Literal["onnx", "openvino", "torch_export", "safetensors"] = "onnx"
    out: str  # the file
    temperature: Temperature = "auto"  # divides the logits; auto: as fitted to the weights, else 1
    min_agreement: Fraction = 0.9999  # share of pixels with the same label
    max_difference: NonNegativeFloat = 0.001  # of any logit

    def problems(self) -> list[str]:
        """Problems between the keys, one line each."""
        from danet.tools.export.exported import FORMS

        lines = super().problems()
        form, out = FORMS[self.to], Path(self.out).expanduser()
        if out.suffix != form.suffix:
            lines.append(f"out = {self.out!r}: with to={self.to} its name must end in {form.suffix}")
        for file in (out, *([out.with_suffix(form.beside)] if form.beside else [])):
            if file.is_dir():
                lines.append(f"out = {self.out!r}: {file.name} is a folder; name a file")
        if absent := [name for name in form.packages if importlib.util.find_spec(name) is None]:
            lines.append(f"to = {self.to!r}: needs {', '.join(absent)}; pip install 'danet[{form.extra}]'")
        return lines
