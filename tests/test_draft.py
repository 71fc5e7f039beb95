"""A config while it is read. Whole configs with their messages are in test_golden.py, loading in test_config.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autopeft.draft import Draft, nearest, override, place_paths
from autopeft.errors import ConfigError


@pytest.mark.parametrize(
    ("content", "text", "expected"),
    [
        ({}, "budget.trials=60", {"budget": {"trials": 60}}),
        ({"sampler": "tpe"}, "sampler.n=5", {"sampler": {"name": "tpe", "n": 5}}),
        ({}, "sampler.n=5", {"sampler": {"name": "random", "n": 5}}),
        ({"model": "here"}, "model.revision=main", {"model": {"path": "here", "revision": "main"}}),
        ({"trackers": [{"name": "a"}]}, "trackers.0.name=b", {"trackers": [{"name": "b"}]}),
    ],
)
def test_an_override_sets_a_key(content: dict[str, Any], text: str, expected: dict[str, Any]) -> None:
    draft = Draft(content, "config")
    override(draft, text, {"sampler": "random"})
    assert (draft.content, draft.faults) == (expected, [])
    assert draft.line(text.split("=")[0]) is None, "it stands in no line of the file"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("budget", "expected key=value such as budget.trials=60"),
        ("seed.more=3", "seed has no keys of its own"),
        ("trackers.4=b", "trackers is a list of 1: give an index from 0"),
    ],
)
def test_an_override_that_has_no_place(text: str, message: str) -> None:
    draft = Draft({"seed": 0, "trackers": ["a"]}, "config")
    override(draft, text, {})
    assert [fault.message for fault in draft.faults] == [f"{message}, got 'budget'" if text == "budget" else message]


def test_paths_are_beside_what_named_them(tmp_path: Path) -> None:
    lines: dict[str, int | None] = {"data.train": 3, "data.test": None}
    draft = Draft({"data": {"train": "a.csv", "test": "b.csv"}, "model": "some/model"}, "c", tmp_path, lines)
    place_paths(draft)
    assert draft.content == {
        "data": {"train": str(tmp_path / "a.csv"), "test": str(Path.cwd() / "b.csv")},
        "model": "some/model",
    }


def test_the_nearest_line_is_that_of_the_longest_part_of_a_path() -> None:
    assert [nearest({"a": 1, "a.b": 2}, path) for path in ("a.b.c", "a.c", "d")] == [2, 1, None]


def test_faults_come_once_and_in_the_order_of_the_file() -> None:
    draft = Draft({}, "config", lines={"late": 9, "early": 2})
    for path in ("late", "early", "late"):
        draft.fault(path, "is wrong")
    with pytest.raises(ConfigError) as caught:
        draft.raise_faults()
    assert [(fault.path, fault.line) for fault in caught.value.faults] == [("early", 2), ("late", 9)]
