"""What MLflow should hold, worked out from a history: no MLflow here."""

import json
import math

import pytest
from mlflow.utils.validation import _validate_metric_name

from autopeft.history import History
from autopeft.redact import Redactor
from autopeft.trackers import _layout as layouts
from autopeft.trackers._layout import Address, Layout, key_of, metric_key
from tests.reports import histories as h


def layout(events, describe=h.describe):
    found = Layout(History(events), describe, Redactor())
    found.progress.update(found.history)
    found.rank()
    return found


@pytest.fixture(scope="module")
def searched():
    return layout(h.confirmed(h.search(40), seeds=2))


def pages(found):
    return [
        found.search(is_over=True),
        *(found.trial(record.number, is_over=True) for record in found.history.trials),
        *(found.replicate(confirmation) for confirmation in found.history.confirmations),
    ]


def test_every_page_fits_mlflow(searched):
    for page in pages(searched):
        assert len(page.name) <= 250
        assert all(value and len(value) <= 500 for value in page.params.values())
        assert all(value and len(value) <= 5000 for value in page.tags.values())
        assert all(math.isfinite(point.value) and point.step >= 0 for point in page.points)
        assert len({(p.key, p.step) for p in page.points}) == len(page.points), "one value a metric and step"
        assert key_of(page.tags) == page.key, "it is found again by its tags"


def test_the_same_history_gives_the_same_pages(searched):
    assert pages(layout(h.confirmed(h.search(40), seeds=2))) == pages(searched)


def test_the_parent_has_a_point_a_finished_trial(searched):
    page = searched.search(is_over=True)
    volumes = [p for p in page.points if p.key == "search/hypervolume"]
    assert [p.step for p in volumes] == list(range(1, len(searched.history.told) + 1))
    assert [p.value for p in volumes] == pytest.approx(searched.history.hypervolumes())
    keys = {point.key for point in page.points}
    assert {"search/best_accuracy", "search/front_size", "search/trials_complete", "search/trials_stopped",
            "search/trials_failed", "search/trials_out_of_memory", "search/train_seconds"} <= keys  # fmt: skip
    times = [p.timestamp for p in volumes]
    assert times == sorted(times)
    created = 1_795_485_600_000  # 2026-11-24T02:00:00Z
    told = searched.history.records[searched.history.told[0]]
    assert (page.start, times[0]) == (created, created + round(told.told_seconds * 1000))


def test_a_trial_s_page(searched):
    record = next(r for r in searched.history.records if r.is_complete and r.params["method"] == "lora")
    page = searched.trial(record.number, is_over=True)
    points = {(point.key, point.step): point.value for point in page.points}
    assert page.name == f"trial-{record.number:03d}-lora-r{record.params['lora.rank']}"
    assert page.status == "FINISHED"
    assert page.params["lora.modules"] == " ".join(record.params["lora.modules"])
    assert page.params["seed"] == str(record.trial.seed)
    assert points["train/loss", 40] == record.reports[0].metrics["train_loss"]
    assert points["eval/accuracy", 120] == record.reports[1].metrics["accuracy"]
    assert points["eval/accuracy", 121] == record.metrics["accuracy"]
    size = record.metrics["trainable_parameters"]
    assert points["cost/trainable_params", 0] == size
    assert points["cost/log10_trainable_params", 0] == pytest.approx(math.log10(size))
    assert points["cost/trainable_pct", 0] == pytest.approx(100 * size / 22_700_000)


def test_the_final_score_stands_at_the_last_step():
    events = h.search(4, config={**h.header()["config"], "training": {"epochs": 2, "steps": None, "batch_size": 32}})
    points = layout(events).trial(0, is_over=True).points
    assert max(p.step for p in points if p.key == "eval/accuracy") == 250


def test_a_stopped_trial_is_never_final(searched):
    stopped = [r for r in searched.history.records if r.status == "STOPPED"]
    assert stopped
    for record in stopped:
        page = searched.trial(record.number, is_over=True)
        assert page.status == "KILLED"
        assert "cost/log10_trainable_params" not in {point.key for point in page.points}
        assert 0.99 not in [point.value for point in page.points], "its result's metrics are partial"
        assert page.tags["autopeft.on_front"] == "false"


def test_states(searched):
    states = {}
    for record in searched.history.trials:
        page = searched.trial(record.number, is_over=True)
        states.setdefault(page.tags["autopeft.state"], set()).add(page.status)
        assert ("autopeft.error" in page.tags) == bool(record.error)
    assert states == {"COMPLETE": {"FINISHED"}, "STOPPED": {"KILLED"}, "FAILED": {"FAILED"},
                      "OUT_OF_MEMORY": {"FAILED"}, "UNFINISHED": {"KILLED"}}  # fmt: skip
    assert searched.search(is_over=True).tags["autopeft.state"] == "interrupted"
    assert searched.search(is_over=False).status == "RUNNING"
    assert layout(h.search(5)).search(is_over=True).tags["autopeft.state"] == "finished"


