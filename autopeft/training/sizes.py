"""The static shapes of batches: a few sizes, chosen so that little of them is filler."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

FILLER = 0.12  # largest mean share of a buffer's tokens that are no row's
AIM = FILLER - 0.01  # the same for the batches that sizes are chosen by, as later epochs have others
ROUND = 8  # tokens of a buffer are a multiple, as fast matrix products want
CUTS = 64  # candidates for a boundary between two sizes
MOST_PASSES = 1024  # of several members, drawn to see how long such passes are
MOST_SIZES = 12  # more are not tried; the filler of so many is what it is
ROOM = 1.05  # of the widest and the most scored batch of a size that was seen, as later epochs have others


@dataclass(frozen=True, slots=True, order=True)
class Size:
    """The shape of a pass.

    Attributes:
        tokens: Length of a buffer: of all members of the pass together, or of each one where they are apart. In the padded
            form, `rows` times `longest`.
        rows: Number of rows of each member, filler rows included.
        longest: Width of the rows' padded form.
        picked: Number of places of a buffer whose outputs are computed; 0 if outputs are not one a token.
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

    # A buffer never has as many tokens as the pass has rows: then a block's output would not tell whether it is of all
    # tokens or of the rows' first ones.

    lengths: np.ndarray
    scored: np.ndarray | None = None
    is_flat: bool = True

    def need(self, rows: np.ndarray) -> Size:
        """Returns the smallest size of a batch of these rows."""
        longest = max(1, int(self.lengths[rows].max()))
        tokens = int(self.lengths[rows].sum()) if self.is_flat else len(rows) * longest
        picked = 0 if self.scored is None else max(1, int(self.scored[rows].sum()))
        return Size(max(1, tokens), len(rows), longest, picked)

    def together(self, needs: Sequence[Size]) -> Size:
        """Returns the smallest size of a pass whose members' batches lie in one buffer."""
        longest, n_rows = max(need.longest for need in needs), max(need.rows for need in needs)
        tokens = sum(need.tokens for need in needs) if self.is_flat else n_rows * longest
        return Size(tokens, n_rows, longest, sum(need.picked for need in needs))

    def most(self, n_rows: int) -> Size:
        """Returns the size that holds any batch of so many rows."""
        longest = max(1, int(self.lengths.max()))
        tokens = int(np.sort(self.lengths)[-n_rows:].sum()) if self.is_flat else n_rows * longest
        picked = 0 if self.scored is None else max(1, int(np.sort(self.scored)[-n_rows:].sum()))
        return Size(max(1, tokens), n_rows, longest, picked)


class Sizes:
    """The sizes of passes over a split, ascending. The last one holds any batches of `n_rows` rows.

    Args:
        of: What the split's rows need.
        batches: Batches like those that will come: of some epochs, or all there will be.
        n_rows: Most rows of a batch.
        members: Number of batches that lie in one buffer, one a member of a shared pass.
    """

    def __init__(self, of: Rows, batches: Iterable[np.ndarray], n_rows: int, members: int = 1) -> None:
        self.of, self.n_rows, self.members = of, n_rows, members
        needs = [of.need(rows) for rows in batches]
        if members > 1:  # which batches meet in a pass is chance
            drawn = np.random.default_rng(0).integers(0, len(needs), (MOST_PASSES, members))
            needs = [of.together([needs[index] for index in some]) for some in drawn]
        self.all = _sizes(needs, of.together([of.most(n_rows)] * members), of, n_rows * members)

    def fit(self, batches: Sequence[np.ndarray]) -> Size:
        """Returns the smallest size of a pass over some batches: in one buffer, or each in one of that size.

        Some may have no rows left.
        """
        needs = [self.of.need(rows) for rows in batches if len(rows)]
        need = self.of.together(needs) if self.members > 1 else _widest(needs)
        return next(size for size in self.all if size.holds(need))


def _sizes(needs: Sequence[Size], most: Size, of: Rows, n_rows: int) -> tuple[Size, ...]:
    """Chooses the fewest sizes with little filler. The last one is `most`.

    Args:
        n_rows: Rows of a buffer.
    """
    most = replace(most, tokens=_up(most.tokens))
    totals = np.sort([need.tokens for need in needs])
    found: tuple[Size, ...] = (most,)
    for n_sizes in range(1, MOST_SIZES + 1):
        found = _of_boundaries(needs, _boundaries(totals, most.tokens, n_sizes), most, of)
        taken = sum(next(size for size in found if size.holds(need)).tokens for need in needs)
        if 1 - totals.sum() / taken <= AIM:
            break
    return tuple(replace(size, tokens=size.tokens + ROUND * (size.tokens == n_rows)) for size in found)


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
        is_joined: Whether the batches of a pass with several members lie in one buffer.
    """

    def __init__(self, of: Rows, most_rows: int, most_places: int | None = None, is_joined: bool = False) -> None:
        self.of, self.most_rows, self.most_places, self.is_joined = of, most_rows, most_places, is_joined
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
        n_rows = max(self._of_width(width).rows, *map(len, batches))
        tokens = n_rows * width * (len(batches) if self.is_joined else 1)
        is_full = tokens == n_rows * len(batches)  # as `Rows` says, not as many tokens as rows
        return Size(tokens + ROUND * is_full, n_rows, width)

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
