"""Rows from every kind of file, and what is said when they are not as they should be."""

import json

import numpy as np
import pandas as pd
import pytest
from models import bert, vit

from autopeft.errors import ConfigError, UsageError
from autopeft.tasks import Ragged
from autopeft.tasks._splits import carve
from autopeft.tasks.digits import Digits
from autopeft.tasks.image_classification import ImageClassification, as_picture, image_processor, processor_pixels
from autopeft.tasks.text_classification import TextClassification

ROWS = pd.DataFrame(
    {
        "text": [f"row {index}" for index in range(40)],
        "label": ["no", "yes"] * 20,
        "other": [f"b{i}" for i in range(40)],
    }
)
DATA = {"text": "text", "label": "label", "validation_share": 0.25}


def write(frame, path):
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".tsv":
        frame.to_csv(path, index=False, sep="\t")
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif path.suffix == ".json":
        frame.to_json(path, orient="records")
    else:
        frame.to_parquet(path)
    return str(path)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_each_kind_of_file_gives_the_same_rows(tmp_path, ending):
    found = TextClassification().read({**DATA, "train": write(ROWS, tmp_path / f"rows{ending}")}, seed=0)
    assert found.label_names == ("no", "yes")
    train, validation = found.splits["train"], found.splits["validation"]
    assert (len(train.labels), len(validation.labels)) == (30, 10)
    assert sorted([*train.inputs["text"], *validation.inputs["text"]]) == sorted(ROWS["text"])
    assert train.inputs["text"][0] == f"row {train.rows[0]}"
    assert set(validation.labels.tolist()) == {0, 1}


def test_a_hub_data_set_on_disk_with_its_own_label_names(tmp_path):
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = {"text": [f"t{i}" for i in range(20)], "label": [i % 2 for i in range(20)]}
    table = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "set")
    found = TextClassification().read({**DATA, "hub": str(tmp_path / "set")}, seed=0)
    assert found.label_names == ("bad", "good")
    assert len(found.splits["test"].labels) == 20
    assert len(found.splits["validation"].labels) == 5


def test_without_a_labelled_test_the_validation_becomes_the_test(tmp_path):
    train, validation = write(ROWS, tmp_path / "train.csv"), write(ROWS[:8], tmp_path / "dev.csv")
    found = TextClassification().read({**DATA, "train": train, "validation": validation}, seed=0)
    assert {name: len(raw.labels) for name, raw in found.splits.items()} == {"train": 30, "validation": 10, "test": 8}
    assert "as given" in found.origin["made"]["test"]


def test_a_test_split_that_is_hidden_counts_as_none(tmp_path):
    hidden = ROWS.assign(label=-1)
    data = {
        **DATA,
        "train": write(ROWS, tmp_path / "a.csv"),
        "test": write(hidden, tmp_path / "b.csv"),
        "test_share": 0.2,
    }
    found = TextClassification().read(data, seed=0)
    assert len(found.splits["test"].labels) == 8


def test_a_part_of_train_is_stratified_and_by_seed(tmp_path):
    data = {**DATA, "train": write(ROWS, tmp_path / "a.csv"), "train_rows": 11}
    first, again, other = (TextClassification().read(data, seed).splits["train"] for seed in (0, 0, 1))
    assert len(first.labels) == 11
    assert abs(int(first.labels.sum()) - 5.5) <= 0.5
    assert first.rows.tolist() == again.rows.tolist() != other.rows.tolist()


