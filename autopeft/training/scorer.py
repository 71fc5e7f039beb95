"""Passes without gradient of trials that train in static shapes: captured once for each size, as their steps are.

What `Program` is for steps. The rows of a pass and its outputs lie where they are, for all trials that the program serves.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import nn

from autopeft.training.answers import has_vocabulary
from autopeft.training.launch import launcher_of
from autopeft.training.sizes import Size

Key = tuple[Hashable, ...]
Pass = Callable[..., torch.Tensor]


class Scorer:
    """Computes the logits of passes, one after the other.

    Args:
        logits: Computes those of a pass from (rows, size, split, *more), in shapes that depend on the size only, without
            waiting for the device.
        device: The model's device.
    """

    def __init__(self, logits: Pass, device: torch.device) -> None:
        self.logits = logits
        self.launcher = launcher_of(self._take, device)
        self._rows: dict[Key, torch.Tensor] = {}
        self._outputs: dict[Key, torch.Tensor] = {}

    def __call__(self, rows: torch.Tensor, size: Size, split: str, *more: Any) -> torch.Tensor:
        """Computes the logits of a pass. The next pass of this size may overwrite them.

        Args:
            rows: What `Network.send` returned.
            more: What the pass is given beside.
        """
        key = (size, split, *more)
        if key not in self._rows:
            self._rows[key] = rows.clone()
        self._rows[key].copy_(rows)
        self.launcher.launch([key])
        self.launcher.wait()  # what was sent lies where all trials' batches lie, and outputs are read on another stream
        return self._outputs[key]

    def _take(self, key: Any) -> None:
        self._outputs[key] = self.logits(self._rows[key], *key)


def scorer_of(logits: Pass, model: nn.Module, device: torch.device) -> Scorer | None:
    """Returns a scorer; None for a model with a vocabulary, whose passes are as large as memory lets them be.

    What is captured holds the memory of a pass, and so large a pass gains nothing from its launch.
    """
    return None if has_vocabulary(model) else Scorer(logits, device)
