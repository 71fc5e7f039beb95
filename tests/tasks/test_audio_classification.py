"""Sounds: decoding against closed forms, features against transformers and the real YAMNet, damage said by row."""

from __future__ import annotations

import json
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from models import ast, tone, vit, wav2vec2, write_tones, yamnet

from autopeft import testing
from autopeft.errors import ConfigError, EnvironmentFault, UsageError
from autopeft.tasks import Ragged, Raw, Source
from autopeft.tasks._sounds import RATE, mel_filters, patches, read_sound, resample, seconds_of
from autopeft.tasks.audio_classification import AudioClassification
from tests.conftest import shared_path

ABOUT = {"label_names": ["high", "low"], "n_outputs": 2, "seconds": 0.5}


@pytest.mark.parametrize(("own", "rate"), [(8_000, 16_000), (44_100, 16_000), (48_000, 8_000), (22_050, 16_000)])
def test_a_tone_is_the_same_tone_at_another_rate(own, rate):
    of = {each: np.sin(2 * np.pi * 440 * np.arange(each) / each) for each in (own, rate)}
    found = resample(of[own].astype(np.float32), own, rate)
    assert len(found) == rate
    inside = slice(rate // 50, -rate // 50)  # the filter knows nothing beyond the ends
    assert np.abs(found - of[rate])[inside].max() < 2e-3


def test_what_is_too_high_for_the_new_rate_is_gone():
    high = np.sin(2 * np.pi * 7_000 * np.arange(16_000) / 16_000).astype(np.float32)
    assert np.abs(resample(high, 16_000, 8_000)[100:-100]).max() < 0.01


@pytest.mark.parametrize(("ending", "most"), [("wav", 1e-4), ("flac", 1e-4), ("ogg", 0.05), ("mp3", 0.05)])
def test_formats(tmp_path, ending, most):
    """Read as they were written, to the format's own loss; from a path, from bytes, from a row of a data set."""
    file, wave = tmp_path / f"a.{ending}", tone(440, 0.5)
    soundfile.write(file, np.stack([wave, 0 * wave], axis=1), 8_000)
    found = read_sound(str(file))
    assert found.dtype == np.float32
    assert np.abs(found[: len(wave)] - wave / 2).max() < most, "one channel: the mean of both"
    row = {"bytes": file.read_bytes(), "path": None}
    for same in (file.read_bytes(), row, {"bytes": None, "path": str(file)}):
        assert np.array_equal(read_sound(same), found)
    assert seconds_of(row) == pytest.approx(0.5, abs=0.1)
    assert len(read_sound(str(file), 4_000, seconds=0.25)) == 1_000


def test_samples_of_a_program():
    given = {"array": tone(440, 0.5), "sampling_rate": 8_000}
    assert len(read_sound(given, 4_000)) == 2_000
    assert seconds_of(given) == 0.5


def test_mel_filters_are_those_of_transformers():
    from transformers.audio_utils import mel_filter_bank

    theirs = mel_filter_bank(257, 64, 125, 7_500, RATE, norm=None, mel_scale="htk", triangularize_in_mel_space=True)
    assert np.abs(mel_filters() - theirs).max() < 1e-12


def test_patches():
    """A second of a tone lights one band; each sample is in a patch; silence is log(0.001)."""
    wave = np.sin(2 * np.pi * 1_000 * np.arange(RATE) / RATE)
    found = patches(wave)
    assert found.shape == (2, 1, 96, 64)
    band = 64 * (1127 * np.log1p(1_000 / 700) - 1127 * np.log1p(125 / 700)) / 1127 / np.log(8_200 / 825)
    assert abs(int(found[0, 0].mean(axis=0).argmax()) - band) < 1.5
    assert found[1, 0, -1] == pytest.approx(np.log(1e-3)), "filled up with silence"
    assert [len(patches(np.zeros(n))) for n in (1, 15_600, 15_601, 23_280, 23_281)] == [1, 1, 2, 2, 3]


def test_the_real_yamnet_hears_babies_cry():
    """8 of 8 in ESC-10's validation, and 4 of 8 chainsaws, as the notes of the shared models say."""
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(shared_path("models", "yamnet_mobilenet_v1")).eval()
    frame = pd.read_parquet(shared_path("data", "esc10", "validation.parquet"))
    names = json.loads(shared_path("data", "esc10", "dataset_info.json").read_text())["label_names"]
    for label, name, right in (("baby_cry", "Crying, sobbing", 8), ("chainsaw", "Chainsaw", 4)):
        heard = []
        for sound in frame[frame.label == names.index(label)].audio:
            with torch.no_grad():
                logits = model(pixel_values=torch.from_numpy(patches(read_sound(sound, RATE)))).logits
            heard.append(model.config.id2label[int(logits.sigmoid().mean(0).argmax())])
        assert heard.count(name) == right, heard


def raw(*waves):
    sounds = [{"array": wave, "sampling_rate": 4_000} for wave in waves]
    return Raw({"audio": sounds}, {"label": np.arange(len(waves)) % 2}, np.arange(len(waves)))


def test_batches_are_those_of_the_models_own_extractor(tmp_path):
    """With a mask: the logits of rows padded by us are those of rows padded by transformers."""
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    from autopeft.training.batches import collate

    folder = wav2vec2(tmp_path)
    waves = [tone(300, seconds, rate=4_000).astype(np.float32) for seconds in (0.2, 0.45, 0.3)]
    split = AudioClassification().encoder(Source(folder), ABOUT)(raw(*waves))
    assert isinstance(split.inputs["input_values"], Ragged)
    model = AutoModelForAudioClassification.from_pretrained(folder).eval()
    theirs = AutoFeatureExtractor.from_pretrained(folder)(waves, sampling_rate=4_000, padding=True, return_tensors="pt")
    with torch.no_grad():
        ours = model(**collate(split, np.arange(3))).logits
        assert torch.allclose(ours, model(**theirs).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "options", "shape"),
    [
        (lambda folder: wav2vec2(folder, "hubert"), {}, None),
        (lambda folder: wav2vec2(folder, "wav2vec2", "group"), {}, None),
        (ast, {}, (64, 16)),
        (yamnet, {"features": "yamnet"}, (1, 96, 64)),
    ],
    ids=["hubert", "without a mask", "ast", "yamnet"],
)
def test_models_with_other_inputs(tmp_path, model, options, shape):
    """A row's loss depends on no other row, though a model that takes no mask reads padding, too."""
    (tmp_path / "model").mkdir()
    data = {"train": str(write_tones(tmp_path / "train.csv", 24)), "validation_share": 0.3, "test_share": 0.2}
    subject = testing.TaskSubject("audio_classification", data, model(tmp_path / "model"), options)
    testing.check_task_fits_its_model(subject)
    testing.check_task_scores(subject)
    dataset = subject.task.read(data, 0)
    (inputs,) = subject.encoded(dataset.splits["validation"], dataset.about).inputs.values()
    if shape is not None:
        assert inputs.shape[1:] == shape
    elif "group" in str(model.__code__.co_consts):
        seconds = max(seconds_of(sound) for sound in dataset.splits["train"].inputs["audio"])
        (samples,) = set(np.diff(inputs.offsets))
        assert abs(samples - seconds * 4_000) < 3, "all as long as the longest of train"


