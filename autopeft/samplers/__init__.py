"""Samplers propose configurations. One plugin a file.

A sampler is made anew from the ledger at every start: `plugin(space, objectives, sizes, **options)`, then `begin` and
`tell` for each record, in the ledger's order. An ask depends on what was begun and told before it, on `sizes` and on its
seed, on nothing else: no state of a random generator lives from one ask to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from autopeft.history import Record

# The exact counts of a configuration (`trainable_parameters` and its parts); None where it would be refused. It may be
# asked of a thousand candidates before one is proposed.
Sizes = Callable[[Mapping[str, Any]], Mapping[str, float] | None]


class Sampler(Protocol):
    """Proposes params; hears of each as its trial begins, and how it went."""

    def ask(self, number: int, seed: int) -> Mapping[str, Any] | None:
        """Params for this number, a member of the space; None when there are no more.

        Args:
            number: The number that the proposal will have.
            seed: Of this ask alone, a function of the search's seed and the number.
        """

    def begin(self, record: Record) -> None:
        """Takes a record that runs from now on: asked for, its counts known. A second time where it runs again."""

    def tell(self, record: Record) -> None:
        """Takes a record that was told or refused.

        A refused or out-of-memory one is infeasible; a stopped one is bad, and its partial metrics are not final. A
        failed one that the machine cost (`record.may_run_again`) says nothing of its configuration: after a resume it
        begins and is told once more. A configuration that was refused as the same as a trial is not told.
        """
