"""scikit-learn's handwritten digits (8 × 8 pixels, 1,797 images; UCI, Alpaydin and Kaynak, 1998): offline, in seconds.

The base `digits` is a small vision transformer, pretrained on the spot on a *source* task and then adapted to a
*target* task that it has not seen: the source is the digits 0 to 4, the target tells 5 to 9 apart. No image of a
target class, and none of the target's splits, is ever shown to the base, so the transfer is honest: what the base
knows is strokes and curves, not the answer. It is cached, for it depends on nothing but this file.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autopeft.errors import ConfigError, Fault
from autopeft.files import build_once
from autopeft.tasks import Dataset, Kind, Raw, Source, Split
from autopeft.tasks._classification import Classification
from autopeft.tasks._reading import describe_origin
from autopeft.tasks._splits import carve
from autopeft.tasks._tables import read_file
from autopeft.trial import derive_seed

SOURCE, TARGET = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)
# Everything that the base depends on; its hash names the cached folder.
BASE = {
    "image_size": 8, "patch_size": 2, "num_channels": 1, "hidden_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "intermediate_size": 96, "epochs": 20, "batch_size": 32, "lr": 2e-3, "seed": 0,
}  # fmt: skip
ARCHITECTURE = ("image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads",
                "intermediate_size")  # fmt: skip
MULTIPLY, ADD = np.array([1 / 8], dtype=np.float32), np.array([-1.0], dtype=np.float32)  # 0 … 16 → -1 … 1


class Digits(Classification):
    """The target task: 5, 6, 7, 8 or 9."""

    auto_class = "AutoModelForImageClassification"
    columns: Mapping[str, Kind] = {}
    reads_folders = False
    bases = ("digits",)

    def read(self, data: Mapping[str, Any], seed: int) -> Dataset:
        """Half for training, the rest for validation and test, stratified by seed."""
        images, labels = load_digits(TARGET)
        every = Raw({"image": list(images)}, {"label": labels}, np.arange(len(labels)), labels)
        rest, test = carve(every, 0.25, derive_seed(seed, "test"))
        train, validation = carve(rest, 1 / 3, derive_seed(seed, "validation"))
        splits = {"train": train, "validation": validation, "test": test}
        digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()[:16]
        made = dict.fromkeys(splits, "half, a quarter and a quarter, stratified, by seed")
        origin = describe_origin("sklearn.datasets.load_digits, classes 5 to 9", f"sha256:{digest}", splits, made)
        return self.weighted(Dataset(splits, {"label_names": list(map(str, TARGET)), "n_outputs": len(TARGET)}, origin))

    def read_rows(self, file: Path, data: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """Rows of 64 pixels from 0 to 16, as scikit-learn has them."""
        table = read_file(file)
        pixels = np.array(list(table.values()), dtype=np.float64).T
        if pixels.shape[1] != 64 or np.any((pixels < 0) | (pixels > 16)):
            raise ConfigError(
                [Fault("", f"expected 64 columns of pixels from 0 to 16, got {pixels.shape[1]}")], str(file)
            )
        return {"image": list(pixels.astype(np.uint8).reshape(-1, 8, 8))}

    def processor(self, source: Source) -> Any:
        """None: 64 pixels are what the model takes."""
        return None

    def encoder(self, source: Source, about: Mapping[str, Any]) -> Callable[[Raw], Split]:
        """Pixels as they are."""

        def encode(raw: Raw) -> Split:
            pixels = np.asarray(raw.inputs["image"], dtype=np.uint8)[:, None]
            return Split({"pixel_values": pixels}, raw.targets, {"pixel_values": (MULTIPLY, ADD)})

        return self.weighing(encode, about)

    def base(self, name: str) -> Path:
        """Returns the folder of the pretrained base. If it is not in the cache, says so and trains it (ten seconds)."""
        folder = cache_folder() / f"digits-base-{hashlib.sha256(repr(sorted(BASE.items())).encode()).hexdigest()[:12]}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        build_once(folder, pretrain)
        return folder


def load_digits(classes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """((n, 8, 8) uint8 from 0 to 16, (n,) indices into `classes`)."""
    from sklearn.datasets import load_digits as load

    data = load()
    keep = np.isin(data.target, classes)
    return data.images[keep].astype(np.uint8), np.searchsorted(classes, data.target[keep]).astype(np.int64)


def pretrain(folder: Path) -> None:
    """Trains the base on the source task, one thread, and saves it as a transformers folder."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    images, labels = load_digits(SOURCE)
    pixels = torch.from_numpy(images[:, None].astype(np.float32) * MULTIPLY[0] + ADD[0])
    target = torch.from_numpy(labels)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(BASE["seed"])
            config = ViTConfig(
                **{key: BASE[key] for key in ARCHITECTURE}, hidden_dropout_prob=0.0, num_labels=len(SOURCE)
            )
            model = ViTForImageClassification(config)
            optimizer = torch.optim.AdamW(model.parameters(), lr=BASE["lr"], weight_decay=0.05)
            steps = int(BASE["epochs"]) * -(-len(target) // int(BASE["batch_size"]))
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, BASE["lr"], total_steps=steps)
            epochs, started = int(BASE["epochs"]), time.monotonic()
            _say(f"pretraining the demo's base, a small vision transformer, on {len(target)} digits from 0 to 4: once")
            for epoch in range(1, epochs + 1):
                for rows in torch.randperm(len(target)).split(int(BASE["batch_size"])):
                    loss = torch.nn.functional.cross_entropy(model(pixel_values=pixels[rows]).logits, target[rows])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                if epoch in (1, epochs // 2, epochs):
                    _say(f"  epoch {epoch} of {epochs}, {time.monotonic() - started:.0f} s")
            model.eval().save_pretrained(folder)
    finally:
        torch.set_num_threads(threads)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/autopeft, else ~/.cache/autopeft."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autopeft"


plugin = Digits
