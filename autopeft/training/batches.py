"""Which rows make a batch, and a batch as tensors. Little padding: the rows of a batch have similar lengths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from autopeft.tasks import Columns, Ragged, Split
from autopeft.trial import derive_seed

POOL = 64  # batches a pool: long enough to sort well, short enough that each epoch mixes


def order(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Returns one epoch's batches. They depend on the seed and the epoch only, so that all executors agree.

    Rows are shuffled and cut into pools. Each pool is sorted by length and cut into batches. The batches are shuffled.

    Args:
        lengths: (n_rows,) tokens a row.

    Returns:
        Row indices by batch; the shortest batch is the remainder.
    """
    rng = np.random.default_rng(derive_seed(seed, "order", epoch))
    rows = rng.permutation(len(lengths))
    batches = []
    for start in range(0, len(rows), POOL * batch_size):
        pool = rows[start : start + POOL * batch_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
    return [batches[index] for index in rng.permutation(len(batches))]


def endless(lengths: np.ndarray, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Yields batch after batch, epoch after epoch, without end."""
    epoch = 0
    while True:
        yield from order(lengths, batch_size, seed, epoch)
        epoch += 1


def by_length(lengths: np.ndarray, batch_size: int, most_tokens: int | None = None) -> list[np.ndarray]:
    """Returns all rows in batches, longest first, so that running out of memory shows at once. Not random.

    Args:
        most_tokens: Bound on the tokens of a batch, padding included. A single longer row is still a batch. None for
            no bound.
    """
    rows = np.argsort(-lengths, kind="stable")
    out, at = [], 0
    while at < len(rows):
        size = batch_size
        if most_tokens is not None:
            size = max(1, min(batch_size, most_tokens // max(1, int(lengths[rows[at]]))))
        out.append(rows[at : at + size])
        at += size
    return out


def divided(batch: np.ndarray, most_rows: int) -> list[np.ndarray]:
    """Returns a batch in micro-batches of at most so many rows."""
    return [batch[at : at + most_rows] for at in range(0, len(batch), most_rows)]


def collate(
    split: Split, rows: np.ndarray, device: Any = "cpu", without: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Returns the model's inputs for some rows, padded to the longest of them.

    If a column is ragged, an `attention_mask` is added (int64, 1 for a value, 0 for padding); of a decoder's column
    (`decoder_input_ids`) a `decoder_attention_mask`.

    Args:
        without: Dense columns that the model does not read, as the cache replaces them. Each becomes one zero a row.
    """
    inputs: dict[str, torch.Tensor] = {}
    for name, column in split.inputs.items():
        if isinstance(column, Ragged):
            values, mask = pad(column, rows)
            is_whole = np.issubdtype(values.dtype, np.integer)
            inputs[name] = torch.from_numpy(values.astype(np.int64 if is_whole else np.float32))
            inputs[mask_of(name)] = torch.from_numpy(mask)
        elif name in without:
            inputs[name] = torch.zeros((len(rows), *[1] * (column.ndim - 1)))
        else:
            inputs[name] = _scaled(torch.from_numpy(column[np.sort(rows)][np.argsort(np.argsort(rows))]), split, name)
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def mask_of(name: str) -> str:
    """Returns the name of the mask of a ragged input."""
    return "decoder_attention_mask" if name.startswith("decoder_") else "attention_mask"


def collate_targets(split: Split, rows: np.ndarray, device: Any = "cpu") -> dict[str, Any]:
    """Returns the targets of some rows, padded to the longest of them."""
    out = {}
    for name, column in split.targets.items():
        values = pad(column, rows)[0] if isinstance(column, Ragged) else np.ascontiguousarray(column[rows])
        wide = values.astype(np.int64) if np.issubdtype(values.dtype, np.integer) else values.astype(np.float32)
        out[name] = torch.from_numpy(wide).to(device)
    return out


def batch_weight(weights: np.ndarray, rows: np.ndarray) -> float:
    """Returns the divisor of a batch's summed loss: the weight of its rows, or 1 if none of them is scored."""
    return float(weights[rows].sum()) or 1.0


def pad(column: Ragged, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pads rows of a ragged column. Returns (n_rows, longest, ...) and a mask (n_rows, longest) of real values."""
    starts, ends = column.offsets[rows], column.offsets[rows + 1]
    longest = int((ends - starts).max())
    values = np.full((len(rows), longest, *column.values.shape[1:]), column.pad, dtype=column.values.dtype)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        first = longest - (end - start) if column.is_left else 0
        values[index, first : first + end - start] = column.values[start:end]
        mask[index, first : first + end - start] = 1
    return values, mask


def pick_split(split: Split, rows: np.ndarray) -> Split:
    """Copies some rows of a split into memory."""
    return Split(pick_rows(split.inputs, rows), pick_rows(split.targets, rows), split.scale)


def pick_rows(columns: Columns, rows: np.ndarray) -> Columns:
    """Copies some rows of columns into memory."""
    out: dict[str, Ragged | np.ndarray] = {}
    for name, column in columns.items():
        if isinstance(column, Ragged):
            parts = [column[row] for row in rows]
            offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
            out[name] = Ragged(np.concatenate(parts), offsets, column.pad, column.is_left)
        else:
            out[name] = np.asarray(column[rows])
    return out


def _scaled(stored: torch.Tensor, split: Split, name: str) -> torch.Tensor:
    """Scales stored integers to the values that the model takes, channel by channel (n, channels, height, width)."""
    if name not in split.scale:
        return stored.float() if stored.is_floating_point() else stored
    multiply, add = (
        torch.from_numpy(np.asarray(part, dtype=np.float32)).view(1, -1, 1, 1) for part in split.scale[name]
    )
    return stored.float() * multiply + add
