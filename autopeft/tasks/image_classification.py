"""Image classification: a label for a picture."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autopeft.errors import ConfigError, Fault
from autopeft.tasks import Dataset, Raw, Split
from autopeft.tasks._classification import Classification
from autopeft.tasks._reading import lacks, read_table
from autopeft.tasks._splits import complete
from autopeft.tasks._tables import read_columns

CHUNK = 256  # pictures decoded at once: bounds the memory of preparing
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
MOST_DAMAGED = 20  # named at once


class ImageClassification(Classification):
    """Pictures from a folder of class folders, Parquet, or a Hugging Face data set on disk or on the hub."""

    auto_class = "AutoModelForImageClassification"
    reads_folders = True

    def read(self, data: Mapping[str, Any], seed: int) -> Dataset:
        if data.get("train") and Path(data["train"]).is_dir():
            return read_folders(data, seed)
        column = data.get("image") or "image"
        return read_table(data, {column: "image"}, seed, encodes_pictures=True)

    def read_rows(self, file: Path, data: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        if file.is_dir():
            pictures = sorted(str(path) for path in file.iterdir() if path.suffix.lower() in PICTURES)
            if not pictures:
                raise ConfigError([Fault("", f"holds no picture: expected {', '.join(PICTURES)}")], str(file))
            return {"image": pictures}
        return read_columns(file, [data.get("image") or "image"])

    def processor(self, model_path: str, options: Mapping[str, Any]) -> Any:
        return image_processor(model_path, options)

    def encode(self, raw: Raw, model_path: str, options: Mapping[str, Any]) -> Split:
        """Pixels as the model's image processor makes them, decoded, resized and cropped once.

        Kept as bytes, with the processor's rescaling and normalising as `scale`, where that gives the same to 1e-5.
        """
        processor = self.processor(model_path, options)
        (pictures,) = raw.inputs.values()
        decoded = _decoded(pictures, raw.rows)
        first = next(decoded)
        plain, exact = (processor_pixels(processor, first[:8], scaled=scaled) for scaled in (False, True))
        scale = _scale(processor, plain.shape[1])
        stored = plain.round().clip(0, 255)
        agrees = np.abs(stored * scale[0][:, None, None] + scale[1][:, None, None] - exact).max() <= 1e-5
        pixels = np.empty((len(pictures), *plain.shape[1:]), dtype=np.uint8 if agrees else np.float32)
        at = 0
        for images in itertools.chain([first], decoded):
            chunk = processor_pixels(processor, images, scaled=not agrees)
            pixels[at : at + len(images)] = chunk.round().clip(0, 255) if agrees else chunk
            at += len(images)
        return Split({"pixel_values": pixels}, raw.labels, {"pixel_values": scale} if agrees else {})


def read_folders(data: Mapping[str, Any], seed: int) -> Dataset:
    """A folder a split, a folder a class in it."""
    import hashlib

    splits, faults = {}, []
    names = sorted(path.name for path in Path(data["train"]).iterdir() if path.is_dir())
    if len(names) < 2:
        raise ConfigError(
            [Fault("data.train", f"{data['train']} has {len(names)} class folders; expected two or more")]
        )
    digest = hashlib.sha256()
    for split in ("train", "validation", "test"):
        if not data.get(split):
            continue
        files: list[str] = []
        labels: list[int] = []
        for folder in sorted(path for path in Path(data[split]).iterdir() if path.is_dir()):
            if folder.name not in names:
                faults.append(Fault(f"data.{split}", f"has a class {folder.name!r} that train has not"))
                continue
            found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
            files += [str(path) for path in found]
            labels += [names.index(folder.name)] * len(found)
        if not files:
            faults.append(Fault(f"data.{split}", f"{data[split]} has no pictures ({', '.join(PICTURES)})"))
        for file in files:
            digest.update(Path(file).name.encode() + Path(file).stat().st_size.to_bytes(8, "big"))
        splits[split] = Raw({"image": files}, np.array(labels, dtype=np.int64), np.arange(len(files)))
    if faults:
        raise ConfigError(faults, "data")
    parts, made = complete(splits, data, seed)
    origin = {
        "source": data["train"],
        "digest": f"sha256:{digest.hexdigest()[:16]}",
        "rows": {name: len(raw.labels) for name, raw in parts.items()},
        "made": made,
    }
    return Dataset(parts, tuple(names), origin)


def image_processor(model_path: str, options: Mapping[str, Any]) -> Any:
    """The model's own, with `image_size` in place of its size where given."""
    from transformers import AutoImageProcessor
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it says that torchvision is not there, a line a class
    try:
        processor = AutoImageProcessor.from_pretrained(
            model_path,
            revision=options.get("revision") or "main",
            trust_remote_code=bool(options.get("trust_remote_code")),
        )
    except (OSError, ValueError) as fault:
        raise lacks("image processor", model_path, fault) from fault
    finally:
        logging.set_verbosity(verbosity)
    size = options.get("image_size")
    if size is not None:
        processor.size = {"height": size, "width": size}
        processor.do_center_crop = False
    return processor


