"""Pictures in folders and beside tables, as people have them: no class without pictures, no picture without a word."""

import io

import numpy as np
import pandas as pd
import pytest

from autopeft.errors import ConfigError
from autopeft.tasks.image_classification import ImageClassification, as_picture


def png(value):
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), [value % 256, value // 256, 0], dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def fill(folder, n=10, first=0, ending=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(first, first + n):
        (folder / f"{index}{ending}").write_bytes(png(index))


@pytest.fixture
def pictures(tmp_path):
    fill(tmp_path / "p" / "cat")
    fill(tmp_path / "p" / "dog", first=100)
    return tmp_path / "p"


def read(folder, **data):
    return ImageClassification().read({"train": str(folder), **data}, seed=0)


def test_hidden_folders_and_files_are_no_classes_and_no_pictures(pictures):
    for name in (".ipynb_checkpoints", "__MACOSX", ".git"):
        fill(pictures / name, 3)
    fill(pictures / "cat" / ".ipynb_checkpoints", 2)
    (pictures / "cat" / "._0.png").write_bytes(b"\x00\x05\x16\x07")
    for name in (".DS_Store", "Thumbs.db", "cat/Thumbs.db", "cat/.DS_Store"):
        (pictures / name).write_bytes(b"x")
    found = read(pictures)
    assert found.about["label_names"] == ["cat", "dog"]
    assert sum(map(len, found.splits.values())) == 20
    assert found.origin["notes"] == []


def test_a_class_without_pictures_is_a_fault_that_says_where_they_are(pictures):
    """A model was trained on one class."""
    (pictures / "empty").mkdir()
    fill(pictures / "deep" / "raw" / "more", 3)
    fill(pictures / "phone", 3, ending=".HEIC")
    for policy in ("error", "skip"):
        with pytest.raises(ConfigError) as caught:
            read(pictures, on_fault=policy)
        text = str(caught.value)
        assert "the class 'empty' has no pictures (.png, .jpg, " in text
        assert "fill it, or take the folder away" in text
        assert "the class 'deep' has no pictures" in text
        assert "pictures in folders of its own (raw): move them up" in text
        assert "3 pictures of a kind that is not read (.heic): convert them" in text


def test_pictures_where_none_is_read_are_a_fault_or_left_out_and_said(pictures):
    fill(pictures / "cat" / "kittens", 3)
    fill(pictures / "dog", 2, first=300, ending=".heic")
    fill(pictures, 1, first=400)
    with pytest.raises(ConfigError) as caught:
        read(pictures)
    assert "3 faults" in str(caught.value)
    found = read(pictures, on_fault="skip")
    assert sum(map(len, found.splits.values())) == 20
    assert found.origin["notes"] == [
        "left out: 1 pictures are in no class folder: 400.png",
        "left out: the class 'cat' has pictures in folders of its own (kittens): move them up",
        "left out: the class 'dog' has 2 pictures of a kind that is not read (.heic): convert them",
    ]


def test_damaged_pictures_are_left_out_where_the_config_says_so(pictures):
    (pictures / "cat" / "3.png").write_bytes(png(3)[:40])
    (pictures / "dog" / "105.png").write_bytes(b"")
    found = read(pictures, on_fault="skip")
    assert sum(map(len, found.splits.values())) == 18
    (note,) = found.origin["notes"]
    assert note.startswith("left out: train has damaged pictures, row 3, 15; the first: ")


def test_twelve_classes_named_by_numbers_are_in_their_order_and_the_splits_agree(tmp_path):
    for split, classes in (("train", range(12)), ("test", (2, 10, 11))):
        for name in classes:
            fill(tmp_path / split / str(name), 4, first=20 * name + (4 if split == "test" else 0))
    found = read(tmp_path / "train", test=str(tmp_path / "test"))
    assert found.about["label_names"] == list(map(str, range(12)))
    for raw in found.splits.values():
        names = [path.split("/")[-2] for path in raw.inputs["image"]]
        assert [found.about["label_names"][label] for label in raw.targets["label"]] == names


def test_a_class_that_train_has_not(pictures, tmp_path):
    fill(tmp_path / "t" / "cat", 4, first=200)
    fill(tmp_path / "t" / "cow", 4, first=220)
    with pytest.raises(ConfigError, match=r"data\.test: has a class 'cow' that train has not"):
        read(pictures, test=str(tmp_path / "t"))
    found = read(pictures, test=str(tmp_path / "t"), on_fault="skip")
    assert len(found.splits["test"]) == 4
    assert found.origin["notes"] == ["left out: has a class 'cow' that train has not"]


def test_one_picture_in_two_splits_is_said(pictures, tmp_path):
    fill(tmp_path / "t" / "cat", 4)
    fill(tmp_path / "t" / "dog", 4, first=200)
    fill(tmp_path / "v" / "cat", 4, first=220)
    found = read(pictures, validation=str(tmp_path / "v"), test=str(tmp_path / "t"))
    assert found.origin["notes"] == ["4 of 8 rows of test are in train, too: it was trained on them"]


def table(folder, paths, **more):
    rows = {"image": paths, "label": ["a", "b"] * (len(paths) // 2), **more}
    pd.DataFrame(rows).to_csv(folder / "rows.csv", index=False)
    return str(folder / "rows.csv")


def test_pictures_named_in_a_table_are_found_beside_it_from_any_folder(tmp_path, monkeypatch):
    fill(tmp_path / "set" / "files", 20)
    file = table(tmp_path / "set", [f"files/{index}.png" for index in range(20)])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = ImageClassification().read({"train": file}, seed=0)
    for raw in found.splits.values():
        assert [np.asarray(as_picture(value))[0, 0, 0] for value in raw.inputs["image"]] == raw.rows.tolist()
    (rows,) = ImageClassification().read_rows(tmp_path / "set" / "rows.csv", {}).values()
    assert np.asarray(as_picture(rows[7]))[0, 0, 0] == 7
    first = found.origin["digest"]
    (tmp_path / "set").rename(tmp_path / "moved")
    moved = {"train": str(tmp_path / "moved" / "rows.csv")}
    assert ImageClassification().read(moved, seed=0).origin["digest"] == first
    (tmp_path / "moved" / "files" / "3.png").write_bytes(png(99))
    assert ImageClassification().read(moved, seed=0).origin["digest"] != first


def test_cells_without_a_picture_and_paths_that_lead_nowhere_are_all_named(tmp_path):
    fill(tmp_path, 20)
    (tmp_path / "5.png").write_bytes(b"no picture")
    paths = [f"{index}.png" for index in range(20)]
    paths[2], paths[3], paths[9] = "gone.png", "", "away.png"
    with pytest.raises(ConfigError) as caught:
        ImageClassification().read({"train": table(tmp_path, paths)}, seed=0)
    text = str(caught.value)
    assert "1 row without a picture: row 3" in text
    assert f"whose picture is not there (looked for {tmp_path / 'gone.png'}; a path is relative to its table)" in text
    assert ": row 2, 9" in text
    found = ImageClassification().read({"train": table(tmp_path, paths), "on_fault": "skip"}, seed=0)
    assert sum(map(len, found.splits.values())) == 16
    assert len(found.origin["notes"]) == 3
    frame = pd.DataFrame({"image": [1, 2] * 10, "label": ["a", "b"] * 10})
    frame.to_parquet(tmp_path / "numbers.parquet")
    with pytest.raises(ConfigError, match="whose picture is neither a path nor bytes"):
        ImageClassification().read({"train": str(tmp_path / "numbers.parquet")}, seed=0)


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_modes_of_sixteen_bits_and_moving_pictures_are_read(mode):
    from PIL import Image

    picture = Image.fromarray(np.full((4, 4), 65535, dtype=np.uint16 if mode == "I;16" else np.int32))
    np.testing.assert_array_equal(np.asarray(as_picture(picture)), np.full((4, 4, 3), 255))
    out = io.BytesIO()
    frames = [Image.fromarray(np.full((4, 4), value, dtype=np.uint8)) for value in (10, 200)]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(as_picture(out.getvalue()))[0, 0, 0] == 10
