"""The optimiser of a trial: a group for each component, and the learning rate over the steps."""

from __future__ import annotations

import math
from typing import Any

import torch

from autopeft.training.recipe import Attached
from autopeft.training.setup import Setup

MOMENTUM = 0.9  # of SGD


def make_optimizer(attached: Attached, setup: Setup, is_static: bool = False) -> torch.optim.Optimizer:
    """Makes AdamW or SGDW (Loshchilov and Hutter, 2019, arXiv:1711.05101), with a group for each component and head.

    Args:
        is_static: Whether learning rates will be tensors, and a step must not wait for a GPU.
    """
    parameters = dict(attached.model.named_parameters())
    groups: list[dict[str, Any]] = [
        {
            "params": [parameters[name] for name in group.names],
            "lr": group.lr,
            "weight_decay": setup.train.weight_decay if group.weight_decay is None else group.weight_decay,
        }
        for group in attached.groups
    ]
    if setup.train.optimizer == "sgd":
        decoupled = [{**group, "weight_decay": 0.0, "decay": group["weight_decay"]} for group in groups]
        return SGDW(decoupled, MOMENTUM, is_static)
    is_captured = is_static and next(attached.model.parameters()).is_cuda
    # fused: full fine-tuning takes a fifth less time
    optimizer = torch.optim.AdamW(groups, fused=True, capturable=is_captured)
    optimizer._warned_capturable_if_run_uncaptured = True  # the passes before a capture
    return optimizer


class SGDW(torch.optim.SGD):
    """SGD with momentum and decoupled weight decay, as in AdamW: the decay is not part of the gradient or the momentum.

    Args:
        groups: Parameter groups, each with `decay`. A step shrinks the weights by learning rate times `decay`.
        is_fused: Whether one kernel updates all tensors. Only such a kernel takes a tensor as learning rate.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float, is_fused: bool = False) -> None:
        super().__init__(groups, momentum=momentum, fused=is_fused or None)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["decay"])
        return super().step(closure)


def learning_rate_factor(setup: Setup, total: int, step: int) -> float:
    """Returns the factor of each group's learning rate at a step (from 0): a linear warm-up, then the schedule."""
    warm = round(setup.train.warmup * total)
    if step < warm:
        return (step + 1) / (warm + 1)
    rest = (step - warm) / max(1, total - warm)
    if setup.train.schedule == "constant":
        return 1.0
    if setup.train.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * rest))
    return 1 - rest
