"""Labels as people have them: whatever their types, a class is what a person would call one."""

import datetime
import json

import numpy as np
import pandas as pd
import pytest

from autopeft.errors import ConfigError
from autopeft.tasks._targets import alike, in_order, is_missing, text_faults
from autopeft.tasks.text_classification import TextClassification

N = 60


def read(folder, data=None, **splits):
    """Reads splits given as lists of labels; each row's text names the row."""
    for split, labels in splits.items():
        rows = [{"text": f"{split} {row}", "label": label} for row, label in enumerate(labels)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {split: str(folder / f"{split}.jsonl") for split in splits}
    return TextClassification().read({**files, "text": "text", "label": "label", **(data or {})}, seed=0)


def test_one_label_of_two_types_is_one_class(tmp_path):
    """They became four classes named 0, 1, 0, 1."""
    found = read(tmp_path, train=[[0, 1, "0", "1", 1.0, 0.0][row % 6] for row in range(N)])
    assert found.about["label_names"] == ["0", "1"]
    for raw in found.splits.values():
        assert raw.targets["label"].tolist() == [(0, 1, 0, 1, 1, 0)[row % 6] for row in raw.rows]


@pytest.mark.parametrize(
    ("train", "test", "unknown"),
    [
        ([10, 20], [0, 1], r"'0' \(row 0\), '1' \(row 1\); its labels are '10', '20'"),
        ([1, 2, 3, 4, 5], [0], r"'0' \(row 0\)"),
        ([5, 7, 8, 9], [3], r"'3' \(row 0\)"),
        (["neg", "pos"], [0, 1], r"'0' \(row 0\), '1' \(row 1\); its labels are 'neg', 'pos'"),
        ([0, 1], ["neg"], r"'neg' \(row 0\)"),
        (["0.0", "1.0"], [1, 0], r"'1' \(row 0\), '0' \(row 1\); its labels are '0\.0', '1\.0'"),
    ],
)
def test_a_label_that_train_has_not_is_no_index(tmp_path, train, test, unknown):
    with pytest.raises(ConfigError, match=rf"test has labels that train has not: {unknown}"):
        read(tmp_path, train=(train * N)[:N], test=(test * N)[:20])


def test_indices_are_read_where_label_names_say_so(tmp_path):
    names = {"label_names": ["neg", "pos"]}
    found = read(tmp_path, names, train=["pos", "neg"] * 30, test=[0, 1] * 10)
    assert found.splits["test"].targets["label"].tolist() == [0, 1] * 10
    numbers = {"label_names": ["3", "1", "2"]}
    as_names = read(tmp_path, numbers, train=[1, 2, 3] * 20, test=[1] * 9)
    assert set(as_names.splits["test"].targets["label"].tolist()) == {1}
    with pytest.raises(ConfigError, match=r"test has labels that label_names has not: '0' \(row 0\)"):
        read(tmp_path, numbers, train=[1, 2, 3] * 20, test=[0] * 9)


def test_a_label_of_label_names_without_a_row_in_train_is_a_fault_elsewhere(tmp_path):
    with pytest.raises(ConfigError, match=r"test has labels that train has not: 'odd' \(row 2\)"):
        read(tmp_path, {"label_names": ["neg", "pos", "odd"]}, train=["pos", "neg"] * 30, test=["pos", "neg", "odd"])


def test_the_codes_of_a_table_keep_their_names_in_another_order(tmp_path):
    (tmp_path / "dataset_info.json").write_text(json.dumps({"label_names": ["neg", "pos"]}))
    found = read(tmp_path, {"label_names": ["pos", "neg"]}, train=[0, 1] * 30)
    for raw in found.splits.values():
        assert raw.targets["label"].tolist() == [1 - row % 2 for row in raw.rows], "0 is neg, now the second"


def test_minus_one_is_a_class_if_train_has_it(tmp_path):
    found = read(tmp_path, train=[-1, 0, 1] * 20, test=[-1] * 8)
    assert found.about["label_names"] == ["-1", "0", "1"]
    assert len(found.splits["test"]) == 8
    assert len(read(tmp_path, {"test_share": 0.2}, train=[0, 1] * 30, test=[-1] * 8).splits["test"]) == 12, "hidden"


def test_labels_that_look_alike_are_a_note(tmp_path):
    found = read(tmp_path, train=["pos", "pos ", "neg", "NEG"] * 15)
    assert len(found.about["label_names"]) == 4
    said = "\n".join(found.origin["notes"])
    assert "the labels 'NEG', 'neg' are classes of their own, and look alike" in said
    assert "the labels 'pos', 'pos ' are classes" in said
    assert alike(["1", "1.0", "one", "nan"]) == ["the labels '1', '1.0' are classes of their own, and look alike"]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([datetime.date(2024, 1, 2), datetime.date(2023, 5, 6)], ["2023-05-06", "2024-01-02"]),
        (pd.to_datetime(["2024-01-02", "2023-05-06"]), ["2023-05-06 00:00:00", "2024-01-02 00:00:00"]),
        (pd.to_datetime(["2024-01-02", "2023-05-06"]).astype("datetime64[ns]"), None),
        (pd.array([True, False], dtype="boolean"), ["False", "True"]),
        (pd.Categorical(["b", "a"]), ["a", "b"]),
        (np.array([b"b", b"a"]), "a bytes"),
    ],
)
def test_labels_of_every_type_of_a_table(tmp_path, labels, names):
    frame = pd.DataFrame({"text": [f"t{row}" for row in range(N)], "label": pd.Series(labels).repeat(30).to_numpy()})
    frame.to_parquet(tmp_path / "rows.parquet")
    data = {"train": str(tmp_path / "rows.parquet"), "text": "text", "label": "label"}
    if names == "a bytes":
        with pytest.raises(ConfigError, match="expected one label a row"):
            TextClassification().read(data, seed=0)
        return
    found = TextClassification().read(data, seed=0).about["label_names"]
    assert len(found) == 2
    assert names is None or found == names


