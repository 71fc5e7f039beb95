"""Forecasts how long a trial takes, from the times of earlier trials."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from autopeft.history import Record

NEAREST = 3
MEASURED = ("train_seconds", "evaluate_seconds")  # the first contains `attach_seconds`


class Forecast:
    """Forecasts the mean time of the three completed trials of the same method that are nearest in size.

    If the method has no completed trial, all methods' trials count. The forecast depends on the ledger's results and
    their order only, so a replay forecasts the same.

    Attributes:
        longest: Seconds of the longest trial so far.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._of: dict[Any, list[tuple[float, float]]] = defaultdict(list)  # method → (size, seconds)

    def tell(self, record: Record) -> None:
        """Takes a trial that ended. A trial that did not complete is ignored."""
        if not record.is_complete:
            return
        seconds = sum(record.metrics.get(name, 0.0) for name in MEASURED)
        if not seconds:
            seconds = float(record.told_seconds or 0.0) - record.asked_seconds
        self.longest = max(self.longest, seconds)
        self._of[record.params.get("method")].append((_size(record.known), seconds))

    def seconds(self, params: Mapping[str, Any], known: Mapping[str, float]) -> float:
        """Forecasts the seconds of a configuration; 0 while no trial has completed."""
        measured = self._of.get(params.get("method")) or [pair for pairs in self._of.values() for pair in pairs]
        size = _size(known)
        nearest = sorted(measured, key=lambda pair: abs(pair[0] - size))[:NEAREST]
        return sum(seconds for _, seconds in nearest) / len(nearest) if nearest else 0.0


def _size(known: Mapping[str, float]) -> float:
    return math.log(max(known.get("trainable_parameters", 1.0), 1.0))