def test_a_sound_of_many_patches_counts_once():
    task = AudioClassification("yamnet")
    kept = {"logits": np.log([[0.9, 0.1], [0.3, 0.7], [0.3, 0.7], [0.2, 0.8]]), "clip": np.array([4, 4, 4, 7])}
    targets = {"clip": kept["clip"], "label": np.array([0, 0, 0, 1]), "weight": np.array([1 / 3, 1 / 3, 1 / 3, 1.0])}
    assert task.score(kept, targets, ABOUT).metrics["accuracy"] == 1.0, "(.9 + .3 + .3) / 3 is the mean of the first"
    answers = task.answers(kept, ABOUT)
    assert answers["label"] == ["high", "low"]
    assert answers["p(high)"] == pytest.approx([0.5, 0.2])
    logits, given = torch.tensor(kept["logits"]), {name: torch.from_numpy(np.array(v)) for name, v in targets.items()}
    assert task.loss(logits, given).tolist() == pytest.approx(
        [-np.log(p) / w for p, w in ((0.9, 3), (0.3, 3), (0.3, 3), (0.8, 1))]
    )
    assert task.weights(targets).sum() == pytest.approx(2)


def test_weights_of_classes_are_of_sounds(tmp_path):
    """Not of patches: a class of long sounds counts no more than one of as many short sounds."""
    long, short = np.zeros(3 * RATE, dtype=np.float32), np.zeros(RATE // 2, dtype=np.float32)
    sounds = [{"array": wave, "sampling_rate": RATE} for wave in (long, short, short)]
    about = {"label_names": ["a", "b"], "n_outputs": 2, "seconds": 3.0, "class_weights": [1.5, 0.75]}
    encode = AudioClassification("yamnet", class_weights="balanced").encoder(Source(""), about)
    split = encode(Raw({"audio": sounds}, {"label": np.array([0, 1, 1])}, np.arange(3)))
    weights = AudioClassification("yamnet").weights(split.targets)
    assert np.bincount(split.targets["clip"]).tolist() == [6, 1, 1]
    assert np.bincount(split.targets["clip"], weights) == pytest.approx([1.5, 0.75, 0.75])


def test_class_folders(tmp_path):
    write_tones(tmp_path / "train.csv", 12)
    for index, file in enumerate(sorted((tmp_path / "sounds").iterdir())):
        folder = tmp_path / "classes" / ("low", "high")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        file.rename(folder / file.name)
    dataset = AudioClassification(seconds=0.2).read({"train": str(tmp_path / "classes"), "test_share": 0.2}, 0)
    assert dataset.about == {"label_names": ["high", "low"], "n_outputs": 2, "seconds": 0.2}
    found = AudioClassification().read_rows(tmp_path / "classes" / "low", {})
    assert len(found["audio"]) == 6


def test_damaged_sounds_are_named_by_row(tmp_path):
    (tmp_path / "model").mkdir()
    write_tones(tmp_path / "train.csv", 6)
    whole = (tmp_path / "sounds" / "4.flac").read_bytes()
    (tmp_path / "sounds" / "4.flac").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "sounds" / "2.ogg").write_bytes(b"")
    (tmp_path / "sounds" / "3.wav").write_text("no sound at all")
    soundfile.write(tmp_path / "sounds" / "0.wav", np.zeros(0), 8_000)
    folder = wav2vec2(tmp_path / "model")
    rows = AudioClassification().read_rows(tmp_path / "train.csv", {})
    encode = AudioClassification().encoder(Source(folder), ABOUT)
    with pytest.raises(ConfigError) as raised:
        encode(Raw(rows, {}, np.arange(6)))
    said = str(raised.value)
    assert "row 0: " in said and "0.wav is empty" in said
    assert "row 2: " in said and "2.ogg is no sound that can be decoded" in said
    assert "row 3: " in said and "3.wav is no sound that can be decoded" in said
    assert "row 4: " in said and "4.flac" in said
    assert "row 1: " not in said and "row 5: " not in said
    assert "mend it, or take it out" in said


