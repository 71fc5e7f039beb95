"""Cached activations are what the model computes, however they came about."""

import contextlib
import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

from autopeft.tasks import Ragged, Split
from autopeft.training import prefix_cache
from autopeft.training.batches import by_length, collate
from autopeft.training.prefix_cache import Cut, PrefixCache, Reach
from tests.executors.cluster import PROJECT, UNSHARE, can_hide

N_LAYERS = 3


def text():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=N_LAYERS, num_attention_heads=2, intermediate_size=32
    )
    model = BertForSequenceClassification(config).eval()
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 12, 150)
    ids = Ragged(rng.integers(1, 50, lengths.sum()).astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]), 0)
    split = Split({"input_ids": ids}, {})
    return model, split, ("bert.embeddings",), tuple(f"bert.encoder.layer.{i}" for i in range(N_LAYERS))


def test_on_a_gpu_a_pass_holds_many_tokens_of_texts(monkeypatch):
    _, split, *_ = text()
    own = prefix_cache.passes(split, torch.device("cpu"))
    assert [len(rows) for rows in own] == [64, 64, 22]
    monkeypatch.setattr(prefix_cache, "PLACES", 500)
    many = prefix_cache.passes(split, torch.device("cuda"))
    lengths = split.lengths
    assert sorted(np.concatenate(many)) == list(range(150))
    assert all(len(rows) * lengths[rows].max() <= 500 for rows in many) and len(many) == 3
    sounds = Split({"input_values": Ragged(np.ones(90, np.float32), np.arange(91), 0)}, {})
    assert [len(rows) for rows in prefix_cache.passes(sounds, torch.device("cuda"))] == [64, 26]


def images():
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        intermediate_size=32,
    )
    model = ViTForImageClassification(config).eval()
    pixels = np.random.default_rng(0).normal(size=(150, 3, 8, 8)).astype(np.float32)
    split = Split({"pixel_values": pixels}, {})
    return model, split, ("vit.embeddings",), tuple(f"vit.layers.{i}" for i in range(N_LAYERS))


def get(cache, split, depth, reach, name="train"):
    """One split's cache, or None."""
    found = cache.get({name: split}, depth, reach)
    return None if found is None else found[name]


def reach_of(model, stem, blocks):
    def reach(depth, lower, below):
        clone = copy.deepcopy(model)
        cut = Cut(clone, stem, blocks, lower) if lower is not None else None
        takes = depth > N_LAYERS
        target = "classifier" if takes else blocks[depth - 1]
        return Reach(clone, target, takes, contextlib.nullcontext, torch.device("cpu"), cut, below)

    return reach


def logits(model, split, cached=None, stem=(), blocks=(), depth=0):
    clone = copy.deepcopy(model)
    cut = Cut(clone, stem, blocks, depth) if cached is not None else None
    out = np.empty((len(split), 2), dtype=np.float32)
    with torch.no_grad():
        for rows in by_length(split.lengths, 32):  # other batches than the cache's
            if cut is not None:
                cut.hidden = cached(rows, "cpu")
            unseen = frozenset(split.inputs) if cut is not None and cut.skips_stem else frozenset()
            out[rows] = clone(**collate(split, rows, without=unseen)).logits.numpy()
    return out


@pytest.mark.parametrize("make", [text, images])
@pytest.mark.parametrize("depth", range(1, N_LAYERS + 1))
def test_logits_from_the_cache_equal_logits_from_the_inputs(make, depth, tmp_path):
    model, split, stem, blocks = make()
    cached = get(PrefixCache(tmp_path, 2**30), split, depth, reach_of(model, stem, blocks))
    exact = logits(model, split)
    assert np.abs(logits(model, split, cached, stem, blocks, depth) - exact).max() <= 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("make", [text, images])
def test_a_cache_built_on_a_lower_one_holds_the_same_bits(make, tmp_path):
    model, split, stem, blocks = make()
    reach = reach_of(model, stem, blocks)
    alone = get(PrefixCache(tmp_path / "a", 2**30), split, 3, reach)
    cache = PrefixCache(tmp_path / "b", 2**30)
    get(cache, split, 1, reach)
    built_on_1 = get(cache, split, 3, reach)
    rows = np.arange(len(split))
    assert torch.equal(alone(rows, "cpu"), built_on_1(rows, "cpu"))


def test_the_head_alone_is_called_on_its_own_input(tmp_path):
    model, split, stem, blocks = text()
    cached = get(PrefixCache(tmp_path, 2**30), split, N_LAYERS + 1, reach_of(model, stem, blocks))
    assert cached.values.shape == (len(split), 16)
    with torch.no_grad():
        head = model.classifier(cached(np.arange(len(split)), "cpu")).numpy()
    np.testing.assert_allclose(head, logits(model, split), atol=1e-6)


def test_over_the_bound_nothing_is_cached(tmp_path):
    model, split, stem, blocks = text()
    size = int(split.lengths.sum()) * 16 * 4
    assert get(PrefixCache(tmp_path, size - 1), split, 1, reach_of(model, stem, blocks)) is None
    assert not any(tmp_path.iterdir())
    assert get(PrefixCache(tmp_path, size), split, 1, reach_of(model, stem, blocks)) is not None


