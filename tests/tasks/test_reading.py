"""Rows from every kind of file, and what is said when they are not as they should be."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from models import bert, vit

from autopeft.errors import ConfigError, EnvironmentFault, UsageError
from autopeft.tasks import Ragged, Raw, Source
from autopeft.tasks._splits import carve
from autopeft.tasks._tables import read_file
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
    assert tuple(found.about["label_names"]) == ("no", "yes")
    train, validation = found.splits["train"], found.splits["validation"]
    assert (len(train.targets["label"]), len(validation.targets["label"])) == (30, 10)
    assert sorted([*train.inputs["text"], *validation.inputs["text"]]) == sorted(ROWS["text"])
    assert train.inputs["text"][0] == f"row {train.rows[0]}"
    assert set(validation.targets["label"].tolist()) == {0, 1}


def test_what_stands_in_a_csv_is_what_is_read(tmp_path):
    """Leading zeros, true and NA are text; quoted line breaks and a byte order mark are no part of the table's shape."""
    (tmp_path / "rows.csv").write_bytes(
        b'\xef\xbb\xbftext,label\n007,true\nNA,false\n"two\nlines, ""quoted""",true\n\xe4\xb8\xad\xe6\x96\x87,false\n'
    )
    table = read_file(tmp_path / "rows.csv")
    assert table == {"text": ["007", "NA", 'two\nlines, "quoted"', "中文"], "label": ["true", "false"] * 2}


def test_labels_that_are_whole_numbers_are_in_their_order_whatever_the_file(tmp_path):
    rows = pd.DataFrame({"text": [f"t{i}" for i in range(24)], "label": [i % 12 for i in range(24)]})
    for ending in (".csv", ".jsonl", ".parquet"):
        found = TextClassification().read({**DATA, "train": write(rows, tmp_path / f"rows{ending}")}, seed=0)
        assert tuple(found.about["label_names"]) == tuple(map(str, range(12)))


def test_json_as_pandas_writes_it_by_default_and_as_lists(tmp_path):
    ROWS.to_json(tmp_path / "a.json")
    (tmp_path / "b.json").write_text(json.dumps(ROWS.to_dict(orient="list")))
    assert read_file(tmp_path / "a.json") == read_file(tmp_path / "b.json") == ROWS.to_dict(orient="list")


