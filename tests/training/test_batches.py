"""Order and padding of batches."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autopeft.tasks import Ragged, Split
from autopeft.training.batches import by_length, collate, endless, order


def ragged(lengths):
    values = np.arange(1, sum(lengths) + 1, dtype=np.int32)
    return Ragged(values, np.concatenate([[0], np.cumsum(lengths)]), 0)


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=300),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 2**31 - 1),
)
def test_an_epoch_visits_each_row_once(lengths, batch_size, seed):
    batches = order(np.array(lengths), batch_size, seed, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert max(map(len, batches)) <= batch_size
    assert len(batches) <= -(-len(lengths) // batch_size) + len(lengths) // (64 * batch_size)


def test_the_order_is_a_function_of_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(1, 50, 200)
    first, again, other = (order(lengths, 16, seed, 0) for seed in (7, 7, 8))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True) if len(a) == len(b))
    batches = endless(lengths, 16, 7)
    epochs = [next(batches) for _ in range(2 * len(first))]
    assert all((a == b).all() for a, b in zip(epochs, first, strict=False))
    assert any((a != b).any() for a, b in zip(epochs[len(first) :], first, strict=True) if len(a) == len(b))


def test_pools_save_padding():
    """Against batches of shuffled rows: the padded tokens shrink to nearly the real ones."""
    rng = np.random.default_rng(0)
    lengths = rng.geometric(0.05, 2000) + 1

    def padded(batches):
        return sum(lengths[rows].max() * len(rows) for rows in batches) / lengths.sum()

    shuffled = np.array_split(rng.permutation(2000), 2000 // 32)
    assert padded(order(lengths, 32, 0, 0)) < 1.15 < 2 < padded(shuffled)


def test_longest_first():
    batches = by_length(np.array([3, 9, 1, 9, 4]), 2)
    assert [rows.tolist() for rows in batches] == [[1, 3], [4, 0], [2]]


def test_collate_pads_and_masks():
    split = Split({"input_ids": ragged([2, 3, 1])}, np.zeros(3, dtype=np.int64))
    inputs = collate(split, np.array([2, 1]))
    assert inputs["input_ids"].tolist() == [[6, 0, 0], [3, 4, 5]]
    assert inputs["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]


def test_collate_scales_stored_integers_in_the_rows_asked_for():
    images = np.arange(3 * 2 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2, 2)
    scale = {"pixel_values": (np.array([2.0, 1.0]), np.array([0.0, -1.0]))}
    inputs = collate(Split({"pixel_values": images}, np.zeros(3), scale), np.array([2, 0]))
    assert inputs["pixel_values"].dtype is torch.float32
    assert inputs["pixel_values"][0, 0].tolist() == [[32.0, 34.0], [36.0, 38.0]]
    assert inputs["pixel_values"][1, 1].tolist() == [[3.0, 4.0], [5.0, 6.0]]


@pytest.mark.parametrize("without", [frozenset(), frozenset({"pixel_values"})])
def test_a_column_that_nobody_looks_at_is_not_read(without):
    split = Split({"pixel_values": np.ones((4, 3, 8, 8), dtype=np.float32)}, np.zeros(4))
    shape = collate(split, np.array([0, 1]), without=without)["pixel_values"].shape
    assert shape == ((2, 1, 1, 1) if without else (2, 3, 8, 8))
