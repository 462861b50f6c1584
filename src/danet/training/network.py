"""The model as the training loop calls it, on one process or on several."""

import logging
from typing import Any

import torch
from torch import nn

from danet.config import RunConfig
from danet.config.data_checks import untrained_model
from danet.losses.segmentation_loss import weight_of
from danet.services import distributed
from danet.training.state import Trained

log = logging.getLogger(__name__)


def as_called(config: RunConfig, trained: Trained, device: torch.device) -> nn.Module:
    """The model as the loop calls it: compiled if wanted, gradients averaged over processes."""
    some_unused = distributed.is_shared() and leaves_some_unused(config, trained)
    compiled: Any = torch.compile(trained.model) if config.runtime.compile else trained.model
    return distributed.wrap(compiled, device, some_unused=some_unused)


def leaves_some_unused(config: RunConfig, trained: Trained) -> bool:
    """Whether a step leaves parameters without a gradient, as of stages that a head does not look at.

    It is tried with two small images, on the CPU, and the random state stays as it was.
    """
    weights = trained.criterion.weights
    try:
        with torch.random.fork_rng(devices=[]):
            model = untrained_model(config, trained.model.num_classes)
            outputs = model(torch.zeros(2, config.in_channels, 128, 128))
        used = [logits.float().sum() for name, logits in outputs.items() if weight_of(name, weights)]
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return any(g is None for g in torch.autograd.grad(used, parameters, allow_unused=True))
    except Exception as error:  # of a component that takes no such images
        log.info("unused parameters are searched for at every step, as a try failed: %s", error)
        return True
