"""The frozen prefix: below the lowest trained block nothing changes, so its activations are computed once.

For each split and depth, the input of block `depth` (or of a head's layers) is kept on disk as a memory map, shared by all
trials and workers of a node. The batches that compute a cache are always the same. So the bits of a cache do not depend
on whether it was computed from the inputs, from a lower depth, or again after it was dropped. A cache is written under
a temporary name and then renamed. If the bound on disk is passed, the least recently used cache is dropped.
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
from autopeft.training.model import Passed, replace_module

MOST_TRIES = 10  # to open caches that other workers drop meanwhile
# Rows of one forward pass while a cache is built, and of texts on a GPU its tokens, padding included: fixed, so that its
# bits are.
BATCH, PLACES = 64, 2**14


@dataclass(frozen=True)
class Cached:
    """Activations of one split at one depth.

    Attributes:
        values: Ragged (rows of tokens) or dense (n_rows, ...), fp32.
        dtype: Type in which the model computed the values; they are cast back to it.
    """

    values: Ragged | np.ndarray
    dtype: torch.dtype

    def __call__(self, rows: np.ndarray, device: Any) -> torch.Tensor:
        """Returns the rows as a padded batch."""
        if isinstance(self.values, Ragged):
            batch = pad(self.values, rows)[0]
        else:
            batch = np.ascontiguousarray(self.values[rows])
        return torch.from_numpy(batch).to(device=device, dtype=self.dtype)


class PrefixCache:
    """Cached activations of one model, data set and precision.

    Workers share the folder. One worker may drop a cache that another is about to open: the other builds it again.

    Args:
        folder: Place of the run's caches, with a sub-folder for each split and depth.
        limit_bytes: Bound on the sum of all caches. Splits that together exceed it are not cached.

    Attributes:
        parts: Split name → share of the split's rows in use (1 if absent). The bound holds for whole splits.
        seconds: Time spent on building, or on waiting for another worker that builds.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self.parts: Mapping[str, float] = {}
        self.seconds = 0.0
        self._sizes: dict[Path, float] = {}

    def get(
        self, splits: Mapping[str, Split], depth: int, reach: MakeReach, pooling: str = ""
    ) -> dict[str, Cached] | None:
        """Returns the activations below `depth` for every row of some splits, by split name.

        Args:
            splits: Name → split; they are used together.
            depth: 1 … n_layers: the output of block `depth - 1`.
            reach: Makes the `Reach` that computes these activations, from the inputs or from a lower depth's cache.
            pooling: Name of what `reach` makes of that output, one vector a row: the input of a head's layers.

        Returns:
            None if the splits together exceed the bound, or if others drop the caches faster than they are built.
        """
        paths = {name: self._path(name, depth, pooling) for name in splits}
        for name, split in splits.items():
            if paths[name] not in self._sizes:
                self._sizes[paths[name]] = self._size(split, reach(depth, None, None)) / self.parts.get(name, 1.0)
        if sum(self._sizes[path] for path in paths.values()) > self.limit_bytes:
            return None
        for _ in range(MOST_TRIES):
            with contextlib.suppress(FileNotFoundError):
                found = {name: self._open(name, split, depth, reach, pooling) for name, split in splits.items()}
                self._drop_least_recently_used(keep=set(paths.values()))
                return found
        return None

    def _open(self, name: str, split: Split, depth: int, reach: MakeReach, pooling: str) -> Cached:
        """Opens a cache; builds it first if there is none.

        Raises:
            FileNotFoundError: Another worker dropped it meanwhile.
        """
        folder, start = self._path(name, depth, pooling), time.monotonic()

        def build(to: Path) -> None:
            lower, below = self._lower(name, depth if pooling else depth - 1)
            self._build(split, reach(depth, lower, below), to)

        build_once(folder, build)
        self.seconds += time.monotonic() - start
        os.utime(folder)  # used now
        return self._load(folder)

    def _lower(self, name: str, depth: int) -> tuple[int | None, Cached | None]:
        """Returns the greatest depth up to `depth` that is cached, and its cache; (None, None) if there is none."""
        for lower in range(depth, 0, -1):
            if self._path(name, lower).exists():
                with contextlib.suppress(FileNotFoundError):
                    return lower, self._load(self._path(name, lower))
        return None, None

    def _path(self, name: str, depth: int, pooling: str = "") -> Path:
        return self.folder / "-".join(filter(None, (name, str(depth), pooling)))

    def _size(self, split: Split, reach: Reach) -> int:
        """Computes how many bytes the cache of a split takes, from a batch of one row."""
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
        for rows in passes(split, reach.device):
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
        """Drops caches until the bound is kept. A worker that still maps a dropped file can go on reading it."""
        folders = sorted(filter(None, map(_Folder.of, self.folder.glob("[!.]*"))), key=lambda folder: folder.used)
        size = sum(folder.size for folder in folders)
        for folder in folders:
            if size <= self.limit_bytes:
                return
            if folder.path not in keep:
                _remove(folder.path)
                size -= folder.size


