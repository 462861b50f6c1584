"""Ours in the forms that it is deployed in: one whole image to labels, by torch.compile, ONNX Runtime and OpenVINO.

A form's note says how long it took to be ready: to be exported, compiled and run once.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danet.services.weights import Weights
from danet.tools.export import exported
from danet_benchmark import inference, networks
from danet_benchmark.networks import Context, Work
from danet_benchmark.timing import Contestant, contest

Run = Callable[[], Tensor]  # labels of the work's image


def rows(context: Context) -> Iterator[dict[str, Any]]:
    """A row for each form; the first is ours as configured."""
    settings = context.config.inference
    forms: dict[str, Callable[[], Run]] = {}
    for dtype in dict.fromkeys((context.dtype, torch.float32)):
        name = str(dtype).removeprefix("torch.")
        work = context.work(settings.sizes[0], 1, settings.num_classes, dtype)
        forms[f"PyTorch, {name}"] = partial(inference.start, inference.ours, context.danet, work)
        forms[f"torch.compile, {name}"] = partial(inference.start, _compiled, context.danet, work)
        if context.device.type == "cpu":
            forms[f"OpenVINO, {name}"] = partial(_openvino, context, work)
    if context.device.type == "cpu":
        forms["ONNX Runtime, float32"] = partial(_exported, context, work, "onnx", exported.FORMS["onnx"].run)
    seconds: dict[str, float] = {}

    def ready(name: str) -> Run:
        begin = time.perf_counter()
        run = forms[name]()
        run()
        seconds[name] = time.perf_counter() - begin
        return run

    contestants = [Contestant(name, partial(ready, name)) for name in forms]
    case = {"case": f"{work.size[0]} x {work.size[1]}", "size": list(work.size)}
    for timing in contest(contestants, device=context.device, seconds=settings.seconds, at_least=settings.at_least):
        timing.note = f"ready after {seconds[timing.name]:.0f} s" if timing.name in seconds else ""
        yield timing.row(**case)


def _compiled(danet: networks.DANet, work: Work) -> inference.Segment:
    segment: Any = torch.compile(inference.ours(danet, work))
    return segment


def _openvino(context: Context, work: Work) -> Run:
    bfloat16 = work.dtype == torch.bfloat16
    return _exported(context, work, "openvino", partial(exported.run_openvino, bfloat16=bfloat16))


def _exported(context: Context, work: Work, form: str, run: Callable[[Path], exported.Run]) -> Run:
    model = context.danet.build(work.num_classes).eval().requires_grad_(False)
    networks.wake(model)
    described = Weights(tensors={}, config=None, class_names=(), palette=(), facts={})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{exported.FORMS[form].suffix}"
        exported.FORMS[form].write(model, described, path)
        answer = run(path)
    image, _ = work.batch()
    return lambda: answer(image)["labels"]
