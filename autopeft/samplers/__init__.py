"""Samplers propose configurations. One plugin a file.

A sampler is rebuilt from the ledger at every start: `plugin(space, objectives, sizes, **options)`, then `begin` and
`tell` for each record, in the ledger's order. An ask depends only on the earlier `begin` and `tell` calls, on `sizes`,
and on its seed. No state of a random generator is kept from one ask to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from autopeft.history import Record

# Returns the exact counts of a configuration (`trainable_parameters` and its parts); None if it would be refused. A
# sampler may call it for a thousand candidates before it proposes one.
Sizes = Callable[[Mapping[str, Any]], Mapping[str, float] | None]


class Sampler(Protocol):
    """Proposes params, and is told when a trial begins and how it ended."""

    def ask(self, number: int, seed: int) -> Mapping[str, Any] | None:
        """Returns params for a number, a member of the space; None if there are no more.

        Args:
            number: The number that the proposal will have.
            seed: Seed of this ask, derived from the search's seed and the number.
        """

    def begin(self, record: Record) -> None:
        """Takes a record whose trial begins; its counts are known. Is called again if the trial runs again."""

    def tell(self, record: Record) -> None:
        """Takes a record that was told or refused.

        A refused or out-of-memory record is infeasible. A stopped record is bad, and its partial metrics are not final.
        If a trial failed by the machine's fault (`record.may_run_again`), learn nothing from it: after a resume it
        begins and is told again. A configuration that was refused because it equals a trial's is not told.
        """
