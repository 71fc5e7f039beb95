"""Few sizes, little filler, and a size for every batch."""

import numpy as np
import pytest

from autopeft.training.batches import order
from autopeft.training.sizes import FILLER, Rows, Size, Sizes, Widths


def lengths_of(kind, n_rows=3000):
    rng = np.random.default_rng(0)
    return {
        "sentences": rng.integers(3, 30, n_rows),
        "long tail": np.clip(rng.lognormal(4, 0.6, n_rows).astype(int), 8, 512),
        "two lengths": rng.choice([5, 200], n_rows),
        "one length": np.full(n_rows, 7),
    }[kind]


def filler(sizes, of, batches):
    """Share of the buffers' tokens that no row has."""
    real = sum(of.need(rows).tokens for rows in batches)
    return 1 - real / sum(sizes.fit([rows]).tokens for rows in batches)


@pytest.mark.parametrize("batch_size", [8, 32])
@pytest.mark.parametrize("kind", ["sentences", "long tail", "two lengths", "one length"])
def test_filler_is_within_the_bound_in_epochs_that_were_not_seen(kind, batch_size):
    lengths = lengths_of(kind)
    of = Rows(lengths, scored=lengths // 2)
    sizes = Sizes(of, [rows for epoch in range(2) for rows in order(lengths, batch_size, 0, epoch)], batch_size)
    fresh = [rows for seed in (1, 2) for rows in order(lengths, batch_size, seed, 5)]
    assert filler(sizes, of, fresh) <= FILLER + 0.01
    assert len(sizes.all) <= 12
    for rows in fresh:
        assert sizes.fit([rows]).holds(of.need(rows))


def test_a_size_fewer_would_be_more_filler_than_the_bound():
    lengths = lengths_of("sentences")
    of, batches = Rows(lengths), order(lengths, 32, 0, 0)
    sizes = Sizes(of, batches, 32)
    tokens = np.array([of.need(rows).tokens for rows in batches])
    cuts = sorted({size.tokens for size in sizes.all})
    for left_out in cuts[:-1]:
        rest = np.array([cut for cut in cuts if cut != left_out])
        assert 1 - tokens.sum() / rest[np.searchsorted(rest, tokens)].sum() > FILLER


@pytest.mark.parametrize("is_flat", [True, False])
def test_the_last_size_holds_any_batch(is_flat):
    lengths = lengths_of("long tail", 300)
    of = Rows(lengths, scored=lengths, is_flat=is_flat)
    sizes = Sizes(of, order(lengths, 16, 0, 0), 16)
    worst = np.argsort(lengths)[-16:]
    assert sizes.fit([worst]).holds(of.need(worst))
    assert sizes.fit([worst]) == sizes.all[-1]
    assert sizes.fit([worst[:1]]).rows == 16, "a batch with fewer rows has filler rows"


def test_members_in_one_buffer_have_little_filler():
    """Their sum varies less than each of them: a shared pass as wide as its largest member would be half empty."""
    lengths = lengths_of("long tail")
    of, rng = Rows(lengths, scored=lengths // 2), np.random.default_rng(1)
    sizes = Sizes(of, order(lengths, 8, 0, 0), 8, members=16)
    fresh = order(lengths, 8, 3, 0)
    passes = [[fresh[index] for index in rng.integers(0, len(fresh), 16)] for _ in range(200)]
    real = sum(int(lengths[np.concatenate(batches)].sum()) for batches in passes)
    found = [sizes.fit(batches) for batches in passes]
    assert 1 - real / sum(size.tokens for size in found) <= FILLER
    for batches, size in zip(passes, found, strict=True):
        assert size.picked >= int(of.scored[np.concatenate(batches)].sum())
        assert size.longest >= int(lengths[np.concatenate(batches)].max())
    worst = [np.argsort(lengths)[-8:]] * 16
    assert sizes.fit(worst).tokens >= 16 * int(lengths[worst[0]].sum())
    apart = Sizes(of, order(lengths, 8, 0, 0), 8)
    assert 1 - real / sum(16 * apart.fit(batches).tokens for batches in passes) > 0.3


def test_a_shared_pass_has_the_size_of_its_largest_member():
    lengths = np.arange(1, 65)
    of = Rows(lengths)
    sizes = Sizes(of, [np.arange(at, at + 8) for at in range(0, 64, 8)], 8)
    small, large = np.arange(8), np.arange(56, 64)
    assert sizes.fit([small, large]) == sizes.fit([large]) > sizes.fit([small])


def test_in_the_padded_form_a_size_is_rows_times_width():
    lengths = lengths_of("sentences")
    sizes = Sizes(Rows(lengths, is_flat=False), order(lengths, 32, 0, 0), 32)
    assert all(size.tokens >= size.rows * size.longest for size in sizes.all)
    assert {size.rows for size in sizes.all} == {32}


@pytest.mark.parametrize("most_places", [None, 600])
@pytest.mark.parametrize("kind", ["sentences", "long tail", "one length"])
def test_passes_without_gradient_take_each_row_once_within_the_bound(kind, most_places):
    lengths = lengths_of(kind, 700)
    widths = Widths(Rows(lengths), 128, most_places)
    batches = widths.batches()
    assert sorted(np.concatenate(batches).tolist()) == list(range(700))
    assert max(map(len, batches)) <= 128
    assert lengths[batches[0]].max() == lengths.max(), "the longest first"
    for rows in batches:
        size = widths.fit([rows])
        assert size.holds(Size(int(lengths[rows].sum()), len(rows), int(lengths[rows].max())))
        assert most_places is None or size.tokens <= max(most_places, size.longest)
    assert len({widths.fit([rows]) for rows in batches}) <= 12


def test_a_pass_with_more_rows_than_usual_has_a_size_of_its_own():
    widths = Widths(Rows(np.full(50, 4)), 8)
    assert widths.fit([np.arange(20)]) == Size(80, 20, 4)
