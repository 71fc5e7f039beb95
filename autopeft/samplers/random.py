"""Each dimension that exists, independently and uniformly (Bergstra and Bengio, 2012)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autopeft.history import Record
from autopeft.objectives import Objective
from autopeft.space import Space


class Random:
    """Draws from the space; learns nothing."""

    def __init__(self, space: Space, objectives: Sequence[Objective]) -> None:
        self.space = space

    def ask(self, number: int, seed: int) -> Mapping[str, Any]:
        return self.space.draw(np.random.default_rng(seed))

    def tell(self, record: Record) -> None:
        pass


plugin = Random
