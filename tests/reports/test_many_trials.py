"""Reports of thousands of trials: what a browser has to lay out does not grow with them."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from autopeft.history import History
from autopeft.reports import figure, html, importance, markdown, plot, svg, table
from autopeft.reports.facts import Facts
from autopeft.reports.importance import importances
from autopeft.reports.plot import front_plot
from tests.reports import histories as h


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Smaller bounds, and a forest of two trees, so that hundreds of trials are many."""
    monkeypatch.setattr(table, "MOST_TRIALS", 100)
    monkeypatch.setattr(table, "MOST_REASONS", 5)
    monkeypatch.setattr(plot, "MOST_MARKS", 60)
    monkeypatch.setattr(importance, "MOST_TRIALS", 150)
    monkeypatch.setattr(importance, "_TREES", 2)


def many(trials):
    """A search with this many trials, and with failures and refusals for many reasons."""
    events = h.search(trials)
    number = 1 + max(event["number"] for event in events if "number" in event)
    params = {"method": "head", "head.lr": 0.001}
    for index in range(trials // 10):
        events += [h.ask(number, params), h.tell(number, {}, "FAILED", f"reason {index}")]
        events.append(h.refuse(number + 1, params, f"refusal {index}"))
        number += 2
    return History(events)


def elements(page):
    return len(re.findall(r"<[a-z]", page))


def test_a_page_of_twice_as_many_trials_has_as_many_elements():
    small, large = (html.render(many(trials), h.describe) for trials in (400, 800))
    assert elements(large) < 1.05 * elements(small)
    assert len(large) < 1.3 * len(small), "dots and the curve of the hypervolume: a few bytes a trial"


def test_the_bounds_keep_10_000_trials_under_a_tenth_of_a_browser_s_and_a_file_s_bar():
    """Elements and bytes a row, times the bound as it is."""
    source = html.render(many(400), h.describe)
    rows = source.partition('id="trials-table"')[2].partition("</table>")[0]
    each = elements(rows) / rows.count("<tr")
    assert each * 1000 < 20_000 and len(rows) / rows.count("<tr") * 1000 < 2e6


def test_the_table_has_what_reports_speak_of_and_all_ways_to_end():
    facts = Facts(history := many(400), h.describe)
    found = table.trials(facts, 100)
    numbers = [row["trial"] for row in found.rows]
    assert numbers == sorted(set(numbers)) and len(numbers) == 100
    assert facts.front_numbers <= set(numbers)
    assert {b.record.number for b in facts.baselines if b.record is not None} <= set(numbers)
    ended = Counter(row["status"] for row in found.rows)
    assert set(ended) == set(history.counts())
    assert min(count for standing, count in ended.items() if standing != "RUNNING") > 5
    complete = sorted((facts.score(record) for record in facts.complete), reverse=True)
    shown = [row["score"] for row in found.rows if row["status"] == "COMPLETE"]
    assert set(complete[:10]) <= set(shown)
    assert f"100 of {len(history.records)}" in found.note and "`autopeft trials RUN` has all" in found.note
    assert len(table.trials_table(history, h.describe)) == len(history.records), "the command has all"
    assert len(table.trials(facts, 10**6)) == len(history.records)


def test_reasons_are_cut_and_said():
    facts = Facts(many(400), h.describe)
    for made in (table.failures, table.refusals):
        assert len(made(facts, 5)) == 5 and "The first 5 of" in made(facts, 5).note
        assert not made(facts).note
    assert "The first 5 of" in markdown.render(facts.history, h.describe)


def test_the_crowd_is_below_the_front_and_one_element_a_method():
    facts = Facts(many(400), h.describe)
    drawn = front_plot(facts)
    assert len(drawn.crowd) == len(drawn.marks) - 60
    marks = {mark.number: mark for mark in drawn.marks}
    assert not [n for n in drawn.crowd if marks[n].is_front or marks[n].baseline or marks[n].is_knee]
    picture = svg.front(facts, drawn)
    assert picture.count('data-trial="') == 60
    assert picture.count('class="ap-crowd ') == len({marks[n].method for n in drawn.crowd})
    assert "trials as dots" in html.render(facts.history, h.describe)
    assert not front_plot(Facts(History(h.search(40)), h.describe)).crowd


def test_the_picture_is_drawn_in_as_many_calls_however_many_trials():
    def artists(trials):
        facts = Facts(many(trials), h.describe)
        drawn = front_plot(facts)
        (axes,) = figure._draw(facts, drawn).axes
        return len(axes.lines) - sum(mark.is_front + bool(mark.baseline) for mark in drawn.marks)

    assert artists(600) <= artists(300) + 2


def test_a_forest_has_some_of_the_trials_by_seed_and_the_report_says_so():
    facts = Facts(many(400), h.describe)
    found = importances(facts)
    assert found.sampled == 150 and found == importances(facts)
    assert "The forest had 150 of the complete trials" in markdown.render(facts.history, h.describe)
    assert importances(Facts(History(h.search(40)), h.describe)).sampled is None
