"""The columns of a split on the device, read there by row numbers in static shapes, without waiting for the device.

A column that does not fit stays on the host. Its rows are gathered there batch by batch and sent ahead (`Column.send`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch

from autopeft.tasks import Ragged

SHARE = 0.3  # of the device's free memory; columns beyond it stay on the host


class Room:
    """Bytes on a device that columns may still take.

    Args:
        device: The device. On a CPU columns are read where they lie, and take none.
        share: Share of the device's memory that is free now.
    """

    def __init__(self, device: torch.device, share: float = SHARE) -> None:
        self.device, self.left = device, float("inf")
        if device.type == "cuda":
            self.left = share * torch.cuda.mem_get_info(device)[0]

    def take(self, n_bytes: int) -> bool:
        """Takes so many bytes. Returns whether there is room for them."""
        if n_bytes > self.left:
            return False
        self.left -= n_bytes
        return True


class Column:
    """A column of a split, ragged or dense, in its stored type.

    Args:
        column: The values, which may be a memory map.
        room: Bytes that are left; the column stays on the host if they are too few.
        dtype: Type of the values on the device; None for the stored one.
        is_small: Whether the column goes to the device in any case, as targets do.

    Attributes:
        is_ragged: Whether rows differ in length.
        is_left: Whether the padding of a row is before it.
        width: Length of the longest row; 1 if the column is dense.
        is_resident: Whether the column is on the device.
    """

    def __init__(
        self, column: Ragged | np.ndarray, room: Room, dtype: torch.dtype | None = None, is_small: bool = False
    ) -> None:
        self.device, self.stored, self.dtype = room.device, column, dtype
        self.is_ragged = isinstance(column, Ragged)
        self.pad = column.pad if isinstance(column, Ragged) else 0
        self.is_left = isinstance(column, Ragged) and column.is_left
        values = np.asarray(column.values if isinstance(column, Ragged) else column)
        self.shape = values.shape[1:]
        self.width = max(1, int(np.diff(column.offsets).max())) if isinstance(column, Ragged) else 1
        self.is_resident = room.take(values.nbytes) or is_small
        self._sent: dict[tuple[int, ...], torch.Tensor] = {}
        self._offsets = self._send(column.offsets) if isinstance(column, Ragged) else None
        if self.is_resident:
            self._values = self._send(values)
            self._values = self._values if dtype is None else self._values.to(dtype)

    def _send(self, values: np.ndarray) -> torch.Tensor:
        return tensor_of(values).to(self.device)

    def lengths(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the length of each of some rows; 0 for a filler row (-1)."""
        assert self._offsets is not None, "a ragged column has lengths"
        safe = rows.clamp(min=0)
        return (self._offsets[safe + 1] - self._offsets[safe]) * (rows >= 0)

    def padded(self, rows: torch.Tensor, width: int) -> torch.Tensor:
        """Returns some rows, (n_rows, width, ...), padded."""
        shape = (len(rows), width, *self.shape)
        if not self.is_resident:
            return self._sent[shape]
        assert self._offsets is not None, "a ragged column has offsets"
        lengths = self.lengths(rows)[:, None]
        column = torch.arange(width, device=self.device)[None]
        if self.is_left:
            column = column - (width - lengths)
        is_real = (column >= 0) & (column < lengths)
        at = (self._offsets[rows][:, None] + column).clamp(0, len(self._values) - 1)
        values = self._values.index_select(0, at.flatten()).view(shape)
        return values.masked_fill(~is_real.view(*is_real.shape, *[1] * len(self.shape)), self.pad)

    def at(self, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Returns single values by row and position in the row. The column is ragged and resident; values are small."""
        assert self._offsets is not None, "a ragged column has offsets"
        at = (self._offsets[rows] + positions).clamp(0, len(self._values) - 1)
        return self._values[at]

    def dense(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns some rows of a dense column."""
        if not self.is_resident:
            return self._sent[(len(rows), *self.shape)]
        return self._values.index_select(0, rows)

    def send(self, rows: np.ndarray, width: int) -> None:
        """Gathers some rows on the host and sends them ahead, if the column is not on the device.

        The batch has a place of its own for each shape, and each batch of that shape comes to the same place.
        """
        if self.is_resident:
            return
        batch = torch.from_numpy(self._gathered(rows, width))
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        shape = tuple(batch.shape)
        if shape not in self._sent:
            self._sent[shape] = torch.empty(shape, dtype=self.dtype or batch.dtype, device=self.device)
        self._sent[shape].copy_(batch, non_blocking=True)

    def _gathered(self, rows: np.ndarray, width: int) -> np.ndarray:
        if not isinstance(self.stored, Ragged):
            order = np.argsort(rows, kind="stable")  # in the order of the disk
            batch = np.empty((len(rows), *self.shape), self.stored.dtype)
            batch[order] = self.stored[rows[order]]
            return batch
        values = np.full((len(rows), width, *self.shape), self.pad, dtype=self.stored.values.dtype)
        for index, row in enumerate(rows):
            own = self.stored[int(row)]
            first = width - len(own) if self.is_left else 0
            values[index, first : first + len(own)] = own
        return values


def tensor_of(values: np.ndarray) -> torch.Tensor:
    """Returns an array as a tensor, without copying it. It may be read-only: nobody writes to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "not writable"
        return torch.from_numpy(np.ascontiguousarray(values))


def widened(values: torch.Tensor) -> torch.Tensor:
    """Returns stored numbers as models and losses take them: integers of 64 bits, floats of 32."""
    return values.float() if values.is_floating_point() else values.long()


def scaled(stored: torch.Tensor, scale: Sequence[torch.Tensor]) -> torch.Tensor:
    """Scales stored integers to the values that the model takes, channel by channel (n, channels, height, width)."""
    multiply, add = scale
    return stored.float() * multiply + add
