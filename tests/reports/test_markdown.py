"""The Markdown report and the model card: complete, and text from outside stays text."""

from __future__ import annotations

import pytest

from autopeft.history import History
from autopeft.reports import markdown, text
from autopeft.reports.card import model_card
from tests.reports import histories as h
from tests.reports.test_figure import CASES


@pytest.mark.parametrize("name", CASES)
def test_every_history_has_a_report(name):
    source = markdown.render(History(CASES[name]), h.describe, name=name)
    assert source.startswith(f"# {name}\n")
    for section in ("## The front", "## All trials", "## Provenance"):
        assert section in source


def test_a_full_report_has_every_section():
    source = markdown.render(History(h.confirmed(h.search(60))), h.describe, name="sst2")
    headings = [line for line in source.splitlines() if line.startswith("#")]
    assert headings == [
        "# sst2",
        "## The front",
        "## Baselines",
        "## Hypervolume over trials",
        "## Learning curves of the front",
        "## What mattered",
        "## All trials",
        "## Failures",
        "## Refused",
        "## Provenance",
        "### Resolved config",
    ]
    assert "validation, one seed" in source
    assert "mean ± 95 % CI" in source


def test_a_report_says_how_trials_ran():
    events = h.search(12)
    assert "trials ran" not in markdown.render(History(events), h.describe), "a ledger from before that was noted"
    told = [event for event in events if event["event"] == "tell"]
    for event, way in zip(told, ("graph", "graph", "stack", "plain"), strict=False):
        event["ran"] = way
    source = markdown.render(History(events), h.describe)
    assert "trials ran: `2 as CUDA graphs, a launch a step, 1 in passes that trials share, 1 step by step`" in source


def test_every_table_is_rectangular():
    source = markdown.render(History(h.confirmed(h.search(60))), h.describe)
    widths: list[int] = []
    for line in source.splitlines():
        if line.startswith("|"):
            widths.append(line.replace(r"\|", "").count("|"))
        elif widths:
            assert len(set(widths)) == 1
            widths = []


def test_the_picture_is_shown_where_it_is(tmp_path):
    history = History(h.search(12))
    assert "![" not in markdown.write(history, tmp_path / "report.md", h.describe).read_text()
    (tmp_path / "front.png").write_bytes(b"x")
    assert "(front.png)" in markdown.write(history, tmp_path / "report.md", h.describe).read_text()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("serial_adapter", "serial_adapter"),
        ("_x_", r"\_x\_"),
        ("a|b", r"a\|b"),
        ("https://x", r"https\://x"),
        ("**b**", r"\*\*b\*\*"),
        ("line\nbreak", "line break"),
        ("<script>", r"\<script\>"),
    ],
)
def test_markdown_text(value, expected):
    assert text.markdown(value) == expected


def test_code_survives_backticks():
    assert text.code("a`b``c") == "``` a`b``c ```"
    assert text.code("plain") == "`plain`"


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [
        (24_578, 22_700_000, "0.11 %"),
        (0, 10, "0 %"),
        (10, 10, "100 %"),
        (2_361_540, 22_700_000, "10 %"),
        (591_540, 22_700_000, "2.6 %"),
        (2000, 22_700_000, "0.0088 %"),
    ],
)
def test_share(part, whole, expected):
    assert text.share(part, whole) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(0, "0"), (999.9, "1k"), (24_578, "24.6k"), (1.77e6, "1.77M"), (5, "5")]
)
def test_short_count(value, expected):
    assert text.short_count(value) == expected


def test_short_names_lose_their_learning_rates_first():
    assert text.short_name("LoRA rank 8 on query of layers 3–5, lr 2e-4") == "LoRA rank 8 on query of layers 3–5"
    assert text.short_name("head only, lr 0.001, head lr 0.002") == "head only"
    assert len(text.short_name("word " * 40)) <= 44


# Of an exported folder; the code that a card has for it is run in tests/training/test_export.py.
ABOUT = {
    "form": "peft",
    "task": "text_classification",
    "auto_class": "AutoModelForSequenceClassification",
    "data": {"text": "text"},
    "max_length": None,
    "inputs": {"text": "text"},
    "about": {"label_names": ["no", "yes"], "n_outputs": 2},
    "trust_remote_code": False,
}


def test_the_model_card_names_each_trial_by_its_own_params():
    history = History(h.search(40, stock=[3]))  # LoRA
    record = next(record for record in history.front() if record.params["method"] != "lora")
    card = model_card(history, record, h.describe, "x", ABOUT)
    assert f"# {text.markdown(h.describe(record.params))}" in card
    assert "best stock default (LoRA" in card


def test_the_model_card_has_numbers_labels_and_command():
    history = History(h.confirmed(h.search(40)))
    record = history.front()[0]
    card = model_card(history, record, h.describe, "autopeft export runs/a --pick best", ABOUT)
    assert card.startswith("---\n")
    for words in (
        "confirmed on test, 5 seeds",
        "validation, one seed",
        "majority class",
        "frozen head",
        "`autopeft export runs/a --pick best`",
        "`yes`",
        "abc1234",
        f"trial {record.number}",
    ):
        assert words in card, words
    assert "models/mini" not in card.split("## Provenance")[1]
    assert "base_model:" not in card  # a folder's name is no hub name
    hub = History(h.search(12, model={"name": "google/mini-v2", "n_layers": 6, "parameters": 22_700_000}))
    assert 'base_model: "google/mini-v2"' in model_card(hub, hub.front()[0], h.describe, "y", ABOUT)
