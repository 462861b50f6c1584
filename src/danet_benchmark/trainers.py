"""Training steps of whole models, ours and others', from images and labels in main memory to new weights.

Shapes: B images, H x W image size.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from danet.interfaces import IMAGENET_MEAN, IMAGENET_STD
from danet.losses.segmentation_loss import build_loss, mean_loss
from danet.optimizers import build_optimizer
from danet_benchmark import networks, peers
from danet_benchmark.networks import IGNORE, DANet, Work
from danet_benchmark.timing import wait

SMALL = 64  # pixels, of the images of a first step: what is made once is made then


class Trainer:
    """Training steps of a model on one batch.

    Args:
        model: on the device, in training mode.
        loss: what to minimize, from images (B, 3, H, W) and labels (B, H, W), uint8 in main memory.
        optimizer: of all its parameters.
        work: the batch.
        watched: modules and the parts that they are.
        compiled: whether the model is, so that its first step should be of the batch's size.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        work: Work,
        watched: list[tuple[nn.Module | None, str]] | None = None,
        *,
        compiled: bool = False,
    ) -> None:
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.parts = Parts(work.device)
        for module, part in watched or []:
            if module is not None:
                self.parts.watch(module, part)
        self.parts.enabled = False
        # Small, to be quick, unless that would be compiled first, and then again for free sizes.
        self.batch = work.batch() if compiled else work.batch((SMALL, SMALL))
        self.step()  # the optimizer's memory is there from now on, as in every step of a run but the first
        self.batch = work.batch()
        self.has_parts = bool(watched)
        self.parts.enabled = self.has_parts and work.device.type == "cpu"

    def step(self) -> None:
        """One step."""
        self.parts.begin()
        self.loss(*self.batch).backward()
        self.parts.enter("optimizer")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.parts.end()


def ours(danet: DANet, work: Work, *, recompute: bool = False, compiled: bool = False) -> Trainer:
    """Ours, as a run does it: channels_last, losses on the logits that the model gives at stride 8.

    Args:
        danet: the configuration.
        work: what to do.
        recompute: the backbone's activations are computed again in the backward pass instead of kept.
        compiled: by torch.compile.
    """
    model = danet.build(work.num_classes)
    networks.wake(model).to(work.device).to(memory_format=torch.channels_last)
    if recompute:
        model.backbone.recompute = True
    criterion = build_loss(danet.loss, work.num_classes, list).to(work.device)
    network: Any = torch.compile(model) if compiled else model

    def loss(image: Tensor, label: Tensor) -> Tensor:
        image, label = (tensor.to(work.device, non_blocking=True) for tensor in (image, label))
        with work.autocast():
            logits = network(image)
        terms = criterion(logits, label.long(), align_corners=model.align_corners)
        means = [term.weight * mean_loss(term.total, term.count) for term in terms.values()]
        return torch.stack(means).sum()

    watched = [] if compiled else [(model.backbone, "backbone"), (model.head, "head"), (model.auxiliary, "head")]
    return Trainer(model.train(), loss, build_optimizer(danet.optimizer, model), work, watched, compiled=compiled)


def mmseg(danet: DANet, work: Work) -> Trainer:
    """The DANet of mmsegmentation as it ships: its own preprocessing, losses and accuracies, contiguous tensors."""
    samples = peers.mmseg_module("mmseg.structures").SegDataSample
    pixels = peers.mmseg_module("mmengine.structures").PixelData
    preprocessing = peers.mmseg_module("mmseg.models.data_preprocessor").SegDataPreProcessor
    model = networks.mmseg(danet, work).train()

    def loss(image: Tensor, label: Tensor) -> Tensor:
        data = {"inputs": list(image), "data_samples": [samples(gt_sem_seg=pixels(data=x[None].long())) for x in label]}
        size = (image.shape[2], image.shape[3])
        prepare = preprocessing(IMAGENET_MEAN, IMAGENET_STD, size=size, bgr_to_rgb=True, pad_val=0, seg_pad_val=IGNORE)
        data = prepare.to(work.device)(data, training=True)
        with work.autocast():
            return model.parse_losses(model.loss(data["inputs"], data["data_samples"]))[0]

    watched = [
        (model.backbone, "backbone"),
        (model.decode_head, "head"),
        (model.auxiliary_head if model.with_auxiliary_head else None, "head"),
    ]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.0005)
    return Trainer(model, loss, optimizer, work, watched)


