"""The frozen prefix: below the lowest trained block nothing changes, so its activations are computed once.

For each split and depth, the input of block `depth` (or of the head) is kept on disk as a memory map, shared by all
trials and workers of a node. It is always computed in the same batches, so that a cache built on the next lower
depth, from nothing, or again after it was dropped, holds the same bits. Built once, written to a temporary name and
renamed; the least recently used goes when the bound on disk is passed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from autopeft.errors import EnvironmentFault
from autopeft.files import build_once
from autopeft.tasks import Ragged, Split
from autopeft.training.batches import by_length, collate, pad
from autopeft.training.model import replace_module

MOST_TRIES = 10  # to open what other workers drop meanwhile
BATCH = 64  # rows of one forward pass while a cache is built: fixed, so that its bits are


@dataclass(frozen=True)
class Cached:
    """Activations of one split at one depth.

    Attributes:
        values: Ragged (rows of tokens) or dense (n_rows, ...), fp32.
        dtype: What the model computed them in; they are cast back to it.
    """

    values: Ragged | np.ndarray
    dtype: torch.dtype

    def __call__(self, rows: np.ndarray, device: Any) -> torch.Tensor:
        """The rows as a padded batch."""
        if isinstance(self.values, Ragged):
            batch = pad(self.values, rows)[0]
        else:
            batch = np.ascontiguousarray(self.values[rows])
        return torch.from_numpy(batch).to(device=device, dtype=self.dtype)


class PrefixCache:
    """Cached activations of one model, data set and precision.

    Workers share the folder. One may drop what another is about to open: what has vanished is absent, and built again.

    Args:
        folder: Of all caches of the run; a sub-folder each split and depth.
        limit_bytes: Bound on the sum of all caches. Splits that together exceed it are not cached.

    Attributes:
        parts: Share of its rows that each split has here, by name: the bound is that of whole splits. 1 where absent.
        seconds: Spent on building, or on waiting for another worker that builds.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self.parts: Mapping[str, float] = {}
        self.seconds = 0.0
        self._sizes: dict[tuple[str, int], float] = {}

    def get(self, splits: Mapping[str, Split], depth: int, reach: MakeReach) -> dict[str, Cached] | None:
        """What the blocks below `depth` give for every row of splits that are used together, by their names.

        Args:
            splits: By name.
            depth: 1 … n_layers: the output of block `depth - 1`; n_layers + 1: the input of the head.
            reach: Makes what computes that, from the inputs or from a lower depth's cache.

        Returns:
            None where together they are over the bound, or others drop them faster than they are built.
        """
        for name, split in splits.items():
            if (name, depth) not in self._sizes:
                self._sizes[name, depth] = self._size(split, reach(depth, None, None)) / self.parts.get(name, 1.0)
        if sum(self._sizes[name, depth] for name in splits) > self.limit_bytes:
            return None
        for _ in range(MOST_TRIES):
            with contextlib.suppress(FileNotFoundError):
                found = {name: self._open(name, split, depth, reach) for name, split in splits.items()}
                self._drop_least_recently_used(keep={self._path(name, depth) for name in splits})
                return found
        return None

    def _open(self, name: str, split: Split, depth: int, reach: MakeReach) -> Cached:
        """A cache, built where there is none.

        Raises:
            FileNotFoundError: Another worker dropped it meanwhile.
        """
        folder, start = self._path(name, depth), time.monotonic()

        def build(to: Path) -> None:
            lower, below = self._lower(name, depth)
            self._build(split, reach(depth, lower, below), to)

        build_once(folder, build)
        self.seconds += time.monotonic() - start
        os.utime(folder)  # used now
        return self._load(folder)

    def _lower(self, name: str, depth: int) -> tuple[int | None, Cached | None]:
        """The next lower depth that is there, and its cache."""
        for lower in range(depth - 1, 0, -1):
            if self._path(name, lower).exists():
                with contextlib.suppress(FileNotFoundError):
                    return lower, self._load(self._path(name, lower))
        return None, None

    def _path(self, name: str, depth: int) -> Path:
        return self.folder / f"{name}-{depth}"

    def _size(self, split: Split, reach: Reach) -> int:
        """Bytes that the cache of a split will take, from a batch of one row."""
        rows = np.array([int(np.argmin(split.lengths))])
        sample = reach(split, rows)
        per_unit = sample.numel() // sample.shape[0] * 4
        if reach.is_ragged(split, sample):
            return per_unit // sample.shape[1] * int(split.lengths.sum())
        return per_unit * len(split)

    def _build(self, split: Split, reach: Reach, to: Path) -> None:
        values: np.memmap[Any, Any] | None = None
        offsets = np.concatenate([[0], np.cumsum(split.lengths)])
        ragged, dtype = False, torch.float32
        for rows in by_length(split.lengths, BATCH):
            hidden = reach(split, rows)
            if values is None:
                ragged, dtype = reach.is_ragged(split, hidden), hidden.dtype
                shape = (int(offsets[-1]), *hidden.shape[2:]) if ragged else (len(split), *hidden.shape[1:])
                values = np.lib.format.open_memmap(to / "values.npy", mode="w+", dtype=np.float32, shape=shape)
                _reserve(to / "values.npy")
            batch = hidden.float().cpu().numpy()
            if ragged:
                for row, tokens in zip(rows, batch, strict=True):
                    values[offsets[row] : offsets[row + 1]] = tokens[: offsets[row + 1] - offsets[row]]
            else:
                values[rows] = batch
        assert values is not None, "a split has rows"
        values.flush()
        if ragged:
            np.save(to / "offsets.npy", offsets)
        meta = {"ragged": ragged, "dtype": str(dtype).removeprefix("torch.")}
        (to / "meta.json").write_text(json.dumps(meta))

    def _load(self, folder: Path) -> Cached:
        meta = json.loads((folder / "meta.json").read_text())
        values: Ragged | np.ndarray = np.load(folder / "values.npy", mmap_mode="r")
        if meta["ragged"]:
            assert isinstance(values, np.ndarray)
            values = Ragged(values, np.load(folder / "offsets.npy"), 0.0)
        return Cached(values, getattr(torch, meta["dtype"]))

    def _drop_least_recently_used(self, keep: AbstractSet[Path]) -> None:
        """Until the bound is kept. A worker that still maps a dropped file goes on reading it."""
        folders = sorted(filter(None, map(_Folder.of, self.folder.glob("[!.]*"))), key=lambda folder: folder.used)
        size = sum(folder.size for folder in folders)
        for folder in folders:
            if size <= self.limit_bytes:
                return
            if folder.path not in keep:
                _remove(folder.path)
                size -= folder.size