def test_carving_takes_the_share_of_each_label_and_loses_nothing():
    from autopeft.tasks import Raw

    labels = np.array([0] * 70 + [1] * 25 + [2] * 5)
    raw = Raw({"x": np.arange(100)}, labels, np.arange(100))
    rest, part = carve(raw, 0.2, seed=3)
    assert np.bincount(part.labels).tolist() == [14, 5, 1]
    assert sorted([*rest.rows, *part.rows]) == list(range(100))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "txt"}, r"data.text: no column 'txt'.*Did you mean 'text'"),
        ({"label": "labels"}, r"data.label: no column 'labels'.*Did you mean 'label'"),
        ({"label_names": ["no", "maybe"]}, r"labels that train has not: 'yes' \(row 1\)"),
        ({"train_rows": 1000}, r"asks for 1,000 rows"),
    ],
)
def test_faults_of_columns_and_labels(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        TextClassification().read({**DATA, "train": write(ROWS, tmp_path / "rows.csv"), **change}, seed=0)


def test_all_faults_of_rows_at_once(tmp_path):
    rows = ROWS.copy()
    rows.loc[3, "label"] = None
    rows.loc[5, "text"] = " "
    with pytest.raises(ConfigError) as caught:
        TextClassification().read({**DATA, "train": write(rows, tmp_path / "rows.csv")}, seed=0)
    text = str(caught.value)
    assert "1 rows without a label: row 3" in text
    assert "1 rows with an empty 'text': row 5" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,text,label\na,b,yes\n", r"two columns 'text': rename one"),
        (b"text,label\ncaf\xe9,yes\n", r"not UTF-8: it has a byte 0xe9; save it as UTF-8"),
        (b"text,label\na,yes\nb,no\n", r"validation would have no row, of 2 in all"),
        (b"", r"cannot be read"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        TextClassification().read({"train": str(tmp_path / "rows.csv"), "text": "text", "label": "label"}, seed=0)


@pytest.mark.parametrize("content", [b"nope", b"\x89PNG\r\n\x1a\n cut off"])
def test_a_picture_that_is_none_is_named(tmp_path, content):
    (tmp_path / "broken.png").write_bytes(content)
    for value, named in ((str(tmp_path / "broken.png"), "broken.png"), (content, f"of {len(content)} bytes")):
        with pytest.raises(ConfigError, match=rf"{named} is no picture.*take it out"):
            as_picture(value)


def test_a_folder_without_a_tokenizer_is_a_wrong_model(tmp_path):
    vit(tmp_path)
    raw = TextClassification().read({**DATA, "train": write(ROWS, tmp_path / "rows.csv")}, seed=0).splits["train"]
    with pytest.raises(UsageError, match="has no tokenizer that can be loaded: is it a model for this task"):
        TextClassification().encode(raw, str(tmp_path), {})


def test_texts_are_encoded_once_without_padding(tmp_path):
    data = {**DATA, "train": write(ROWS, tmp_path / "rows.csv"), "text": ["text", "other"]}
    raw = TextClassification().read(data, seed=0).splits["train"]
    (tmp_path / "model").mkdir()
    path = bert(tmp_path / "model")
    split = TextClassification().encode(raw, path, {"max_length": 6})
    ids, types = split.columns["input_ids"], split.columns["token_type_ids"]
    assert isinstance(ids, Ragged)
    assert split.lengths.max() <= 6
    assert ids.offsets[-1] == len(ids.values) == len(types.values)
    assert set(types.values.tolist()) == {0, 1}  # a pair


def test_images_are_stored_as_bytes_that_scale_to_the_processors_own(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for index in range(12):
        folder = tmp_path / "pictures" / str(index % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    data = {"train": str(tmp_path / "pictures"), "validation_share": 0.25}
    found = ImageClassification().read(data, seed=0)
    assert found.label_names == ("0", "1")
    (tmp_path / "model").mkdir()
    path = vit(tmp_path / "model")
    raw = found.splits["train"]
    split = ImageClassification().encode(raw, path, {})
    stored = split.columns["pixel_values"]
    assert stored.dtype == np.uint8
    multiply, add = split.scale["pixel_values"]
    exact = processor_pixels(image_processor(path, {}), raw.inputs["image"], scaled=True)
    np.testing.assert_allclose(stored * multiply[:, None, None] + add[:, None, None], exact, atol=1e-5)
    assert ImageClassification().encode(raw, path, {"image_size": 8}).columns["pixel_values"].shape[2:] == (8, 8)


def test_the_base_of_digits_never_sees_a_target_class():
    from autopeft.tasks import digits

    assert not set(digits.SOURCE) & set(digits.TARGET)
    found = Digits().read({}, seed=0)
    assert found.label_names == ("5", "6", "7", "8", "9")
    rows = np.concatenate([raw.rows for raw in found.splits.values()])
    assert sorted(rows) == list(range(len(rows)))
    assert {name: len(raw.labels) for name, raw in found.splits.items()} == {
        "train": 448,
        "validation": 224,
        "test": 224,
    }


@pytest.mark.parametrize("task", [TextClassification, ImageClassification, Digits])
def test_scores_against_a_hand_count(task):
    logits = np.eye(3)[[0, 1, 2, 0]]
    scores = task().score(logits, np.array([0, 1, 1, 2]))
    assert scores["accuracy"] == 0.5
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert "f1" not in scores
    two = task().score(np.eye(2)[[1, 1, 0]], np.array([1, 0, 0]))
    assert two["f1"] == pytest.approx(2 / 3)
    assert task().trivial(np.array([1, 1, 0]), np.array([1, 0, 1, 1]), 2)["accuracy"] == 0.75


@pytest.mark.parametrize(("name", "text", "rows"), [("trec", "text", 500), ("mrpc", ["text_a", "text_b"], 500)])
def test_real_data_reads(shared, name, text, rows):
    folder = shared / "data" / name
    data = {s: str(folder / f"{s}.parquet") for s in ("train", "validation", "test")}
    found = TextClassification().read({**data, "text": text, "label": "label"}, seed=0)
    info = json.loads((folder / "dataset_info.json").read_text())
    assert list(found.label_names) == list(map(str, info["label_names"]))
    assert len(found.splits["validation"].labels) == rows