def _decoded(pictures: Sequence[Any], rows: np.ndarray) -> Iterator[list[Any]]:
    """The pictures in chunks; after a damaged one the rest are only looked at.

    Raises:
        ConfigError: Some are damaged: all of them, each with its row.
    """
    faults: list[Fault] = []
    for at in range(0, len(pictures), CHUNK):
        images = []
        for row, picture in zip(rows[at : at + CHUNK], pictures[at : at + CHUNK], strict=True):
            try:
                images.append(as_picture(picture))
            except ConfigError as fault:
                faults += [Fault(inner.path, f"row {row}: {inner.message}") for inner in fault.faults]
        if len(faults) > MOST_DAMAGED:
            break
        if not faults:
            yield images
    if faults:
        raise ConfigError(faults, "data")


def processor_pixels(processor: Any, pictures: Any, scaled: bool) -> np.ndarray:
    """(n, channels, height, width) fp32: as the model takes them, or before rescaling and normalising."""
    switches = {} if scaled else {"do_rescale": False, "do_normalize": False}
    images = [as_picture(picture) for picture in pictures]
    return np.asarray(processor(images, return_tensors="np", **switches)["pixel_values"], dtype=np.float32)


def as_picture(value: Any) -> Any:
    """A PIL image, RGB and upright, from bytes, a path, an array, or a row of `datasets.Image`.

    Raises:
        ConfigError: It cannot be decoded, or its values have no known range.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") else value["path"]
    try:
        if isinstance(value, np.ndarray):
            return _rgb(Image.fromarray(value))
        if isinstance(value, (bytes, str, Path)):
            with Image.open(io.BytesIO(value) if isinstance(value, bytes) else value) as picture:
                return _rgb(picture)
        return _rgb(value)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as fault:  # PIL: a broken PNG is bad syntax
        which = f"a picture of {len(value):,} bytes" if isinstance(value, bytes) else str(value)
        why = (
            "is no picture, or a damaged one"
            if isinstance(fault, UnidentifiedImageError)
            else f"cannot be read: {fault}"
        )
        raise ConfigError([Fault("data", f"{which} {why}: mend it, or take it out")]) from fault


def _rgb(picture: Any) -> Any:
    """In 8 bits a channel, turned as its camera says. PIL by itself cuts 16 bits off at 255: all white."""
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"its values go from {values.min()} to {values.max()}; expected 8 or 16 bits")
        picture = Image.fromarray((values >> 8).astype(np.uint8))
    elif picture.mode == "F":
        raise ValueError("it holds real numbers; expected 8 or 16 bits")
    elif picture.mode == "P":
        picture = picture.convert("RGBA")  # straight to RGB, PIL warns of transparent entries
    return picture.convert("RGB")


def _scale(processor: Any, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """(multiply, add) a channel, of the processor's rescaling and normalising."""
    factor = float(processor.rescale_factor) if processor.do_rescale else 1.0
    if not processor.do_normalize:
        return np.full(channels, factor, dtype=np.float32), np.zeros(channels, dtype=np.float32)
    mean, deviation = (
        np.broadcast_to(np.asarray(part, dtype=np.float64), channels)
        for part in (processor.image_mean, processor.image_std)
    )
    return (factor / deviation).astype(np.float32), (-mean / deviation).astype(np.float32)


plugin = ImageClassification
