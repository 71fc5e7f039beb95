"""Lines of text, each answered before the next one is asked for."""

import json

import numpy as np
import pandas as pd
import pytest

from autopeft.errors import UsageError
from autopeft.training.lines import answered


class Adapter:
    """Answers with the rows that it gets."""

    def __init__(self, **inputs):
        self.about = {"inputs": inputs}

    def predict(self, rows):
        if rows.get("text") == ["bad"]:
            raise UsageError("not\nthis one")
        return pd.DataFrame({"got": [json.dumps(rows)], "p": np.array([0.5], np.float32)})


def got(answer):
    return json.loads(answer["got"])


def test_a_line_is_answered_before_the_next_is_read():
    asked = []

    def lines():
        for text in (b"good\n", b"fine\n"):
            asked.append(text)
            yield text

    found = answered(Adapter(text="texts"), lines())
    assert got(next(found)) == {"text": ["good"]} and len(asked) == 1
    assert json.dumps(next(found)["p"]) == "0.5" and len(asked) == 2
    assert not list(found)


def test_texts_and_json_lines():
    lines = [b" a text \r\n", b'{"text": "a", "id": 7}\n', b'{"id": 7}', b"{odd", b"\n", b"\xff\n", b"bad"]
    first, second, *faults = answered(Adapter(text="texts"), lines)
    assert got(first) == {"text": [" a text "]} and got(second) == {"text": ["a"]}
    expected = ["has no text", "is no JSON", "empty", "not UTF-8", "not this one"]
    assert len(faults) == 5
    for fault, said in zip(faults, expected, strict=True):
        assert set(fault) == {"error"} and said in fault["error"]


def test_several_columns_come_as_json():
    adapter = Adapter(a="texts", b="texts")
    plain, row = answered(adapter, [b"good", b'{"b": "2", "a": "1"}'])
    assert plain == {"error": "expected a JSON object with a, b, got 'good'"} and got(row) == {"a": ["1"], "b": ["2"]}


def test_a_plain_line_is_what_the_user_says():
    said, whole = answered(Adapter(messages="conversation"), [b"good day", b'[{"role": "user", "content": "a"}]'])
    assert got(said) == {"messages": [[{"role": "user", "content": "good day"}]]}
    assert got(whole) == {"messages": ['[{"role": "user", "content": "a"}]']}


def test_pictures_are_no_lines():
    with pytest.raises(UsageError, match="reads picture: predict a file or a folder"):
        next(answered(Adapter(image="picture"), [b"a"]))
