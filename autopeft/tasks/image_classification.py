"""Image classification: a label for a picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from autopeft.errors import ConfigError, EnvironmentFault, Fault, UsageError
from autopeft.tasks import Dataset, Kind, Raw, Source, Split, column_names
from autopeft.tasks._augment import CHANGES
from autopeft.tasks._classification import Classification
from autopeft.tasks._format import Format
from autopeft.tasks._media import Medium, media_faults, placed, read_folders
from autopeft.tasks._reading import lacks, read_table
from autopeft.tasks._tables import read_columns
from autopeft.tasks._targets import Labels

CHUNK = 256  # pictures decoded at once: bounds the memory of preparing
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
UNREAD = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".dng", ".cr2", ".nef", ".arw")
PROBES = ((7, 5), (33, 64), (64, 33), (300, 210), (700, 650))  # picture sizes on which a processor is tried
MOST_DAMAGED = 20  # named in one message


class ImageClassification(Classification):
    """Pictures from a folder of class folders, Parquet, or a Hugging Face data set on disk or on the hub.

    Args:
        augment: Changes of training pictures, new for each batch: flip, crop. Activations of the frozen blocks are not
            cached then, as they differ from epoch to epoch.
        class_weights: See `Classification`.
    """

    auto_class = "AutoModelForImageClassification"
    columns: Mapping[str, Kind] = {"image": "picture", "label": "target"}
    reads_folders = True

    def __init__(self, augment: Sequence[str] = (), class_weights: str | None = None) -> None:
        super().__init__(class_weights)
        names = [augment] if isinstance(augment, str) else list(augment)
        unknown = [str(name) for name in names if name not in CHANGES]
        if unknown:
            raise UsageError(f"augment: expected some of {', '.join(CHANGES)}; got {', '.join(unknown)}")
        self.changes = tuple(names)

    @property
    def augments(self) -> bool:
        """Whether training pictures change from batch to batch."""
        return bool(self.changes)

    def augment(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Changes the pictures of a training batch, by the global random state."""
        pixels = inputs["pixel_values"]
        for name in self.changes:
            pixels = CHANGES[name](pixels)
        return {**inputs, "pixel_values": pixels}

    def read(self, data: Mapping[str, Any], seed: int) -> Dataset:
        if data.get("train") and Path(data["train"]).is_dir():
            return self.weighted(read_folders(data, seed, MEDIUM))
        faults = partial(media_faults, medium=MEDIUM, skips=data.get("on_fault") == "skip")
        columns = column_names(self.columns, data, inputs_only=True)
        return self.weighted(read_table(data, columns, Labels(data), seed, input_faults=faults, place=placed))

    def read_rows(self, file: Path, data: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        if file.is_dir():
            pictures = list(map(str, MEDIUM.files_in(file)))
            if not pictures:
                raise ConfigError([Fault("", f"holds no picture: expected {', '.join(PICTURES)}")], str(file))
            return {"image": pictures}
        columns = read_columns(file, list(column_names(self.columns, data, inputs_only=True)), Format.of(data))
        return {name: placed(column, file.resolve().parent) for name, column in columns.items()}

    def processor(self, source: Source) -> Any:
        """The model's image processor."""
        return image_processor(source)

    def encoder(self, source: Source, about: Mapping[str, Any]) -> Callable[[Raw], Split]:
        """Encodes pixels with the model's image processor: pictures are decoded, resized and cropped once.

        Pixels are kept as bytes, with the processor's rescaling and normalising as `scale`, if this is exact to 1e-5.
        """
        processor = self.processor(source)
        scale = _scale(processor) if _gives_bytes(processor) else None

        def encode(raw: Raw) -> Split:
            (pictures,) = raw.inputs.values()
            parts = [
                processor_pixels(processor, images, scaled=scale is None) for images in _decoded(pictures, raw.rows)
            ]
            pixels = np.concatenate(parts)
            if scale is None:
                return Split({"pixel_values": pixels}, raw.targets)
            return Split({"pixel_values": pixels.round().astype(np.uint8)}, raw.targets, {"pixel_values": scale})

        return self.weighing(encode, about)


def image_processor(source: Source) -> Any:
    """Loads the model's image processor, with `image_size` in place of its own size if given."""
    from transformers import AutoImageProcessor
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # otherwise it warns for each class that torchvision is missing
    try:
        processor = AutoImageProcessor.from_pretrained(source.model, **source.options)
    except (OSError, ValueError) as fault:
        raise lacks("image processor", source.model, fault) from fault
    except ImportError as fault:
        raise EnvironmentFault(
            "the image processor needs a package that is not here "
            f"({str(fault).strip().splitlines()[0]}): install it; transformers from 5.18 on needs none"
        ) from fault
    finally:
        logging.set_verbosity(verbosity)
    size = source.data.get("image_size")
    if size is not None:
        processor.size = {"height": size, "width": size}
        processor.do_center_crop = False
    return processor


def _decoded(pictures: Sequence[Any], rows: np.ndarray) -> Iterator[list[Any]]:
    """Yields decoded pictures in chunks. After a damaged picture the rest are only checked.

    Raises:
        ConfigError: Some pictures are damaged. Names all of them, each with its row.
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
    """Returns pixels (n, channels, height, width), fp32: as the model takes them, or not rescaled and normalised."""
    switches = {} if scaled else {"do_rescale": False, "do_normalize": False}
    images = [as_picture(picture) for picture in pictures]
    return np.asarray(processor(images, return_tensors="np", **switches)["pixel_values"], dtype=np.float32)


def as_picture(value: Any) -> Any:
    """Makes a PIL image, RGB and upright, from bytes, a path, an array, or a row of `datasets.Image`.

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
    """Converts a picture to 8 bits a channel, rotated by its EXIF tag. PIL alone clips 16 bits at 255: all white."""
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


def _gives_bytes(processor: Any) -> bool:
    """Whether the processor resizes to whole numbers, whatever the picture's size, and then scales each channel.

    Tries random pictures: larger and smaller than the model's input, wide and high ones.
    """
    rng = np.random.default_rng(0)
    for shape in PROBES:
        picture = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8)]
        try:
            plain, exact = (processor_pixels(processor, picture, scaled=scaled) for scaled in (False, True))
        except ValueError as fault:
            raise UsageError(
                f"model: its image processor does not take pictures of three channels, which all are made: {fault}"
            ) from fault
        if plain.shape[1] != 3 or np.abs(plain - plain.round().clip(0, 255)).max() > 1e-4:
            return False
        multiply, add = _scale(processor)
        if np.abs(plain.round() * multiply[:, None, None] + add[:, None, None] - exact).max() > 1e-5:
            return False
    return True


def _scale(processor: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the processor's rescaling and normalising as (multiply, add) of each of three channels."""
    factor = float(processor.rescale_factor) if processor.do_rescale else 1.0
    if not processor.do_normalize:
        return np.full(3, factor, dtype=np.float32), np.zeros(3, dtype=np.float32)
    mean, deviation = (
        np.broadcast_to(np.asarray(part, dtype=np.float64), 3) for part in (processor.image_mean, processor.image_std)
    )
    return (factor / deviation).astype(np.float32), (-mean / deviation).astype(np.float32)


MEDIUM = Medium("picture", "pictures", "image", PICTURES, UNREAD, as_picture)
plugin = ImageClassification