def test_the_least_recently_used_goes_and_is_read_on_by_who_has_it(tmp_path):
    model, split, stem, blocks = text()
    size = int(split.lengths.sum()) * 16 * 4
    cache = PrefixCache(tmp_path, int(2.5 * size))
    reach = reach_of(model, stem, blocks)
    first = get(cache, split, 1, reach)
    before = first(np.arange(5), "cpu")
    for depth in (2, 3):
        get(cache, split, depth, reach)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["train-2", "train-3"]
    assert torch.equal(first(np.arange(5), "cpu"), before)


def test_splits_that_fit_singly_and_not_together_are_not_cached(tmp_path):
    """Else each would drop the other, and every trial would build both anew."""
    model, split, stem, blocks = text()
    size = int(split.lengths.sum()) * 16 * 4
    both, reach = {"train": split, "validation": split}, reach_of(model, stem, blocks)
    assert PrefixCache(tmp_path, 2 * size - 1).get(both, 1, reach) is None
    assert PrefixCache(tmp_path, 2 * size).get({**both, "test": split}, 1, reach) is None
    assert not any(tmp_path.iterdir())
    cache = PrefixCache(tmp_path, 2 * size)
    for depth in (1, 2):
        cache.get(both, depth, reach)
        assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {f"train-{depth}", f"validation-{depth}"}
    before = {path: path.stat().st_ino for path in tmp_path.iterdir() if path.is_dir()}
    assert set(cache.get(both, 2, reach)) == set(both)
    assert {path: path.stat().st_ino for path in tmp_path.iterdir() if path.is_dir()} == before, "none is built again"


def test_of_a_part_of_the_rows_the_bound_is_that_of_the_whole(tmp_path):
    model, split, stem, blocks = text()
    size = int(split.lengths.sum()) * 16 * 4
    cache = PrefixCache(tmp_path, 3 * size)
    cache.parts = {"train": 0.25}
    assert get(cache, split, 1, reach_of(model, stem, blocks)) is None
    assert get(cache, split, 1, reach_of(model, stem, blocks), "validation") is not None


def test_what_vanishes_while_it_is_opened_is_built_again(tmp_path, monkeypatch):
    model, split, stem, blocks = text()
    cache, reach = PrefixCache(tmp_path, 2**30), reach_of(model, stem, blocks)
    load, loads = cache._load, []

    def vanishing(folder):
        loads.append(folder)
        if len(loads) in (1, 2):
            prefix_cache._remove(folder)
        return load(folder)

    monkeypatch.setattr(cache, "_load", vanishing)
    assert get(cache, split, 2, reach) is not None
    assert len(loads) == 3
    monkeypatch.setattr(prefix_cache, "MOST_TRIES", 0)
    assert get(cache, split, 2, reach) is None, "computed without a cache, then"


RACE = """
import sys
from pathlib import Path
import numpy as np
from tests.training.test_prefix_cache import PrefixCache, get, reach_of, text

model, split, stem, blocks = text()
rows, reach = np.arange(5), reach_of(model, stem, blocks)
alone = PrefixCache(Path("alone-" + sys.argv[1]), 2**30)
exact = {depth: get(alone, split, depth, reach)(rows, "cpu") for depth in (1, 2, 3)}
size = int(split.lengths.sum()) * 16 * 4
cache = PrefixCache(Path("shared"), int(1.5 * size))
for turn in range(40):
    depth = 1 + (turn + int(sys.argv[1])) % 3
    found = get(cache, split, depth, reach)
    assert found is None or found(rows, "cpu").equal(exact[depth])
"""


def test_two_workers_that_share_a_bound_drop_and_build_without_a_fault(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", RACE]
    workers = [
        subprocess.Popen([*words, number], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
        for number in "01"
    ]
    for worker in workers:
        _, faults = worker.communicate(timeout=200)
        assert worker.returncode == 0, faults


FULL = """
from pathlib import Path
import pytest
from autopeft.errors import EnvironmentFault
from autopeft.training.prefix_cache import PrefixCache
from tests.training.test_prefix_cache import images, reach_of

model, split, stem, blocks = images()
folder = Path("full")
(folder / "filler").write_bytes(bytes(70_000))
with pytest.raises(EnvironmentFault, match="make room, or set training.prefix_cache_gib lower"):
    PrefixCache(folder, 2**30).get({"train": split}, 2, reach_of(model, stem, blocks))
assert [path.name for path in folder.iterdir() if path.is_dir()] == [], "nothing of it stays"
(folder / "filler").unlink()
PrefixCache(folder, 2**30).get({"train": split}, 2, reach_of(model, stem, blocks))
print("went on")
"""


@pytest.mark.skipif(not can_hide(), reason="no file system can be mounted for a process here: `unshare --mount` fails")
def test_a_full_disk_is_said_and_kills_nobody(tmp_path):
    """A disk of 100 kB, most of it taken; the activations take 48 kB. A write to a map of holes would be a bus error."""
    (tmp_path / "full").mkdir()
    mount = f"mount -t tmpfs -o size=100k none {tmp_path}/full"
    words = [*UNSHARE, "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-c", FULL]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr
