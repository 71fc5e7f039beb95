"""Audio classification: a label for a sound."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from autopeft.errors import ConfigError, Fault, UsageError
from autopeft.objectives import Goal
from autopeft.tasks import Batch, Columns, Dataset, Kept, Kind, Ragged, Raw, Scores, Source, Split, column_names
from autopeft.tasks._classification import Classification, of_predictions
from autopeft.tasks._format import Format
from autopeft.tasks._media import Medium, media_faults, placed, read_folders
from autopeft.tasks._reading import lacks, read_table
from autopeft.tasks._sounds import RATE, SOUNDS, UNREAD, patches, read_sound, seconds_of
from autopeft.tasks._tables import read_columns
from autopeft.tasks._targets import Labels

OWN, YAMNET = "own", "yamnet"
SHORTEST_SECONDS = 0.1  # shorter sounds are filled up with silence: the convolutions of such models take no less
PROBES = (8_000, 24_000)  # samples of two sounds on which a feature extractor is tried
NO_EXTRACTOR = (
    "model: {} has no feature extractor for sounds: is it a model for this task? Give task.features: yamnet for one that "
    "reads log-mel patches as YAMNet does"
)
MOST_DAMAGED = 20  # named in one message


class AudioClassification(Classification):
    """Sounds from a folder of class folders, tables with paths, Parquet, or a data set on disk or on the hub.

    A sound is a row for a model with a feature extractor of its own, and several rows, its patches, for YAMNet. The
    answer for a sound is the mean of its rows' probabilities. Targets: `clip`, the row of the data from which a row
    comes; `label`; `weight`, that of the sound's class, divided by the rows of the sound. Rows to be predicted have a
    `clip` only.

    Args:
        features: "own", by the model's own feature extractor; "yamnet", the log-mel patches of YAMNet, for a model
            that reads one-channel pictures.
        seconds: The longest sound; what follows is not heard.
        class_weights: See `Classification`.
    """

    columns: Mapping[str, Kind] = {"audio": "sound", "label": "target"}
    metrics: Mapping[str, Goal] = Classification.metrics
    reads_folders = True

    def __init__(self, features: str = OWN, seconds: float = 10.0, class_weights: str | None = None) -> None:
        super().__init__(class_weights)
        if features not in (OWN, YAMNET):
            raise UsageError(f"task: features is {OWN} or {YAMNET}, not {features!r}")
        if not seconds >= SHORTEST_SECONDS:
            raise UsageError(f"task: seconds is {SHORTEST_SECONDS} or more")
        self.features, self.seconds = features, seconds
        self.auto_class = "AutoModelForAudioClassification" if features == OWN else "AutoModelForImageClassification"

    def read(self, data: Mapping[str, Any], seed: int) -> Dataset:
        dataset = self.weighted(self._read(data, seed))
        (sounds,) = dataset.splits["train"].inputs.values()
        longest = max(SHORTEST_SECONDS, *map(seconds_of, sounds))
        return replace(dataset, about={**dataset.about, "seconds": round(min(longest, self.seconds), 3)})

    def _read(self, data: Mapping[str, Any], seed: int) -> Dataset:
        if data.get("train") and Path(data["train"]).is_dir():
            return read_folders(data, seed, MEDIUM)
        faults = partial(media_faults, medium=MEDIUM, skips=data.get("on_fault") == "skip")
        columns = column_names(self.columns, data, inputs_only=True)
        return read_table(data, columns, Labels(data), seed, input_faults=faults, place=placed)

    def read_rows(self, file: Path, data: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        if file.is_dir():
            sounds = list(map(str, MEDIUM.files_in(file)))
            if not sounds:
                raise ConfigError([Fault("", f"holds no sound: expected {', '.join(SOUNDS)}")], str(file))
            return {"audio": sounds}
        columns = read_columns(file, list(column_names(self.columns, data, inputs_only=True)), Format.of(data))
        return {name: placed(column, file.resolve().parent) for name, column in columns.items()}

    def processor(self, source: Source) -> Any:
        """The model's feature extractor; None for YAMNet, which has none."""
        if self.features == YAMNET:
            return None
        from transformers import AutoFeatureExtractor

        try:
            found = AutoFeatureExtractor.from_pretrained(source.model, **source.options)
        except (OSError, ValueError) as fault:
            why = lacks("feature extractor", source.model, fault)
            raise UsageError(NO_EXTRACTOR.format(source.model)) if isinstance(why, UsageError) else why from fault
        if not hasattr(found, "sampling_rate"):
            raise UsageError(NO_EXTRACTOR.format(source.model))
        return found

    def encoder(self, source: Source, about: Mapping[str, Any]) -> Callable[[Raw], Split]:
        """Decodes and resamples sounds, and computes what the model reads."""
        rate: int = RATE
        make: Callable[[np.ndarray], np.ndarray] = patches
        if self.features == OWN:
            processor = self.processor(source)
            rate, make = int(processor.sampling_rate), Extractor(processor, float(about["seconds"]))
        of_classes = np.asarray(about.get("class_weights", [1.0] * about["n_outputs"]), dtype=np.float32)

        def encode(raw: Raw) -> Split:
            (sounds,) = raw.inputs.values()
            parts = [make(wave) for wave in _decoded(sounds, raw.rows, rate, self.seconds)]
            counts = [len(part) for part in parts]
            targets: dict[str, Ragged | np.ndarray] = {"clip": np.repeat(np.asarray(raw.rows, dtype=np.int64), counts)}
            if raw.targets:
                labels = np.asarray(raw.targets["label"])
                weights = of_classes[labels] / np.array(counts, dtype=np.float32)
                targets |= {"label": np.repeat(labels, counts), "weight": np.repeat(weights, counts)}
            return Split(_inputs(make, parts), targets)

        return encode

    def loss(self, outputs: Any, targets: Mapping[str, Any]) -> Any:
        """Computes the cross entropy of each row, weighted; 0 for rows to be predicted."""
        return super().loss(outputs, targets) if "label" in targets else outputs.new_zeros(len(outputs))

    def keep(self, outputs: Any, batch: Batch, model: Any) -> Mapping[str, Sequence[Any]]:
        """The logits, and the sound that they are of."""
        return {"logits": outputs, "clip": batch.targets["clip"]}

    def score(self, kept: Kept, targets: Columns, about: Mapping[str, Any]) -> Scores:
        """What a classification has, by sounds."""
        return of_predictions(_chances(kept).argmax(axis=1), _of_sounds(targets)["label"], about["n_outputs"])

    def trivial(self, train: Columns, targets: Columns, about: Mapping[str, Any], base: Callable[[], Kept]) -> Scores:
        """Scores the most frequent label among the training sounds."""
        return super().trivial(_of_sounds(train), _of_sounds(targets), about, base)

    def truths(self, kept: Kept, targets: Columns, about: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """The true `label`, by sounds."""
        return super().truths(kept, _of_sounds(targets), about)

    def trivial_answers(
        self, train: Columns, targets: Columns, about: Mapping[str, Any], base: Callable[[], Kept]
    ) -> Mapping[str, Any]:
        """The most frequent label among the training sounds, by sounds."""
        return super().trivial_answers(_of_sounds(train), _of_sounds(targets), about, base)

    def answers(self, kept: Kept, about: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """`label`, and the probability of each label."""
        return super().answers({"logits": np.log(np.maximum(_chances(kept), 1e-300))}, about)


class Extractor:
    """Turns one sound into one input of a model, by the model's feature extractor.

    Samples or frames of a model with an attention mask keep their length. A model that takes no mask would read the
    padding of a batch: all its sounds are filled up to one length.

    Args:
        processor: A feature extractor of transformers.
        seconds: That length.
    """

    def __init__(self, processor: Any, seconds: float) -> None:
        self.processor, self.rate = processor, int(processor.sampling_rate)
        self.name: str = processor.model_input_names[0]
        self.fixed: int | None = None
        self.is_ragged = len({self(np.zeros(samples, dtype=np.float32))[0].shape for samples in PROBES}) > 1
        if self.is_ragged and not getattr(processor, "return_attention_mask", False):
            self.fixed = max(1, round(seconds * self.rate))

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        """Returns (1, …), fp32."""
        least = round(SHORTEST_SECONDS * self.rate)
        wave = np.pad(wave, (0, max(0, least - len(wave))))
        options = {} if self.fixed is None else {"padding": "max_length", "max_length": self.fixed, "truncation": True}
        found = self.processor(wave, sampling_rate=self.rate, return_tensors="np", **options)
        values = np.asarray(found[self.name], dtype=np.float32)
        mask = found.get("attention_mask") if self.fixed is None else None
        return values if mask is None or values.shape[1] != mask.shape[1] else values[:, : int(mask[0].sum())]


def _inputs(make: Any, parts: Sequence[np.ndarray]) -> dict[str, Ragged | np.ndarray]:
    """Puts the inputs of all sounds together, by the name of the model's input."""
    if not isinstance(make, Extractor):
        return {"pixel_values": np.concatenate(parts)}
    if not make.is_ragged:
        return {make.name: np.concatenate(parts)}
    rows = [part[0] for part in parts]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return {make.name: Ragged(np.concatenate(rows), offsets, 0.0)}


def _decoded(sounds: Sequence[Any], rows: np.ndarray, rate: int, seconds: float) -> Iterator[np.ndarray]:
    """Yields decoded sounds. After a damaged one the rest are only checked.

    Raises:
        ConfigError: Some sounds are damaged. Names all of them, each with its row.
    """
    faults: list[Fault] = []
    for row, sound in zip(rows, sounds, strict=True):
        try:
            wave = read_sound(sound, rate, seconds)
        except ConfigError as fault:
            faults += [Fault(inner.path, f"row {row}: {inner.message}") for inner in fault.faults]
            if len(faults) > MOST_DAMAGED:
                break
        else:
            if not faults:
                yield wave
    if faults:
        raise ConfigError(faults, "data")


def _chances(kept: Kept) -> np.ndarray:
    """Returns the probabilities of each sound (n_sounds, n_labels), sounds in their order."""
    from scipy.special import softmax

    clips, place = np.unique(np.asarray(kept["clip"]), return_inverse=True)
    logits = np.asarray(kept["logits"], dtype=np.float64)
    sums = np.zeros((len(clips), logits.shape[1]))
    np.add.at(sums, place, softmax(logits, axis=1))
    chances: np.ndarray = sums / np.bincount(place)[:, None]
    return chances


def _of_sounds(targets: Columns) -> dict[str, np.ndarray]:
    """Returns the label and the weight of each sound, sounds in their order."""
    _, first, place = np.unique(np.asarray(targets["clip"]), return_index=True, return_inverse=True)
    weights = np.bincount(place, np.asarray(targets["weight"]))
    return {"label": np.asarray(targets["label"])[first], "weight": weights}


MEDIUM = Medium("sound", "sounds", "audio", SOUNDS, UNREAD, read_sound)
plugin = AudioClassification