def test_exactly_one_is_selected_and_ranks_count_from_one(searched):
    tags = [searched.trial(record.number, is_over=True).tags for record in searched.history.trials]
    assert [t.get("autopeft.selected") for t in tags].count("true") == 1
    ranks = sorted(int(t["autopeft.front_rank"]) for t in tags if t.get("autopeft.on_front") == "true")
    assert ranks == list(range(1, len(searched.history.front()) + 1))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", "eval/accuracy"),
        ("train_loss", "train/loss"),
        ("NDCG@5", "eval/NDCG_at_5"),
        ("a\\b;c%20", "eval/a_b_c_20"),
        ("../x", "eval/_/x"),
        ("größe", "eval/größe"),
        ("gru\N{COMBINING DIAERESIS}n", "eval/grün"),
        ("精度", "eval/精度"),
        ("x" * 400, "eval/" + "x" * 245),
    ],
)
def test_metric_names_are_what_mlflow_takes(name, expected):
    """Two names of other scripts stay two keys: with `_` for their letters they were one."""
    assert metric_key(name) == expected
    _validate_metric_name(expected)


def test_a_note_opens_with_links_verdict_picture_table(searched):
    children = {record.number: f"run{record.number}" for record in searched.history.front()}
    note = searched.note(Address("7", "abc"), children, [layouts.PICTURE, layouts.PAGE], "It is so.")
    first, verdict, picture, table = note.split("\n\n")
    assert first.startswith("[Interactive front](#/experiments/7/runs/abc/artifacts/00_pareto/pareto.html?workflowType")
    assert "viewStateShareKey=0123456789abcdef" in first
    assert verdict == "It is so."
    assert picture == "![The front](/get-artifact?path=00_pareto%2Fpareto.png&run_uuid=abc)"
    rows = table.splitlines()[2:]
    assert len(rows) == len(searched.history.front())
    assert sum("★" in row for row in rows) == 1
    assert all("workflowType=machine_learning" in row for row in rows)


@pytest.mark.parametrize("name", ["short", "x" * 390, "|" * 200])
def test_a_note_is_never_cut_by_mlflow(name):
    events = [h.header()]
    for number in range(200):  # all on the front
        metrics = {"accuracy": 0.9 - number / 1000, "trainable_parameters": 100_000.0 - number}
        events += [h.ask(number, {"method": "lora"}), h.tell(number, metrics)]
    found, children = layout(events, lambda params: name), dict.fromkeys(range(200), "c" * 32)
    note = found.note(Address("1", "r" * 32), children, [layouts.PICTURE, layouts.PAGE], "v")
    assert len(note) <= 8000
    last = note.splitlines()[-1]
    shown = len(note.splitlines()) - 9
    assert f"… and {200 - shown} more" in last
    assert 1 <= shown <= 30


def test_without_a_front_the_note_says_so():
    found = layout([h.header()])
    note = found.note(Address("1", "r"), {}, [], "")
    assert note.endswith("No trial is complete yet.")
    assert "pareto" not in note, "no link to what is not there"


def test_names_of_other_people_are_no_markdown():
    events = [h.header(), h.ask(0, {"method": "lora"}), h.tell(0, {"accuracy": 0.5, "trainable_parameters": 10.0})]
    note = layout(events, lambda params: "[x](javascript:1) | <b>").note(Address("1", "r"), {}, [], "")
    assert "\\[x\\](javascript:1) \\| \\<b\\>" in note


def test_the_shared_charts_are_json_for_this_search(searched):
    tags = searched.experiment_tags()
    charts = json.loads(tags["mlflow.sharedViewState.0123456789abcdef"])
    assert "0123456789abcdef" in charts["searchFilter"]
    assert {chart["type"] for chart in charts["compareRunCharts"]} == {"SCATTER", "PARALLEL"}
    assert {chart["metricSectionId"] for chart in charts["compareRunCharts"]} == {
        section["uuid"] for section in charts["compareRunSections"]
    }
    assert all(len(value) < 5000 for value in tags.values())


def test_a_rerun_s_page_has_only_the_new_reports():
    events = [h.header(), h.ask(0, {"method": "lora"}, 10.0), h.report(0, 1, train_loss=2.0),
              {"event": "rerun", "number": 0, "seconds": 3.0}, h.report(0, 5, train_loss=1.0)]  # fmt: skip
    points = layout(events).trial(0, is_over=False).points
    assert [(p.key, p.step) for p in points] == [("train/loss", 5)]


def test_params_that_differ_by_type_differ_in_mlflow():
    values = [1, 1.0, True, "1", "1.0", "True", None, "None", "gaussian"]
    events = [h.header()]
    for number, value in enumerate(values):
        events.append(h.ask(number, {"method": "lora", "lora.init": value}, 10))
    found = layout(events)
    shown = [found.trial(number, is_over=False).params.get("lora.init") for number in range(len(values))]
    assert shown == ["1", "1.0", "True", "'1'", "'1.0'", "'True'", None, "'None'", "gaussian"]


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"method": "lora", "lora.rank": 4}, "lora-r4"),
        ({"method": "lora"}, "lora"),
        ({"method": "lora@a", "lora@a.rank": 4}, "lora@a-r4"),
        ({"method": "lora@a+lora@b", "lora@a.rank": 4, "lora@b.rank": 2}, "lora@a+lora@b"),
        ({"method": "prefix", "shared.size": 3}, "prefix-s3"),
        ({"method": "ia3", "ia3.lr": 0.1}, "ia3"),
    ],
)
def test_a_trial_is_named_by_its_recipe_and_the_size_that_it_is_given(params, name):
    assert layouts._short(params) == name
