"""Splits by seed: no class is carved out of train, groups stay whole, and what is lacking is said."""

import json

import numpy as np
import pytest

from autopeft.errors import ConfigError
from autopeft.tasks import Raw
from autopeft.tasks._splits import carve, complete, some_of
from autopeft.tasks.text_classification import TextClassification


def rows(labels, groups=None):
    labels = np.asarray(labels)
    return Raw({"x": np.arange(len(labels))}, {"label": labels}, np.arange(len(labels)), labels, groups)


def test_classes_too_small_to_split_stay_in_train_and_are_said():
    """Three of fourteen classes with one row each were put into test, and none of them was in train."""
    labels = [0] * 50 + [1] * 50 + list(range(2, 16))
    for seed in range(5):
        parts, made, notes = complete(
            {"train": rows(labels)}, {"test_share": 0.2}, seed, names=[f"class {at}" for at in range(16)]
        )
        assert set(parts["train"].strata.tolist()) == set(range(16))
        assert set(parts["test"].strata.tolist()) == {0, 1}
        assert len(parts["test"]) == 23, "the share of all rows, from the classes that have enough"
        assert sum(map(len, parts.values())) == 114
        said = "has no row of 14 classes ('class 2', 'class 3', 'class 4', 'class 5', 'class 6', …): too few rows"
        assert [f"{split} {said} to split" for split in ("validation", "test")] == sorted(notes, reverse=True)
        assert made["test"] == "0.2 of train, stratified, by seed"


@pytest.mark.parametrize("seed", range(5))
def test_some_rows_of_train_have_a_row_of_each_class(seed):
    labels = [0] * 300 + [1] * 100 + list(range(2, 20)) * 2
    part = some_of(rows(labels), 30, seed)
    assert len(part) == 30
    assert set(part.strata.tolist()) == set(range(20))
    assert some_of(rows(labels), 30, seed).rows.tolist() == part.rows.tolist()


def test_what_train_lacks_is_in_no_other_split_and_counted():
    """With fewer rows than classes, validation asked for classes that were never learned."""
    labels = list(range(20)) * 10
    given = {"train": rows(labels), "validation": rows(labels[:60]), "test": rows(labels[:40])}
    parts, made, notes = complete(given, {"train_rows": 12}, 0, list(map(str, range(20))))
    known = set(parts["train"].strata.tolist())
    assert len(known) == len(parts["train"]) == 12
    for split, n in (("validation", 60), ("test", 40)):
        assert set(parts[split].strata.tolist()) == known
        left_out = n - len(parts[split])
        assert made[split].startswith(f"as given; {left_out} rows of 8 classes (")
        assert made[split].endswith(", …) left out, as train has no row of them")
        assert f"{split}: {made[split].removeprefix('as given; ')}" in notes
    assert complete(given, {}, 0, list(map(str, range(20))))[2] == []
    assert len(complete(given, {"train_rows": 12}, 0)[0]["test"]) == 40, "strata that are no classes are no reason"


@pytest.mark.parametrize("seed", range(10))
def test_groups_never_straddle_and_classes_keep_their_share(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 60, 1200)
    raw = rows(rng.integers(0, 4, 1200), groups)
    parts, made, _ = complete({"train": raw}, {"test_share": 0.2, "validation_share": 0.2, "group": "user"}, seed)
    of = {split: set(part.groups.tolist()) for split, part in parts.items()}
    assert not of["train"] & of["test"] and not of["train"] & of["validation"] and not of["validation"] & of["test"]
    assert abs(len(parts["test"]) / 1200 - 0.2) < 0.03
    assert abs(np.bincount(parts["test"].strata) / np.bincount(raw.strata) - 0.2).max() < 0.08
    assert made["test"] == "0.2 of train, stratified, whole groups of 'user', by seed"
    again = complete({"train": raw}, {"test_share": 0.2, "validation_share": 0.2, "group": "user"}, seed)[0]
    assert all(again[split].rows.tolist() == part.rows.tolist() for split, part in parts.items())


def test_a_few_large_groups_are_split_and_one_alone_is_told():
    rest, part = carve(rows([0, 1] * 30, np.repeat([7, 8, 9], 20)), 0.1, seed=0)
    assert (len(rest), len(part)) == (40, 20), "a whole group, though it is more than the share"
    only = {"train": rows([0, 1] * 30, np.zeros(60, dtype=np.int64))}
    with pytest.raises(ConfigError, match=r"validation would have no row.*train has 1 groups of 'user'"):
        complete(only, {"group": "user"}, 0)
    a_class_each = rows(np.repeat([0, 1, 2], 20), np.repeat([0, 1, 2], 20))
    assert len(carve(a_class_each, 0.3, seed=0)[1]) == 0, "a class would be carved out of train"


def read(folder, data, **splits):
    for split, table in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    files = {split: str(folder / f"{split}.jsonl") for split in splits}
    return TextClassification().read({**files, "text": "text", "label": "label", **data}, seed=0)


def users(n, first=0):
    return [{"text": f"t{first + row}", "label": "ab"[row % 2], "user": f"u{(first + row) // 6}"} for row in range(n)]


def test_the_column_of_groups_is_named_in_the_config(tmp_path):
    found = read(tmp_path, {"group": "user", "test_share": 0.2}, train=users(120))
    of = {split: {row // 6 for row in raw.rows.tolist()} for split, raw in found.splits.items()}
    assert not (of["train"] & of["test"] or of["train"] & of["validation"] or of["validation"] & of["test"])
    assert set(found.splits["train"].inputs) == {"text"}, "it is no input"
    lacking = [{**row, "user": None} if at in (3, 5) else row for at, row in enumerate(users(60))]
    with pytest.raises(ConfigError, match="train has 2 rows without a group in 'user': row 3, 5"):
        read(tmp_path, {"group": "user"}, train=lacking)
    with pytest.raises(ConfigError, match=r"data\.group: no column 'users' in train\. Did you mean 'user'"):
        read(tmp_path, {"group": "users"}, train=users(60))


def test_groups_that_straddle_the_splits_as_given_are_a_fault_or_left_out(tmp_path):
    splits = {"train": users(60), "validation": users(24, first=54), "test": users(24, first=72)}
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, {"group": "user"}, **splits)
    assert "validation has 6 rows whose 'user' is in another split, too: row 0, 1, 2, 3, 4, …" in str(caught.value)
    assert "test has 6 rows whose 'user' is in another split, too" in str(caught.value)
    found = read(tmp_path, {"group": "user", "on_fault": "skip"}, **splits)
    assert {split: len(raw) for split, raw in found.splits.items()} == {"train": 60, "validation": 18, "test": 18}
    assert sum(note.startswith("left out: ") for note in found.origin["notes"]) == 2