def test_damaged_sounds_may_be_skipped(tmp_path):
    write_tones(tmp_path / "train.csv", 20)
    (tmp_path / "sounds" / "3.wav").write_text("no sound at all")
    (tmp_path / "sounds" / "4.flac").unlink()
    data = {"train": str(tmp_path / "train.csv"), "test_share": 0.2}
    with pytest.raises(ConfigError, match=r"row 4|4\.flac"):
        AudioClassification().read(data, 0)
    dataset = AudioClassification().read({**data, "on_fault": "skip"}, 0)
    assert sum(map(len, dataset.splits.values())) == 18
    assert any("3.wav" in note or "row 3" in note for note in dataset.origin["notes"])


def test_a_data_set_on_disk(tmp_path):
    """With the bytes of its files, which `datasets` itself would decode with a library that we do not need."""
    import datasets

    write_tones(tmp_path / "train.csv", 12)
    frame = pd.read_csv(tmp_path / "train.csv")
    files = [str(tmp_path / file) for file in frame.audio]
    made = datasets.Dataset.from_dict({"audio": files, "label": list(frame.label)})
    made.cast_column("audio", datasets.Audio()).save_to_disk(tmp_path / "set")
    dataset = AudioClassification().read({"hub": str(tmp_path / "set"), "test_share": 0.25}, 0)
    sound = dataset.splits["train"].inputs["audio"][0]
    row = int(dataset.splits["train"].rows[0])
    assert np.array_equal(read_sound(sound), read_sound(files[row]))


def test_faults_of_options_and_models(tmp_path, monkeypatch):
    for options, expected in (({"features": "mfcc"}, "own or yamnet"), ({"seconds": 0.0}, "seconds is 0.1 or more")):
        with pytest.raises(UsageError, match=expected):
            AudioClassification(**options)
    with pytest.raises(UsageError, match=r"has no feature extractor for sounds: .* task.features: yamnet"):
        AudioClassification().processor(Source(vit(tmp_path)))
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(EnvironmentFault, match=r"pip install 'autopeft\[audio\]'"):
        read_sound("a.wav")
