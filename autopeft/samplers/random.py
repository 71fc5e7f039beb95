"""Random search: the space's own draw. The baseline of all other samplers."""

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
        """Does nothing: draws are independent."""

    def tell(self, record: Record) -> None:
        """Does nothing: draws are independent."""


plugin = RandomSampler
