"""The options of serve.py, in a module that does not import PyTorch, so that they are checked at once."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import Field

from danet.arguments import PositiveFloat, PositiveInt
from danet.config.sections import DeviceConfig, ModelSource


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """Limits of a request."""

    megabytes: PositiveFloat = 20  # maximum size of a picture's file
    longest_side: PositiveInt = 1024  # pixels; larger pictures are reduced to it
    seconds: PositiveFloat = 60  # to receive a picture, and again to run the model
    waiting: PositiveInt = 8  # maximum length of the queue
    page_size: PositiveFloat = 40  # maximum size of query and key in an answer [MB]


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ModelSource):
    """Options of src/serve.py."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, lt=2**16)] = 8765  # 0: any free one
    token: str | None = None  # required of each request; null: a random one, or none if only this machine can connect
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    runtime: DeviceConfig = field(default_factory=DeviceConfig)

    def problems(self) -> list[str]:
        """Problems between the keys, a line each."""
        lines = super().problems()
        if absent := [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]:
            lines.append(f"serve.py needs {', '.join(absent)}: pip install 'danet[serve]'")
        return lines