@pytest.mark.parametrize("has_splits", [True, False])
def test_pictures_of_a_data_set_on_disk_are_bytes_with_one_digest(tmp_path, has_splits):
    """Decoded, all pictures would lie in memory, and the digest was that of an object's address."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    pictures = [png(np.full((4, 4, 3), index, dtype=np.uint8)) for index in range(20)]
    table = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1] * 10}, features=features)
    (datasets.DatasetDict(train=table) if has_splits else table).save_to_disk(tmp_path / "set")
    first, again = (ImageClassification().read({"hub": str(tmp_path / "set")}, seed=0) for _ in range(2))
    assert first.splits["train"].inputs["image"][0]["bytes"] == pictures[first.splits["train"].rows[0]]
    assert first.origin["digest"] == again.origin["digest"]
    frame = pd.DataFrame({"image": pictures, "label": ["a", "b"] * 10})
    frame.to_parquet(tmp_path / "rows.parquet")
    same = ImageClassification().read({"train": str(tmp_path / "rows.parquet")}, seed=0)
    assert same.origin["digest"] == first.origin["digest"]


def test_a_hub_that_is_not_reached_and_a_folder_that_is_no_data_set(tmp_path):
    with pytest.raises(EnvironmentFault, match=r"'nobody/nothing' cannot be had: .*give a folder"):
        TextClassification().read({**DATA, "hub": "nobody/nothing"}, seed=0)
    (tmp_path / "train.csv").write_text("text,label\na,b\nno,columns,here\n")
    with pytest.raises(UsageError, match=r"cannot be read: "):
        TextClassification().read({**DATA, "hub": str(tmp_path)}, seed=0)


def test_a_hub_data_set_on_disk_with_its_own_label_names(tmp_path):
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = {"text": [f"t{i}" for i in range(20)], "label": [i % 2 for i in range(20)]}
    table = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "set")
    found = TextClassification().read({**DATA, "hub": str(tmp_path / "set")}, seed=0)
    assert tuple(found.about["label_names"]) == ("bad", "good")
    assert len(found.splits["test"]) == 20
    assert len(found.splits["validation"]) == 5


def test_without_a_labelled_test_the_validation_becomes_the_test(tmp_path):
    train, validation = write(ROWS, tmp_path / "train.csv"), write(ROWS[:8], tmp_path / "dev.csv")
    found = TextClassification().read({**DATA, "train": train, "validation": validation}, seed=0)
    assert {name: len(raw) for name, raw in found.splits.items()} == {"train": 30, "validation": 10, "test": 8}
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
    assert len(found.splits["test"]) == 8


def test_a_part_of_train_is_stratified_and_by_seed(tmp_path):
    data = {**DATA, "train": write(ROWS, tmp_path / "a.csv"), "train_rows": 11}
    first, again, other = (TextClassification().read(data, seed).splits["train"] for seed in (0, 0, 1))
    assert len(first.targets["label"]) == 11
    assert abs(int(first.targets["label"].sum()) - 5.5) <= 0.5
    assert first.rows.tolist() == again.rows.tolist() != other.rows.tolist()


def test_carving_takes_the_share_of_each_label_and_loses_nothing():
    labels = np.array([0] * 70 + [1] * 25 + [2] * 5)
    raw = Raw({"x": np.arange(100)}, {"label": labels}, np.arange(100), labels)
    rest, part = carve(raw, 0.2, seed=3)
    assert np.bincount(part.targets["label"]).tolist() == [14, 5, 1]
    assert sorted([*rest.rows, *part.rows]) == list(range(100))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "txt"}, r"data.text: no column 'txt'.*Did you mean 'text'"),
        ({"label": "labels"}, r"data.label: no column 'labels'.*Did you mean 'label'"),
        ({"label_names": ["no", "maybe"]}, r"labels that label_names has not: 'yes' \(row 1\)"),
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
    assert "1 row without a label: row 3" in text
    assert "1 row with an empty 'text': row 5" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,text,label\na,b,yes\n", r"two columns 'text': rename one"),
        (b"text,label\ncaf\xe9,yes\n", r"not UTF-8: it has a byte 0xe9; it seems to be cp1252: say `encoding: cp1252`"),
        (b"text,label\na,yes\nb,no\n", r"validation would have no row, of 2 in all"),
        (b"", r"cannot be read"),
        (
            b"text,label\nhello, world,yes\nhello, you,no\n",
            r"Expected 2 fields in line 2, saw 3; quote what holds a comma",
        ),
        (b"text,label\na,id1\nb,id2\nc,id3\n", r"each of the 3 rows of train has a label of its own"),
        (
            b"text,label\n" + b"".join(b"t,%.2f\n" % (i / 40) for i in range(30)) * 2,
            r"30 different numbers such as 0\.03",
        ),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        TextClassification().read({"train": str(tmp_path / "rows.csv"), "text": "text", "label": "label"}, seed=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": \n', r"line 2, is no JSON .* each line is one object"),
        ("a.jsonl", '{"text": "a", "label": 1}\n[1, 2]\n', r"row 1 is \[1, 2\]; expected an object"),
        ("a.json", '"rows"', r"expected a list of objects, one a row"),
        ("a.json", '{"text": ["a"], "label": [1, 2]}', r"different lengths"),
        ("a.jsonl", '{"text": "a", "label": [0, 2]}\n', r"\[0, 2\] in row 0; expected one label a row"),
        ("a.jsonl", '{"text": ["a", "b"], "label": 0}\n{"text": "c", "label": 1}\n', r"a list in row 0 of 'text'"),
        ("set", None, r"is a folder: expected a file, one of \.csv"),
    ],
)
def test_files_of_another_shape(tmp_path, name, content, message):
    if content is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        TextClassification().read({**DATA, "train": str(tmp_path / name)}, seed=0)


def test_stars_with_halves_are_classes_and_integers_beside_a_missing_one_too(tmp_path):
    rows = pd.DataFrame({"text": ["t"] * 20, "label": [1.0, 1.5, 2.0, 2.5] * 5})
    found = TextClassification().read({**DATA, "train": write(rows, tmp_path / "a.parquet")}, seed=0)
    assert tuple(found.about["label_names"]) == ("1", "2", "1.5", "2.5")
    hidden = pd.DataFrame({"text": ["t"], "label": [None]})
    data = {**DATA, "train": write(rows, tmp_path / "a.parquet"), "test": write(hidden, tmp_path / "b.parquet")}
    assert "test" not in TextClassification().read(data, seed=0).splits


def test_a_dataset_info_that_is_damaged_is_named(tmp_path):
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(ConfigError, match=r"dataset_info\.json is no JSON"):
        TextClassification().read({**DATA, "train": write(ROWS, tmp_path / "rows.csv")}, seed=0)


def png(values):
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(values).save(out, "PNG")
    return out.getvalue()


def test_sixteen_bits_keep_their_greys():
    """PIL's own conversion cuts at 255: nearly every 16-bit picture became white."""
    greys = np.arange(0, 65536, 4096, dtype=np.uint16).reshape(4, 4)
    found = np.asarray(as_picture(png(greys)))
    assert found.shape == (4, 4, 3)
    np.testing.assert_array_equal(found[..., 0], greys >> 8)
    with pytest.raises(ConfigError, match=r"from -1 to 0; expected 8 or 16 bits"):
        as_picture(np.array([[0, -1]], dtype=np.int32))
    with pytest.raises(ConfigError, match="real numbers; expected 8 or 16 bits"):
        as_picture(np.zeros((2, 2), dtype=np.float32))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_pictures_of_every_mode_become_rgb(mode):
    from PIL import Image

    picture = Image.fromarray(np.full((4, 4, 3), 255, dtype=np.uint8)).convert(mode)
    np.testing.assert_array_equal(np.asarray(as_picture(picture)), np.full((4, 4, 3), 255))


