"""Flips and shifts of training pictures: what they do to pixels, and to which batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from autopeft.errors import UsageError
from autopeft.tasks._augment import SHARE, crop, flip
from autopeft.tasks.image_classification import ImageClassification
from autopeft.training.loop import Worker
from autopeft.training.setup import Setup
from autopeft.training.stack import Member
from autopeft.trial import Status, Trial
from tests.models import vit


def test_a_flip_mirrors_some_pictures_and_leaves_the_others():
    torch.manual_seed(0)
    pixels = torch.rand(200, 3, 4, 6)
    found = flip(pixels)
    is_same = (found == pixels).flatten(1).all(1)
    is_mirrored = (found == pixels.flip(-1)).flatten(1).all(1)
    assert bool((is_same | is_mirrored).all()) and 60 < int(is_same.sum()) < 140


def test_a_crop_shifts_each_picture_and_mirrors_its_border():
    torch.manual_seed(0)
    size = 16
    pixels = (torch.arange(size)[:, None] * 100 + torch.arange(size)).float().expand(300, 1, size, size)
    most = size // SHARE
    shifts = set()
    for picture in crop(pixels)[:, 0]:
        center = int(picture[size // 2, size // 2])
        down, right = center // 100 - size // 2, center % 100 - size // 2
        wide = torch.nn.functional.pad(pixels[:1], (most,) * 4, mode="reflect")[0, 0]
        assert torch.equal(picture, wide[most + down :, most + right :][:size, :size])
        shifts.add((down, right))
    assert shifts == {(down, right) for down in range(-most, most + 1) for right in range(-most, most + 1)}


def test_unknown_changes_are_refused():
    with pytest.raises(UsageError, match="augment: expected some of flip, crop; got rotate"):
        ImageClassification(augment=["flip", "rotate"])


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, shade in {"dark": 40, "light": 200}.items():
        (folder / "data" / name).mkdir(parents=True)
        for index in range(20):
            pixels = np.clip(rng.normal(shade, 30, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "data" / name / f"{index}.png")
    return Setup.of(
        model=vit(folder / "model"), task="image_classification", data={"train": str(folder / "data")}, steps=6,
        batch_size=8, rungs=(0.5,), score_rungs=True, folder=str(folder / "run"), cache=str(folder / "cache"), keep="none",
    )  # fmt: skip


HEAD = Trial(0, {"method": "head", "head.lr": 1e-2}, 3)


@pytest.mark.parametrize("layout", ["padded", "flat"])
def test_only_training_batches_change_and_nothing_is_cached(setup, layout):
    worker = Worker(setup.but(options={"augment": ["flip", "crop"]}, layout=layout))
    network = worker.network(HEAD)
    assert network.depth == 0 and Worker(setup).network(HEAD).depth > 0
    assert Member.of(worker, HEAD) is None, "its activations are its own"
    rows = np.arange(8)
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.equal(network.logits("train", rows), network.logits("train", rows))
    assert network.backward("train", rows) != network.backward("train", rows)
    assert network.backward("validation", rows[:2]) == network.backward("validation", rows[:2])


def test_a_seed_gives_the_same_trial_again_and_another_one_than_without(setup):
    losses = []
    for augment in (["flip", "crop"], ["flip", "crop"], []):
        *_, result = Worker(setup.but(options={"augment": augment})).evaluate(HEAD)
        assert result.status is Status.COMPLETE, result.error
        losses.append(result.metrics["train_loss"])
    assert losses[0] == losses[1] != losses[2]
