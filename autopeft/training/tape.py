"""What the passes of some steps read and write on the device, with counters that each pass moves on.

So a pass takes nothing from the host and gives nothing back: a CUDA graph can hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from autopeft.training.batches import batch_weight
from autopeft.training.setup import Setup
from autopeft.training.sizes import Size
from autopeft.training.static import filled


@dataclass(frozen=True)
class Pass:
    """What a pass over a micro-batch depends on, but for its rows.

    Attributes:
        size: The shape of its batch.
        is_last: Whether the optimiser's update follows: no more rows of the step's batches are left.
    """

    size: Size
    is_last: bool


class Tape:
    """The rows of some steps, of each member of a shared pass, and the losses.

    Args:
        setup: Setup of the search.
        n_steps: Most steps.
        n_members: Members of each pass.
        micro_batch_size: Most rows of a member's part of a pass.
        device: The model's device.

    Attributes:
        most_rows: Rows of a member's part of a pass, filler included.
        has_parts: Whether a step can take several passes, whose gradients add up.
        losses: (n_steps, n_members), mean losses of the members' batches.
        at: (1,), number of steps done.
        parts: Rows of each member, of each pass that was filled in; of some members maybe none in a step's last passes.
        first_of: Number of passes before each step.
    """

    def __init__(self, setup: Setup, n_steps: int, n_members: int, micro_batch_size: int, device: torch.device) -> None:
        self.most_rows = min(micro_batch_size, setup.train.batch_size)
        most_passes = -(-setup.train.batch_size // self.most_rows)
        self.has_parts = most_passes > 1
        self.losses = torch.zeros((n_steps, n_members), device=device)
        self.at = torch.zeros(1, dtype=torch.int64, device=device)
        self._rows = torch.full((n_steps * most_passes, n_members, self.most_rows), -1, device=device)
        self._weights = torch.zeros((n_steps, n_members), device=device)  # divisors of the batches' summed losses
        self._passed = torch.zeros(1, dtype=torch.int64, device=device)
        self.parts: Sequence[Sequence[np.ndarray]] = ()
        self.first_of: Sequence[int] = (0,)

    def fill(
        self,
        batches: Sequence[Sequence[np.ndarray]],
        weights: np.ndarray,
        size_of: Callable[[Sequence[np.ndarray]], Size],
    ) -> list[Pass]:
        """Sends the batches of the next steps, and begins anew. Returns their passes.

        Args:
            batches: Of each step, a batch a member.
            weights: (n_rows,) weight of each row in a mean loss.
            size_of: Returns the size of a pass over some rows a member.
        """
        divided = [self._divided(own) for own in batches]
        self.parts = [part for own in divided for part in own]
        self.first_of = list(accumulate(map(len, divided), initial=0))
        rows = np.stack([filled(part, self.most_rows) for part in self.parts])
        self._rows[: len(rows)].copy_(torch.from_numpy(rows))
        divisors = torch.tensor([[batch_weight(weights, rows) for rows in own] for own in batches])
        self._weights[: len(batches)].copy_(divisors)
        for tensor in (self.at, self._passed, self.losses):
            tensor.zero_()
        ends = set(self.first_of)
        return [Pass(size_of(part), index + 1 in ends) for index, part in enumerate(self.parts)]

    def _divided(self, batches: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """Divides the members' batches of a step in passes."""
        starts = range(0, max(map(len, batches)), self.most_rows)
        return [[rows[at : at + self.most_rows] for rows in batches] for at in starts]

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns rows (n_members, most_rows), -1 behind the last, and divisors (n_members,) of the next pass."""
        return self._rows.index_select(0, self._passed)[0], self._weights.index_select(0, self.at)[0]

    def note(self, losses: torch.Tensor, taken: Pass) -> None:
        """Adds a pass's part of the members' losses (n_members,), and moves on."""
        self.losses.index_add_(0, self.at, losses.detach()[None])
        self._passed += 1
        self.at += int(taken.is_last)