@pytest.mark.parametrize("dtype", ["Int64", "string", "boolean", "Float64", "datetime64[ns]", "object"])
def test_missing_labels_of_nullable_types_are_missing(tmp_path, dtype):
    values = {"Int64": [1, 2], "string": ["a", "b"], "boolean": [True, False], "Float64": [1.0, 2.0],
              "datetime64[ns]": ["2024-01-02", "2023-05-06"], "object": ["a", "b"]}[dtype]  # fmt: skip
    labels = pd.Series(values * 30).astype(dtype)
    frame = pd.DataFrame({"text": [f"t{row}" for row in range(N)], "label": labels})
    frame.to_parquet(tmp_path / "train.parquet")
    frame.assign(label=pd.Series([None] * N).astype(dtype)).to_parquet(tmp_path / "test.parquet")
    data = {"train": str(tmp_path / "train.parquet"), "text": "text", "label": "label", "test_share": 0.2}
    found = TextClassification().read({**data, "test": str(tmp_path / "test.parquet")}, seed=0)
    assert len(found.splits["test"]) == 12, "the test split has no label: it is carved"
    frame.loc[[3, 7], "label"] = None
    frame.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ConfigError, match="train has 2 rows without a label: row 3, 7"):
        TextClassification().read(data, seed=0)


def test_what_pandas_calls_missing_is_missing():
    for value in (None, float("nan"), np.nan, np.float32("nan"), pd.NA, pd.NaT):
        assert is_missing(value)
    for value in ("", "nan", 0, False, [], pd.Timestamp("2024-01-02")):
        assert not is_missing(value)
    column = pd.Series(["a", None, " "], dtype="string")
    (fault,) = text_faults({"t": list(column)}, {"t": "text"}, "train")
    assert "2 rows with an empty 't': row 1, 2" in fault.message


def test_whole_numbers_are_in_their_order_also_as_text():
    assert in_order(["10", "9", "b", "-1", "a", "007"]) == ["-1", "9", "10", "007", "a", "b"]
