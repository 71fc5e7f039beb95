"""Pretrains a small vision transformer on five classes of CIFAR-10, to be adapted to the other five.

No pretrained vision transformer is at hand. The base learns to tell airplanes, automobiles, birds, cats and deer apart,
from the training rows of these classes alone; `rows` are those of dogs, frogs, horses, ships and trucks. No picture of a
target class, and none of validation or test, is shown to the base, so the transfer is honest, as that of the demo's digits.
It shows that vision transformers go the whole way on real pictures; of this one's quality nothing is claimed.

`python benchmarks/vit.py` prints the folders of base and rows. Both are made once, in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

SOURCE = ("airplane", "automobile", "bird", "cat", "deer")
TARGET = ("dog", "frog", "horse", "ship", "truck")
SPLITS = ("train", "validation", "test")
SIZES = {"image_size": 32, "patch_size": 4, "hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4,
         "intermediate_size": 128}  # fmt: skip
EPOCHS, BATCH, RATE, DECAY, SEED, VERSION = 10, 64, 2e-3, 0.05, 0, 1


def base(data: Path) -> Path:
    """The base's folder in the user's cache; trains it first if it is not there.

    Args:
        data: The folder of data sets.
    """
    file = data / "cifar10_subset" / "train.parquet"
    settings = (VERSION, SOURCE, SIZES, EPOCHS, BATCH, RATE, DECAY, SEED)
    return _built("cifar10-vit", settings, [file], lambda to: pretrain(*pictures(file), to))


def rows(data: Path) -> dict[str, Path]:
    """Split → Parquet file of the target classes' rows, the official splits; selects them first if they are not there."""
    files = [data / "cifar10_subset" / f"{split}.parquet" for split in SPLITS]

    def build(to: Path) -> None:
        for file in files:
            select(file, to / file.name, TARGET)

    folder = _built("cifar10-target", (VERSION, TARGET), files, build)
    return {file.stem: folder / file.name for file in files}


def _built(name: str, settings: tuple[Any, ...], files: list[Path], build: Any) -> Path:
    """Returns a folder of the cache whose name has a digest of all that it depends on; builds it if it is not there."""
    from autopeft.files import build_once
    from autopeft.tasks.digits import cache_folder

    digest = hashlib.sha256(repr(settings).encode())
    for file in files:
        digest.update(file.read_bytes())
    made = cache_folder() / f"{name}-{digest.hexdigest()[:12]}"
    made.parent.mkdir(parents=True, exist_ok=True)
    build_once(made, build)
    return made


def class_names(file: Path) -> list[str]:
    """The names of a file's integer labels, from the dataset_info.json beside it."""
    names: list[str] = json.loads((file.parent / "dataset_info.json").read_text(encoding="utf-8"))["label_names"]
    return names


def select(file: Path, to: Path, classes: tuple[str, ...]) -> None:
    """Writes the rows of some classes, their labels as names."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    labels = pa.array(class_names(file)).take(table["label"])
    at = table.schema.get_field_index("label")
    table = table.set_column(at, "label", labels)
    pq.write_table(table.filter(pc.is_in(labels, value_set=pa.array(classes))).replace_schema_metadata(None), to)


def pictures(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """The source classes' rows: pictures (n, 3, height, width) uint8, indices into SOURCE (n,)."""
    import pandas as pd

    from autopeft.tasks.image_classification import as_picture

    frame = pd.read_parquet(file)
    names = np.array(class_names(file))[frame["label"]]
    keep = np.isin(names, SOURCE)
    found = np.stack([np.asarray(as_picture(image)) for image in frame["image"][keep]])
    return found.transpose(0, 3, 1, 2), np.array([SOURCE.index(name) for name in names[keep]])


def pretrain(images: np.ndarray, labels: np.ndarray, to: Path, epochs: int = EPOCHS) -> None:
    """Trains the base to tell the source classes apart, flipped and shifted by chance, one thread; saves it."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    from autopeft.tasks._augment import crop, flip

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    pixels, target = torch.from_numpy(images.copy()), torch.from_numpy(labels)
    names = dict(enumerate(SOURCE))
    config = ViTConfig(
        **SIZES, hidden_dropout_prob=0.0, id2label=names, label2id={name: at for at, name in names.items()}
    )
    model = ViTForImageClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    steps = epochs * -(-len(target) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    say(f"pretraining a vision transformer of {model.num_parameters():,} parameters on {len(target):,} pictures of "
        f"{', '.join(SOURCE)}: {epochs} epochs, once")  # fmt: skip
    began = time.monotonic()
    for epoch in range(1, epochs + 1):
        right = 0
        for batch in torch.randperm(len(target)).split(BATCH):
            logits = model(pixel_values=crop(flip(pixels[batch].float() / 127.5 - 1))).logits
            loss = torch.nn.functional.cross_entropy(logits, target[batch])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            right += int((logits.argmax(1) == target[batch]).sum())
        if epoch % max(1, epochs // 5) == 0:
            say(
                f"  epoch {epoch}: {right / len(target):.2f} of training pictures right, {time.monotonic() - began:.0f} s"
            )
    model.eval().save_pretrained(to)
    size = {"height": SIZES["image_size"], "width": SIZES["image_size"]}
    ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(to)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    from shared import shared

    print(base(shared() / "data"))
    for file in rows(shared() / "data").values():
        print(file)