@dataclass(frozen=True)
class _Folder:
    """A cache on the disk: its bytes, and when it was used last."""

    path: Path
    size: int
    used: float

    @staticmethod
    def of(path: Path) -> _Folder | None:
        """None where it is no cache, or no longer there."""
        try:
            if not (path / "meta.json").exists():
                return None
            return _Folder(path, sum(file.stat().st_size for file in path.iterdir()), path.stat().st_mtime)
        except FileNotFoundError:
            return None


def _remove(folder: Path) -> None:
    """Whole or not at all, for who opens it at this moment."""
    gone = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.gone")
    with contextlib.suppress(FileNotFoundError):
        os.replace(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


class Cut:
    """A model whose blocks below `depth` are gone: what they would compute is given, batch by batch.

    The stem is skipped too where it is one module. Set `hidden` before each forward pass.
    """

    def __init__(self, model: nn.Module, stem: tuple[str, ...], blocks: tuple[str, ...], depth: int) -> None:
        self.hidden: torch.Tensor | None = None
        self.skips_stem = len(stem) == 1
        if self.skips_stem:
            replace_module(model, stem[0], _Given(self, model.get_submodule(stem[0])))
        for index, name in enumerate(blocks[:depth]):
            replace_module(model, name, _Given(self, model.get_submodule(name)) if index == 0 else _Passed())


class _Given(nn.Module):
    """In place of a module: what the cut holds. Answers for the module's attributes, which model code inspects."""

    def __init__(self, cut: Cut, original: nn.Module) -> None:
        super().__init__()
        self.__dict__["cut"], self.__dict__["original"] = cut, original  # not registered: no parameters of ours

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["original"], name)

    def forward(self, *_: Any, **__: Any) -> torch.Tensor:
        hidden = self.__dict__["cut"].hidden
        assert hidden is not None, "a cut model is given its activations before each pass"
        return hidden  # type: ignore[no-any-return]  # out of __dict__


class _Passed(nn.Module):
    """In place of a block whose work is cached."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden_states


class Reach:
    """Computes what one module gives, or what it takes, and no further.

    Args:
        model: All frozen, in evaluation mode.
        target: Full name of the module.
        takes: Whether its first input is wanted, rather than its output.
        precision: Makes the context of a forward pass.
        device: Of the model.
        cut, below: Where the model is cut, and the cached activations to begin with; None to begin with the inputs.
    """

    def __init__(
        self,
        model: nn.Module,
        target: str,
        takes: bool,
        precision: Callable[[], contextlib.AbstractContextManager[Any]],
        device: Any,
        cut: Cut | None = None,
        below: Cached | None = None,
    ) -> None:
        self.model, self.target, self.takes, self.precision, self.device = model, target, takes, precision, device
        self.cut, self.below = cut, below

    def __call__(self, split: Split, rows: np.ndarray) -> torch.Tensor:
        inputs = collate(split, rows, self.device)
        if self.cut is not None and self.below is not None:
            self.cut.hidden = self.below(rows, self.device)
        reached: list[torch.Tensor] = []

        def stop(_: nn.Module, *values: Any) -> None:
            value = values[0] if self.takes else values[-1]
            reached.append(value[0] if isinstance(value, tuple) else value)
            raise _Reached

        module = self.model.get_submodule(self.target)
        handle = module.register_forward_pre_hook(stop) if self.takes else module.register_forward_hook(stop)
        try:
            with torch.no_grad(), self.precision():
                self.model(**inputs)
        except _Reached:
            return reached[0]
        finally:
            handle.remove()
        raise RuntimeError(f"the model's forward pass does not come by {self.target}")

    @staticmethod
    def is_ragged(split: Split, hidden: torch.Tensor) -> bool:
        """Whether the activations are a row a token: (n_rows, n_tokens, width) of a split whose rows have lengths."""
        return hidden.ndim == 3 and any(isinstance(column, Ragged) for column in split.inputs.values())


# (depth wanted, lower depth or None, its cache or None) → what computes the wanted activations.
MakeReach = Callable[[int, int | None, Cached | None], Reach]


class _Reached(Exception):
    """Not an error: the forward pass has come far enough."""


def _reserve(path: Path) -> None:
    """Gives a file of holes its room on the disk: a full one would kill the process at a write to the map (SIGBUS)."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    with open(path, "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as fault:
            if fault.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise EnvironmentFault(
                f"no room for {path.stat().st_size / 2**20:,.1f} MiB of activations in {path.parent.parent}: make room, "
                "or set training.prefix_cache_gib lower, then resume"
            ) from fault
