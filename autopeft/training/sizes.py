"""The static shapes of batches: a few sizes, chosen so that little of them is filler."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

FILLER = 0.12  # largest mean share of a buffer's tokens that are no row's
AIM = FILLER - 0.01  # the same for the batches that sizes are chosen by, as later epochs have others
ROUND = 8  # tokens of a buffer are a multiple, as fast matrix products want
CUTS = 64  # candidates for a boundary between two sizes
MOST_SIZES = 12  # more are not tried; the filler of so many is what it is
ROOM = 1.05  # of the widest and the most scored batch of a size that was seen, as later epochs have others


@dataclass(frozen=True, slots=True, order=True)
class Size:
    """The shape of one member's batch.

    Attributes:
        tokens: Length of its buffer; in the padded form `rows` times `longest`.
        rows: Number of its rows, filler rows included.
        longest: Width of the rows' padded form.
        picked: Number of positions whose outputs are computed; 0 if outputs are not one a token.
    """

    tokens: int
    rows: int
    longest: int
    picked: int = 0

    def holds(self, need: Size) -> bool:
        """Whether a batch that needs this much fits."""
        return (
            need.tokens <= self.tokens
            and need.rows <= self.rows
            and need.longest <= self.longest
            and need.picked <= self.picked
        )


@dataclass(frozen=True)
class Rows:
    """What the rows of a split need.

    Attributes:
        lengths: (n_rows,) tokens a row.
        scored: (n_rows,) positions a row whose outputs the loss reads; None if outputs are not one a token.
        is_flat: Whether rows lie end to end. If not, each takes as many tokens as the longest of its batch.
    """

    lengths: np.ndarray
    scored: np.ndarray | None = None
    is_flat: bool = True

    def need(self, rows: np.ndarray) -> Size:
        """Returns the smallest size of a batch of these rows."""
        longest = max(1, int(self.lengths[rows].max()))
        tokens = int(self.lengths[rows].sum()) if self.is_flat else len(rows) * longest
        picked = 0 if self.scored is None else max(1, int(self.scored[rows].sum()))
        return Size(max(1, tokens), len(rows), longest, picked)

    def most(self, n_rows: int) -> Size:
        """Returns the size that holds any batch of so many rows."""
        longest = max(1, int(self.lengths.max()))
        tokens = int(np.sort(self.lengths)[-n_rows:].sum()) if self.is_flat else n_rows * longest
        picked = 0 if self.scored is None else max(1, int(np.sort(self.scored)[-n_rows:].sum()))
        return Size(_up(max(1, tokens)), n_rows, longest, picked)


class Sizes:
    """The sizes of a split's batches, ascending. The last one holds any batch of `n_rows` rows.

    Args:
        of: What the split's rows need.
        batches: Batches like those that will come: of some epochs, or all there will be.
        n_rows: Most rows of a batch.
    """

    def __init__(self, of: Rows, batches: Iterable[np.ndarray], n_rows: int) -> None:
        self.of, self.n_rows = of, n_rows
        needs = [of.need(rows) for rows in batches]
        self.all = _sizes(needs, of.most(n_rows), of)

    def fit(self, batches: Sequence[np.ndarray]) -> Size:
        """Returns the smallest size that holds each of some batches, one a member of a shared pass."""
        need = _widest([self.of.need(rows) for rows in batches])
        return next(size for size in self.all if size.holds(need))


def _sizes(needs: Sequence[Size], most: Size, of: Rows) -> tuple[Size, ...]:
    """Chooses the fewest sizes with little filler. The last one is `most`."""
    totals = np.sort([need.tokens for need in needs])
    found: tuple[Size, ...] = (most,)
    for n_sizes in range(1, MOST_SIZES + 1):
        found = _of_boundaries(needs, _boundaries(totals, most.tokens, n_sizes), most, of)
        taken = sum(next(size for size in found if size.holds(need)).tokens for need in needs)
        if 1 - totals.sum() / taken <= AIM:
            break
    return found


def _of_boundaries(needs: Sequence[Size], boundaries: Sequence[int], most: Size, of: Rows) -> tuple[Size, ...]:
    """Returns a size for each boundary, wide enough for the batches under it. The last one is `most`."""
    out: list[Size] = []
    for tokens in boundaries[:-1]:
        inside = [need for need in needs if need.tokens <= tokens]
        wide = _widest(inside)
        if of.is_flat:
            longest, picked = _up(int(wide.longest * ROOM)), _up(int(wide.picked * ROOM))
            out.append(Size(tokens, most.rows, min(longest, most.longest), min(picked, most.picked)))
        else:
            out.append(Size(most.rows * wide.longest, most.rows, wide.longest))
    return (*out, most)


def _boundaries(totals: np.ndarray, most: int, n_sizes: int, step: int = ROUND) -> list[int]:
    """Finds the boundaries of `n_sizes` sizes, `most` the last, with the least filler, by dynamic programming.

    Args:
        totals: (n_batches,) tokens a batch, ascending.
        step: A boundary is a multiple, or `most`.

    Returns:
        The boundaries, ascending.
    """
    quantiles = totals[np.linspace(0, len(totals) - 1, min(CUTS, len(totals))).astype(int)]
    cuts = sorted({*(min(_up(int(total), step), most) for total in quantiles), most})
    below = np.searchsorted(totals, cuts, side="right")  # batches that fit under each cut
    # best[j]: least buffer of all batches under cut j, if cut j is a boundary; `paths[j]`: its boundaries
    best = [int(cut * count) for cut, count in zip(cuts, below, strict=True)]
    paths = [[cut] for cut in cuts]
    for _ in range(n_sizes - 1):
        grown = [
            min(
                [(best[j], paths[j])]
                + [(best[i] + int(cuts[j] * (below[j] - below[i])), [*paths[i], cuts[j]]) for i in range(j)],
                key=lambda pair: (pair[0], len(pair[1])),
            )
            for j in range(len(cuts))
        ]
        best, paths = [pair[0] for pair in grown], [pair[1] for pair in grown]
    return paths[-1]


class Widths:
    """The sizes of passes without gradient, whose rows may come in any order: a few widths, and rows for each.

    Args:
        of: What the split's rows need.
        most_rows: Most rows of a pass.
        most_places: Most places of a pass in its padded form; None for no bound.
    """

    def __init__(self, of: Rows, most_rows: int, most_places: int | None = None) -> None:
        self.of, self.most_rows, self.most_places = of, most_rows, most_places
        lengths = np.sort(np.maximum(of.lengths, 1))
        found = [_boundaries(lengths, int(lengths[-1]), n, step=1) for n in range(1, MOST_SIZES + 1)]
        self.all: tuple[int, ...] = ()
        self.all = min((tuple(widths) for widths in found), key=self._cost)

    def _cost(self, widths: tuple[int, ...]) -> float:
        """Returns the places that all passes take, a little more for each width."""
        self.all = widths
        return sum(self.fit([rows]).tokens for rows in self.batches()) * (1 + 0.02 * len(widths))

    def batches(self) -> list[np.ndarray]:
        """Returns all rows in batches, longest first, so that running out of memory shows at once."""
        rows, out, at = np.argsort(-self.of.lengths, kind="stable"), [], 0
        while at < len(rows):
            size = self._of_width(self._width(int(self.of.lengths[rows[at]])))
            out.append(rows[at : at + size.rows])
            at += size.rows
        return out

    def fit(self, batches: Sequence[np.ndarray]) -> Size:
        """Returns the size that holds each of some batches. More rows than `batches` gives make a size of their own."""
        width = self._width(max(int(self.of.lengths[rows].max()) for rows in batches))
        size, n_rows = self._of_width(width), max(map(len, batches))
        return size if n_rows <= size.rows else Size(n_rows * width, n_rows, width)

    def _width(self, longest: int) -> int:
        return next(width for width in self.all if width >= longest)

    def _of_width(self, width: int) -> Size:
        n_rows = min(self.most_rows, len(self.of.lengths))
        if self.most_places is not None:
            n_rows = max(1, min(n_rows, self.most_places // width))
        return Size(n_rows * width, n_rows, width)


def _widest(needs: Sequence[Size]) -> Size:
    """Returns the smallest size that holds them all; a size of one token for none."""
    columns = ([getattr(need, name) for need in needs] for name in ("tokens", "rows", "longest", "picked"))
    return Size(*(max(column, default=1) for column in columns))


def _up(number: int, step: int = ROUND) -> int:
    return -(-number // step) * step