def official(danet: DANet, work: Work) -> Trainer:
    """The official network written plainly, with its three losses."""
    model = networks.official(danet, work)
    return _plainly(model, work, [(model.backbone, "backbone"), (model.head, "head")])


def smp(danet: DANet, work: Work) -> Trainer:
    """segmentation-models-pytorch's DeepLabV3, another network."""
    return _plainly(networks.smp(danet, work), work)


def torchvision(danet: DANet, work: Work) -> Trainer:
    """The DeepLabV3 of torchvision, another network."""
    return _plainly(networks.torchvision(danet, work), work)


def _plainly(model: nn.Module, work: Work, watched: list[tuple[nn.Module | None, str]] | None = None) -> Trainer:
    """With the sum of the cross entropies of all logits, which the model gives at the image's size."""

    def loss(image: Tensor, label: Tensor) -> Tensor:
        target = label.to(work.device, non_blocking=True).long()
        with work.autocast():
            outputs = networks.tensors(model(networks.normalized(image, work)))
            return torch.stack([F.cross_entropy(logits, target, ignore_index=IGNORE) for logits in outputs]).sum()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    return Trainer(model.train(), loss, optimizer, work, watched)


class Parts:
    """Divide the time between `begin` and `end` among parts, forward and backward.

    Nothing is run twice: marks between the parts read the clock in the forward pass, and again in the backward pass.

    What belongs to no watched module is "losses", once a watched module has run; before it is "input".

    Args:
        device: is waited for at every mark, which costs time on a GPU: switch `enabled` off for the whole step's.

    Attributes:
        enabled: whether marks do anything.
        runs: seconds by part, of every run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.enabled = True
        self.runs: list[Counter[str]] = []
        self._part, self._since = "input", 0.0

    def begin(self) -> None:
        """A step begins."""
        if self.enabled:
            wait(self.device)
            self.runs.append(Counter())
            self._part, self._since = "input", time.perf_counter()

    def enter(self, part: str) -> None:
        """What comes now belongs to this part."""
        if self.enabled and self.runs:
            wait(self.device)
            now = time.perf_counter()
            self.runs[-1][self._part] += now - self._since  # type: ignore[assignment]  # seconds are no counts
            self._part, self._since = part, now

    def end(self) -> None:
        """The step has ended."""
        self.enter("input")

    def watch(self, module: nn.Module, part: str) -> None:
        """Let what a module does, forward and backward, be a part."""
        forward = module.forward

        def watched(*args: Any) -> Any:
            args = _marked(args, lambda: self.enter("losses"))
            self.enter(part)
            output = _marked(forward(*args), lambda: self.enter(part))
            self.enter("losses")
            return output

        module.forward = watched  # mmsegmentation calls it by name, past PyTorch's hooks

    def medians(self) -> dict[str, float]:
        """Seconds by part."""
        names = {name for run in self.runs for name in run}
        return {name: statistics.median(run[name] for run in self.runs) for name in sorted(names)}


def _marked(tree: Any, call: Callable[[], None]) -> Any:
    """The same tensors; `call` is called once in the backward pass, when the gradients of all of them are there."""
    leaves, structure = tree_flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if places and torch.is_grad_enabled():
        for place, leaf in zip(places, _Mark.apply(call, *(leaves[place] for place in places)), strict=True):
            leaves[place] = leaf
    return tree_unflatten(leaves, structure)


class _Mark(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Callable[[], None], *tensors: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        ctx.call = call
        ctx.set_materialize_grads(False)  # of features that no head reads
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: D102
        ctx.call()
        return None, *gradients