def passes(split: Split, device: torch.device) -> list[np.ndarray]:
    """Returns the rows of each pass that builds a cache. On a GPU few tokens would take as long as many: launches."""
    is_text = any(isinstance(c, Ragged) and np.issubdtype(c.values.dtype, np.integer) for c in split.inputs.values())
    if device.type == "cuda" and is_text:
        return by_length(split.lengths, PLACES, PLACES)
    return by_length(split.lengths, BATCH)


@dataclass(frozen=True)
class _Folder:
    """A cache on the disk: its bytes, and when it was used last."""

    path: Path
    size: int
    used: float

    @staticmethod
    def of(path: Path) -> _Folder | None:
        """Reads the size and the last use of a cache; None if the path is no cache or no longer exists."""
        try:
            if not (path / "meta.json").exists():
                return None
            return _Folder(path, sum(file.stat().st_size for file in path.iterdir()), path.stat().st_mtime)
        except FileNotFoundError:
            return None


def _remove(folder: Path) -> None:
    """Removes a folder. A worker that opens it at this moment finds all of it or nothing."""
    gone = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.gone")
    with contextlib.suppress(FileNotFoundError):
        os.replace(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


class Cut:
    """Skips the blocks of a model below `depth`, and hands it their output, batch by batch.

    The stem is skipped, too, if it is one module. Set `hidden` to that output before each forward pass.
    """

    def __init__(self, model: nn.Module, stem: tuple[str, ...], blocks: tuple[str, ...], depth: int) -> None:
        self.hidden: torch.Tensor | None = None
        self.skips_stem = len(stem) == 1
        if self.skips_stem:
            replace_module(model, stem[0], _Given(self, model.get_submodule(stem[0])))
        for index, name in enumerate(blocks[:depth]):
            replace_module(model, name, _Given(self, model.get_submodule(name)) if index == 0 else Passed())


class _Given(nn.Module):
    """Stands for a module, and returns the hidden states of the cut. Has the attributes that model code reads."""

    def __init__(self, cut: Cut, original: nn.Module) -> None:
        super().__init__()
        self.__dict__["cut"], self.__dict__["original"] = cut, original  # not registered as modules

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["original"], name)

    def forward(self, *_: Any, **__: Any) -> torch.Tensor:
        hidden = self.__dict__["cut"].hidden
        assert hidden is not None, "a cut model is given its activations before each pass"
        return hidden  # type: ignore[no-any-return]  # out of __dict__


class Reach:
    """Computes the output or the input of one module, and stops the forward pass there.

    Args:
        model: The base, all frozen, in evaluation mode.
        target: Full name of the module.
        takes: Whether the first input of the module is wanted, rather than its output.
        precision: Makes the context of a forward pass.
        device: The model's device.
        cut, below: The cut of the model, and the cached activations there; None to begin with the model's inputs.
    """

    def __init__(
        self,
        model: nn.Module,
        target: str,
        takes: bool,
        precision: Callable[[], contextlib.AbstractContextManager[Any]],
        device: torch.device,
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
        """Whether there is one vector for each token: (n_rows, n_tokens, width), of a split whose rows have lengths."""
        return hidden.ndim == 3 and any(isinstance(column, Ragged) for column in split.inputs.values())


# (depth wanted, lower depth or None, its cache or None) → what computes the wanted activations.
MakeReach = Callable[[int, int | None, Cached | None], Reach]


class _Reached(Exception):
    """Ends a forward pass that has reached its target. Not an error."""


def _reserve(path: Path) -> None:
    """Allocates the disk space of a sparse file. Without it, a full disk kills the process at a write (SIGBUS)."""
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
