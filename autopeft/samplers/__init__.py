"""Samplers propose configurations. One plugin a file.

A sampler is made anew from the ledger at every start: `plugin(space, objectives, **options)`, then `tell` for each
record in the ledger's order. An ask depends on what was told before it and on its seed, on nothing else: no state
of a random generator lives from one ask to the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from autopeft.history import Record


class Sampler(Protocol):
    """Proposes params; hears how every one of them went."""

    def ask(self, number: int, seed: int) -> Mapping[str, Any] | None:
        """Params for this number, a member of the space; None when there are no more.

        Args:
            number: The number that the proposal will have.
            seed: Of this ask alone, a function of the search's seed and the number.
        """

    def tell(self, record: Record) -> None:
        """Takes a record that was told or refused, in the ledger's order.

        A refused or out-of-memory one is infeasible; a stopped one is bad, and its partial metrics are not final.
        """