def test_a_picture_stands_upright_as_its_camera_says():
    from PIL import Image

    picture, exif = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3)), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    out = io.BytesIO()
    picture.save(out, "PNG", exif=exif)
    np.testing.assert_array_equal(np.asarray(as_picture(out.getvalue()))[..., 0], [[3, 0], [4, 1], [5, 2]])


def test_all_damaged_pictures_are_named_at_once_with_their_rows(tmp_path):
    (tmp_path / "model").mkdir()
    good = png(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    pictures = [good, b"nope", good, good[:120]]
    raw = Raw({"image": pictures}, {}, np.array([4, 5, 7, 9]))
    with pytest.raises(ConfigError) as caught:
        ImageClassification().encoder(Source(vit(tmp_path / "model")), {})(raw)
    text = str(caught.value)
    assert "2 faults" in text
    assert "row 5: a picture of 4 bytes is no picture" in text
    assert "row 9: a picture of 120 bytes cannot be read: " in text


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
        TextClassification().encoder(Source(str(tmp_path)), {})(raw)


def test_texts_are_encoded_once_without_padding(tmp_path):
    data = {**DATA, "train": write(ROWS, tmp_path / "rows.csv"), "text": ["text", "other"]}
    raw = TextClassification().read(data, seed=0).splits["train"]
    (tmp_path / "model").mkdir()
    path = bert(tmp_path / "model")
    split = TextClassification().encoder(Source(path, max_length=6), {})(raw)
    ids, types = split.inputs["input_ids"], split.inputs["token_type_ids"]
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
    assert tuple(found.about["label_names"]) == ("0", "1")
    (tmp_path / "model").mkdir()
    path = vit(tmp_path / "model")
    raw = found.splits["train"]
    split = ImageClassification().encoder(Source(path), {})(raw)
    stored = split.inputs["pixel_values"]
    assert stored.dtype == np.uint8
    multiply, add = split.scale["pixel_values"]
    exact = processor_pixels(image_processor(Source(path)), raw.inputs["image"], scaled=True)
    np.testing.assert_allclose(stored * multiply[:, None, None] + add[:, None, None], exact, atol=1e-5)
    smaller = ImageClassification().encoder(Source(path, data={"image_size": 8}), {})(raw)
    assert smaller.inputs["pixel_values"].shape[2:] == (8, 8)


def test_a_model_of_grey_pictures_is_told_what_comes(tmp_path):
    from transformers import ViTImageProcessor

    ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.5], image_std=[0.5]).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="does not take pictures of three channels"):
        ImageClassification().encoder(Source(str(tmp_path)), {})


