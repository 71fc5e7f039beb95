"""Templates: texts of several columns."""

import pytest

from autopeft.tasks._columns import picked
from autopeft.tasks._templates import Filled, Written, columns_in, fill, is_template, row_faults, template_fault


def test_a_template_names_its_columns_and_takes_their_cells():
    template = "Question: {question}\nAnswer ({kind}, {kind}):"
    assert columns_in(template) == ["question", "kind"]
    assert fill(template, {"question": "1 + 1?", "kind": "number"}) == "Question: 1 + 1?\nAnswer (number, number):"
    assert columns_in("question") == ["question"] and not is_template("question")


def test_cells_are_taken_as_they_are():
    """Braces of a cell are no columns; a missing cell is an empty text; a number is its digits."""
    assert fill("{a}{b} {{c}} {d}", {"a": "{b}", "b": None, "d": 7}) == "{b} {c} 7"
    assert columns_in("{{c}} {d e.f:g[0]}") == ["d e.f:g[0]"]


@pytest.mark.parametrize(
    ("template", "message"),
    [("{a", "single '{'"), ("a}", "single '}'"), ("{} {a}", "no column's name"), ("{{a}}", "names no column")],
)
def test_wrong_templates(template, message):
    assert message in template_fault(template)


def test_rows_are_written_when_they_are_read():
    filled = Filled("{a}-{b}", {"a": ["1", "2", "3"], "b": ["x", "y", "z"], "c": []})
    assert len(filled) == 3 and filled[1] == "2-y" and filled[1:] == ["2-y", "3-z"] and list(filled) == filled[:]
    import numpy as np

    assert list(picked(filled, np.array([2, 0]))) == ["3-z", "1-x"]


def test_a_row_whose_cells_are_all_empty_is_a_fault_and_one_with_some_is_none():
    """As Alpaca's `input`, which most rows do not have."""
    table = {"a": ["1", "2", None], "b": ["x", "", " "]}
    assert (
        row_faults(table, "{a} {b}", "prompt", "train")[0].message == "train has 1 row with an empty 'a' and 'b': row 2"
    )
    assert (
        "with a list in 'a'; expected text: row 0" in row_faults({"a": [["x"]]}, "{a}!", "prompt", "train")[0].message
    )


def test_a_target_of_a_template():
    target = Written({"completion": " {answer}"}, "completion", 0)
    assert target.columns == {"answer": "completion"}
    targets, _, faults = target.encode({"answer": ["1", "2"]}, "train", {})
    assert list(targets["completion"]) == [" 1", " 2"] and not faults
    assert target.is_unlabelled({"answer": [None, None]})
