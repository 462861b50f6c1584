"""Ours in the forms that it is deployed in: one whole image to labels, by torch.compile, ONNX Runtime and OpenVINO.

Each form is made before the contest, and how long that took is its remark; memory is what it takes besides.
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
    work = context.work(settings.sizes[0], 1, settings.num_classes)
    types = dict.fromkeys((context.dtype, torch.float32))
    forms: dict[str, Callable[[], Run]] = {}
    for dtype in types:
        name = str(dtype).removeprefix("torch.")
        same = context.work(work.size, 1, settings.num_classes, dtype)
        forms[f"PyTorch, {name}"] = partial(_plain, context, same)
        forms[f"torch.compile, {name}"] = partial(_compiled, context, same)
        if context.device.type == "cpu":
            forms[f"OpenVINO, {name}"] = partial(_openvino, context, same)
    if context.device.type == "cpu":
        forms["ONNX Runtime, float32"] = partial(_onnx, context, work)
    contestants = []
    for name, make in forms.items():
        begin = time.perf_counter()
        try:
            run = make()
            note = f"ready after {time.perf_counter() - begin:.0f} s"
        except Exception as error:  # the others still can
            run, note = partial(_fail, error), ""
        contestants.append(Contestant(name, partial(lambda ready: ready, run), note))
    case = {"case": f"{work.size[0]} x {work.size[1]}", "size": list(work.size)}
    timings = contest(contestants, device=context.device, seconds=settings.seconds, at_least=settings.at_least)
    yield from (timing.row(**case) for timing in timings)


def _fail(error: Exception) -> Tensor:
    raise error


def _plain(context: Context, work: Work) -> Run:
    return inference.start(inference.ours, context.danet, work)


def _compiled(context: Context, work: Work) -> Run:
    segment: Any = torch.compile(inference.ours(context.danet, work))
    image, _ = work.batch()

    def run() -> Tensor:
        with torch.inference_mode(), work.autocast():
            return segment(image)

    run()
    return run


def _onnx(context: Context, work: Work) -> Run:
    return _exported(context, work, "onnx", exported.FORMS["onnx"].run)


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
    answer(image)
    return lambda: answer(image)["labels"]