def test_the_base_of_digits_never_sees_a_target_class():
    from autopeft.tasks import digits

    assert not set(digits.SOURCE) & set(digits.TARGET)
    found = Digits().read({}, seed=0)
    assert tuple(found.about["label_names"]) == ("5", "6", "7", "8", "9")
    rows = np.concatenate([raw.rows for raw in found.splits.values()])
    assert sorted(rows) == list(range(len(rows)))
    assert {name: len(raw) for name, raw in found.splits.items()} == {
        "train": 448,
        "validation": 224,
        "test": 224,
    }


@pytest.mark.parametrize("task", [TextClassification, ImageClassification, Digits])
def test_scores_against_a_hand_count(task):
    logits = np.eye(3)[[0, 1, 2, 0]]
    found = task().score({"logits": logits}, {"label": np.array([0, 1, 1, 2])}, {"n_outputs": 3})
    assert found.detail == {
        "rows": [1, 2, 1], "predicted": [2, 1, 1], "correct": [1, 1, 0], "confused": [[1, 2, 1], [2, 0, 1]],
    }  # fmt: skip
    scores = found.metrics
    assert scores["accuracy"] == 0.5
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert "f1" not in scores
    about = {"n_outputs": 2}
    two = task().score({"logits": np.eye(2)[[1, 1, 0]]}, {"label": np.array([1, 0, 0])}, about)
    assert two.metrics["f1"] == pytest.approx(2 / 3)
    train, split = {"label": np.array([1, 1, 0])}, {"label": np.array([1, 0, 1, 1])}
    trivial = task().trivial(train, split, about, dict).metrics
    assert trivial["accuracy"] == 0.75
    assert trivial["loss"] == pytest.approx(-(3 * np.log(3 / 5) + np.log(2 / 5)) / 4)  # with one more row a label


@pytest.mark.parametrize(("name", "text", "rows"), [("trec", "text", 500), ("mrpc", ["text_a", "text_b"], 500)])
def test_real_data_reads(shared, name, text, rows):
    folder = shared / "data" / name
    data = {s: str(folder / f"{s}.parquet") for s in ("train", "validation", "test")}
    found = TextClassification().read({**data, "text": text, "label": "label"}, seed=0)
    info = json.loads((folder / "dataset_info.json").read_text())
    assert found.about["label_names"] == list(map(str, info["label_names"]))
    assert len(found.splits["validation"]) == rows


@pytest.mark.parametrize("names", [["1", "2", "3", "4", "5"], ["1", "0"]])
def test_codes_of_a_hubs_label_names_are_codes_whatever_the_names_look_like(tmp_path, names):
    """Names ['1' … '5'] coded 0 to 4 were refused, names ['1', '0'] coded 0 and 1 were swapped without a word."""
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    rows = {"text": [f"t{i}" for i in range(40)], "label": [i % len(names) for i in range(40)]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)}).save_to_disk(tmp_path / "set")
    found = TextClassification().read({**DATA, "hub": str(tmp_path / "set")}, seed=0)
    assert found.about["label_names"] == names
    for raw in found.splits.values():
        assert raw.targets["label"].tolist() == (raw.rows % len(names)).tolist()


def test_whether_integers_are_names_is_decided_by_all_rows(tmp_path):
    """The first thousand rows do not decide it: here they hold no name."""
    values = [0] * 1500 + [7] * 1500
    rows = pd.DataFrame({"text": [f"t{i}" for i in range(3000)], "label": values})
    data = {**DATA, "train": write(rows, tmp_path / "rows.csv"), "label_names": ["7", "0"]}
    found = TextClassification().read(data, seed=0)
    raw = found.splits["train"]
    assert raw.targets["label"].tolist() == [1 if row < 1500 else 0 for row in raw.rows]


def test_true_is_no_1(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"text": f"t{i}", "label": [True, 1, "x"][i % 3]}) + "\n" for i in range(60))
    )
    found = TextClassification().read({**DATA, "train": str(tmp_path / "rows.jsonl")}, seed=0)
    assert found.about["label_names"] == ["1", "True", "x"]


