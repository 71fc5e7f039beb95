"""Random search: the space's own draw. What every other sampler has to beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autopeft.history import Record
from autopeft.objectives import Objective
from autopeft.samplers import Sizes
from autopeft.space import Space


class RandomSampler:
    """Each ask is one draw, whatever was told (Bergstra and Bengio, 2012)."""

    def __init__(self, space: Space, objectives: Sequence[Objective], sizes: Sizes) -> None:
        self.space = space

    def ask(self, number: int, seed: int) -> Mapping[str, Any]:
        return self.space.draw(np.random.default_rng(seed))

    def begin(self, record: Record) -> None:
        """Nothing that runs changes the next draw."""

    def tell(self, record: Record) -> None:
        """Nothing that is told changes the next draw."""


plugin = RandomSampler
