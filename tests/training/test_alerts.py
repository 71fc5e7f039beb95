"""Alerts: once when a share rises to its bound, and again only after it was below."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from autopeft.errors import UsageError
from autopeft.training.alerts import Alert, watched

LABELS = {"label_names": ["good", "bad"], "n_outputs": 2}


def adapter(about=LABELS, **content):
    content = {"auto_class": "AutoModelForSequenceClassification", "options": {}, **content}
    return SimpleNamespace(about={"about": about, **content})


def alerts_of(answers, *alerts, window=4, **options):
    found = list(watched(adapter(**options), answers, [Alert.of(text) for text in alerts], window))
    assert [row for row in found if "alert" not in row] == answers, "the answers are all there, in their order"
    return [row["alert"] for row in found if "alert" in row]


def labels(text):
    return [{"label": {"g": "good", "b": "bad"}[letter]} if letter != "!" else {"error": "?"} for letter in text]


def test_an_alert_is_said_once_until_the_share_was_below():
    found = alerts_of(labels("bbgbbggggbb"), "bad=0.5")
    assert [alert["line"] for alert in found] == [4, 11]
    assert found[0] == {"label": "bad", "share": 0.75, "window": 4, "line": 4}


def test_errors_are_no_answers():
    assert [alert["line"] for alert in alerts_of(labels("b!b!gg"), "bad=0.5")] == [6]


def test_nothing_is_said_of_fewer_answers_than_the_window():
    assert not alerts_of(labels("bbb"), "bad=0.1")
    assert len(alerts_of(labels("b"), "bad=0.1", window=1)) == 1


def test_an_alert_comes_before_the_next_line_is_asked_for():
    asked = []

    def answers():
        for answer in labels("bg"):
            asked.append(answer)
            yield answer

    found = watched(adapter(), answers(), [Alert("bad", 0.5)], 1)
    assert next(found) == {"label": "bad"} and "alert" in next(found) and len(asked) == 1


def test_several_columns_and_sets_of_labels():
    columns = {"outputs": {"mood": ["good", "bad"], "topic": ["day", "bad"]}, "n_outputs": 4}
    answers = [{"mood": "good", "topic": "bad"}] * 2
    found = alerts_of(answers, "mood=bad=0.5", "topic=bad=0.5", "bad=1", window=2, about=columns)
    assert [alert["label"] for alert in found] == ["topic=bad", "bad"]
    sets = {"labels": ["a", "b"], "n_outputs": 2}
    answers = [{"labels": "a|b"}, {"labels": ""}]
    assert len(alerts_of(answers, "b=0.5", window=2, about=sets, options={"separator": "|"})) == 1


@pytest.mark.parametrize("text", ["negative", "=0.4", "negative=0", "negative=1.1", "negative=x", "negative=nan"])
def test_no_alert(text):
    with pytest.raises(UsageError, match=r"such as negative=0\.4"):
        Alert.of(text)


def test_labels_that_the_adapter_does_not_give():
    with pytest.raises(UsageError, match=r"no label 'baad' to alert about\. Did you mean 'bad'"):
        watched(adapter(), [], [Alert("baad", 0.5)], 4)
    with pytest.raises(UsageError, match="answers are no labels"):
        watched(adapter({"n_outputs": 1}), [], [Alert("bad", 0.5)], 4)
    with pytest.raises(UsageError, match="1 answer or more"):
        watched(adapter(), [], [], 0)
