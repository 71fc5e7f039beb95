"""Encoded data on disk: what was encoded is what is read, rows are told, and faults of all splits are said at once."""

import numpy as np
import pytest
from models import bert

from autopeft.errors import ConfigError, Fault
from autopeft.tasks import Ragged, Raw
from autopeft.tasks.text_classification import TextClassification
from autopeft.training.data import prepare
from autopeft.training.setup import Setup


@pytest.fixture
def setup(tmp_path):
    (tmp_path / "model").mkdir()
    rows = "".join(f"word {index},{'ab'[index % 2]}\n" for index in range(20))
    (tmp_path / "rows.csv").write_text(f"text,label\n{rows}")
    data = {"train": str(tmp_path / "rows.csv"), "text": "text", "label": "label", "validation_share": 0.2}
    model = bert(tmp_path / "model")
    return Setup.of(
        model=model, task="text_classification", data=data, folder=str(tmp_path), cache=str(tmp_path / "cache")
    )


def test_what_is_read_back_is_what_the_task_encoded(setup):
    found = prepare(setup)
    raw = TextClassification().read(setup.task.data, setup.seed)
    assert found.about == {"label_names": ["a", "b"], "n_outputs": 2}
    assert set(found.splits) == {"train", "validation"}
    for name, split in found.splits.items():
        fresh = TextClassification().encoder(setup.source, raw.about)(raw.splits[name])
        np.testing.assert_array_equal(split.targets["label"], fresh.targets["label"])
        assert set(split.inputs) == set(fresh.inputs)
        for key, column in split.inputs.items():
            assert isinstance(column, Ragged)
            assert isinstance(column.values, np.memmap)
            np.testing.assert_array_equal(column.values, fresh.inputs[key].values)
            np.testing.assert_array_equal(column.offsets, fresh.inputs[key].offsets)
            assert column.pad == fresh.inputs[key].pad


def test_the_rows_of_carved_splits_are_told(setup):
    found = prepare(setup)
    assert len(found.rows["validation"]) == 4
    assert sorted([*found.rows["train"], *found.rows["validation"]]) == list(range(20))
    for name, rows in found.rows.items():
        np.testing.assert_array_equal(found.splits[name].targets["label"], rows % 2)


def test_it_is_encoded_once_until_its_file_changes(setup, tmp_path, monkeypatch):
    first = prepare(setup)
    calls = []
    read = TextClassification.read
    monkeypatch.setattr(TextClassification, "read", lambda *given: (calls.append(1), read(*given))[1])
    assert prepare(setup).folder == first.folder
    assert not calls
    with open(tmp_path / "rows.csv", "a") as file:
        file.write("one more,a\n")
    again = prepare(setup)
    assert again.folder != first.folder
    assert again.origin["digest"] != first.origin["digest"]
    assert calls == [1]


def test_rows_of_all_splits_that_cannot_be_encoded_are_said_at_once(setup, tmp_path, monkeypatch):
    def refuse(raw: Raw):
        raise ConfigError([Fault("data", f"row {raw.rows[0]}: is damaged")])

    monkeypatch.setattr(TextClassification, "encoder", lambda *_: refuse)
    with pytest.raises(ConfigError) as caught:
        prepare(setup)
    assert [fault.message.split(",")[0] for fault in caught.value.faults] == ["train", "validation"]
    assert not list((tmp_path / "cache" / "data").glob("*/"))  # nothing half encoded is left


def test_a_data_set_on_disk_whose_content_changes_is_encoded_anew(setup, tmp_path):
    import datasets

    def save(last):
        rows = {"text": [*(f"good {index}" for index in range(19)), last], "label": ["a", "b"] * 10}
        datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "set")

    save("film")
    data = {"hub": str(tmp_path / "set"), "text": "text", "label": "label"}
    first = prepare(setup.but(data=data))
    save("song")
    assert prepare(setup.but(data=data)).origin["digest"] != first.origin["digest"]