def test_a_picture_that_changes_and_keeps_name_and_size_is_another_digest(tmp_path):
    for index in range(20):
        folder = tmp_path / "ab"[index % 2]
        folder.mkdir(exist_ok=True)
        (folder / f"{index}.png").write_bytes(png(np.full((4, 4, 3), index, dtype=np.uint8)))
    data = {"train": str(tmp_path)}
    first = ImageClassification().read(data, seed=0).origin
    content = (tmp_path / "a" / "0.png").read_bytes()
    (tmp_path / "a" / "0.png").write_bytes(content[:-1] + b"x")
    second = ImageClassification().read(data, seed=0).origin
    assert second["digest"] != first["digest"]
    assert second["digest_1"] == first["digest_1"], "what runs of an older autopeft hold"
    (tmp_path / "a" / "0.png").rename(tmp_path / "b" / "0.png")
    assert ImageClassification().read(data, seed=0).origin["digest"] != second["digest"]


FAULTY = [{"text": f"t{row}", "label": ("no", "yes")[row % 2]} for row in range(40)]
FAULTY[3]["label"], FAULTY[5]["text"], FAULTY[9]["text"] = None, " ", None


def lines(folder, name, rows):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def test_faulty_rows_are_left_out_counted_and_said_where_the_config_says_so(tmp_path):
    """Empty texts, missing labels, and labels that train has not; the rows that stay keep their numbers."""
    test = [{"text": "x", "label": "no"}, {"text": "y", "label": "odd"}, {"text": "z", "label": None}]
    data = {**DATA, "train": lines(tmp_path, "a.jsonl", FAULTY), "test": lines(tmp_path, "b.jsonl", test)}
    with pytest.raises(ConfigError) as caught:
        TextClassification().read(data, seed=0)
    assert "4 faults" in str(caught.value)
    assert "`on_fault: skip` under `data` leaves such rows out" in str(caught.value)
    found = TextClassification().read({**data, "on_fault": "skip"}, seed=0)
    assert sorted(row for split in ("train", "validation") for row in found.splits[split].rows.tolist()) == [
        row for row in range(40) if row not in (3, 5, 9)
    ]
    assert found.splits["test"].rows.tolist() == [0]
    assert found.origin["notes"] == [
        "left out: train has 1 row without a label: row 3",
        "left out: train has 2 rows with an empty 'text': row 5, 9",
        "left out: test has 1 row without a label: row 2",
        "left out: test has labels that train has not: 'odd' (row 1); its labels are 'no', 'yes'",
    ]


def test_faults_of_all_files_at_once(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text,label\ncaf\xe9,yes\n")
    (tmp_path / "b.jsonl").write_text("{\n")
    data = {**DATA, "train": str(tmp_path / "a.csv"), "test": str(tmp_path / "b.jsonl")}
    with pytest.raises(ConfigError) as caught:
        TextClassification().read(data, seed=0)
    assert [fault.path for fault in caught.value.faults] == ["data.train", "data.test"]


def test_rows_that_are_in_two_splits_are_counted(tmp_path):
    rows = FAULTY[10:]
    splits = {"train": rows, "validation": [*rows[:3], {"text": "v", "label": "no"}], "test": [rows[4], rows[0]]}
    data = {**DATA, **{split: lines(tmp_path, f"{split}.jsonl", of) for split, of in splits.items()}}
    assert TextClassification().read(data, seed=0).origin["notes"] == [
        "3 of 4 rows of validation are in train, too: it was trained on them",
        "2 of 2 rows of test are in train, too: it was trained on them",
        "1 of 2 rows of test are in validation, too",
    ]
    one = lines(tmp_path, "one.jsonl", [{"text": "same", "label": "no"}, *rows, {"text": "same", "label": "yes"}])
    together = TextClassification().read({**DATA, "train": one, "group": "text"}, seed=0)
    assert together.origin["notes"] == [], "the texts as groups keep them together"


@pytest.mark.parametrize("text", ["label", ["other", "label"]])
def test_one_column_is_no_question_and_answer(tmp_path, text):
    with pytest.raises(ConfigError, match=r"'label' is the column of `text`, too"):
        TextClassification().read({**DATA, "train": write(ROWS, tmp_path / "rows.csv"), "text": text}, seed=0)
