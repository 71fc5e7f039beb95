"""The front figure: what it shows, that names do not collide, and its numbers as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft import plugins
from autopeft.history import History
from autopeft.reports import figure, palette, svg
from autopeft.reports.facts import Facts
from autopeft.reports.labels import Box, place
from autopeft.reports.palette import SHAPES, look
from autopeft.reports.plot import MOST_LABELS, front_plot, log_ticks, tick_labels, ticks, wrap
from tests.reports import histories as h

PNG = b"\x89PNG\r\n\x1a\n"


def plot_of(events):
    return front_plot(Facts(History(events), h.describe))


def small(*scores_and_sizes, **changes):
    events = [h.header(**changes)]
    for number, (score, size) in enumerate(scores_and_sizes):
        events += [
            h.ask(number, {"method": "lora", "lora.rank": number + 1}, size),
            h.tell(number, {"accuracy": score, "trainable_parameters": size}),
        ]
    return events


CASES = {
    "empty": [h.header()],
    "one point": small((0.8, 5000)),
    "equal points": small((0.8, 5000), (0.8, 5000)),
    "equal scores": small((0.8, 5000), (0.8, 9000), (0.8, 7000)),
    "no majority": small((0.8, 5000), (0.9, 9000), baselines={}),
    "one objective": h.search(20, objectives=[h.OBJECTIVES[0]]),
    "three objectives": h.search(
        20,
        objectives=[
            *h.OBJECTIVES,
            {"metric": "train_seconds", "goal": "minimize", "reference": 60.0, "scale": "linear"},
        ],
    ),
    "minimized": h.search(
        20,
        objectives=[{"metric": "train_loss", "goal": "minimize", "reference": 2.0, "scale": "linear"}, h.OBJECTIVES[1]],
        baselines={},
    ),
    "linear size": h.search(20, objectives=[h.OBJECTIVES[0], {**h.OBJECTIVES[1], "scale": "linear"}]),
    "all kinds": h.confirmed(h.search(60)),
    "only failed": [h.header(), h.ask(0, {"method": "lora"}), h.tell(0, {}, "FAILED", "nan")],
}


@pytest.mark.parametrize("name", CASES)
def test_every_history_has_a_figure(name, tmp_path):
    history = History(CASES[name])
    path = figure.front_png(history, tmp_path / "front.png", h.describe, name="$a_{b}$ <x>")
    assert path.read_bytes().startswith(PNG)
    for narrow in (False, True):
        facts = Facts(history, h.describe)
        ET.fromstring(svg.front(facts, front_plot(facts), narrow=narrow))
    figure.front_json(history, tmp_path / "front.json", h.describe)
    figure.front_csv(history, tmp_path / "front.csv", h.describe)


def test_the_same_history_gives_the_same_bytes(tmp_path):
    history = History(h.search(20))
    for write in (figure.front_png, figure.front_json, figure.front_csv):
        assert (
            write(history, tmp_path / "a", h.describe).read_bytes()
            == write(history, tmp_path / "b", h.describe).read_bytes()
        )


def test_stopped_trials_are_not_drawn():
    events = h.search(60)  # its stopped trials report an accuracy of 0.99, above all others
    stopped = {event["number"] for event in events if event.get("status") == "STOPPED"}
    plot = plot_of(events)
    assert stopped
    assert not stopped & {mark.number for mark in plot.marks}
    assert max(mark.y for mark in plot.marks) < 0.98


def test_the_staircase_says_what_is_reached_with_at_most_so_many_parameters():
    plot = plot_of(small((0.7, 1000), (0.9, 100_000), (0.8, 10_000), (0.75, 50_000)))
    corners = plot.steps
    assert corners[0][0] == 1000
    assert corners[1:] == (
        (1000, 0.7),
        (10_000, 0.7),
        (10_000, 0.8),
        (100_000, 0.8),
        (100_000, 0.9),
        (plot.x_limits[1], 0.9),
    )


def test_baselines_are_drawn_in():
    plot = plot_of(h.search(40))
    assert {mark.baseline for mark in plot.marks} == {"", "frozen head", "full fine-tuning"}
    assert plot.trivial == 0.26
    assert not plot.trivial_is_shown  # far below everything: said in words, not at the cost of the scale
    near = plot_of(small((0.30, 1000), (0.45, 9000)))
    assert near.trivial_is_shown
    assert near.y_limits[0] < 0.26


def test_scores_far_off_stay_visible_at_the_edge():
    plot = plot_of(small(*[(0.9 + 0.001 * k, 1000 * (k + 1)) for k in range(20)], (0.1, 50_000)))
    (beyond,) = [mark for mark in plot.marks if mark.is_beyond]
    assert (beyond.y, plot.beyond) == (0.1, 1)
    assert 0 < plot.up(beyond.y) < 0.05


def test_at_most_eight_names_the_knee_and_the_ends_first():
    plot = plot_of(h.search(120, seed=3))
    assert len(plot.labelled) == MOST_LABELS
    assert plot.labelled[0].is_knee
    front = sorted((mark for mark in plot.marks if mark.is_front), key=lambda mark: mark.x)
    assert {front[0].x, front[-1].x} <= {mark.x for mark in plot.labelled}


@given(st.lists(st.tuples(st.floats(50, 450), st.floats(50, 250), st.floats(20, 120)), min_size=1, max_size=8))
def test_placed_names_neither_collide_nor_leave_the_figure(points):
    bounds = Box(0, 0, 500, 300)
    hard = [Box.around(x, y, 5) for x, y, _ in points]
    boxes = place([(x, y) for x, y, _ in points], [(width, 14) for *_, width in points], bounds=bounds, hard=hard)
    kept = [box for box in boxes if box is not None]
    for index, box in enumerate(kept):
        assert box.lies_in(bounds)
        assert not any(box.overlap(other) for other in kept[:index] + hard)


def test_a_lone_name_is_placed():
    assert place([(250, 150)], [(80, 14)], bounds=Box(0, 0, 500, 300), hard=[]) != [None]
    assert place([(250, 150)], [(800, 14)], bounds=Box(0, 0, 500, 300), hard=[]) == [None]


def test_a_method_looks_the_same_everywhere():
    known = (
        "head",
        "full",
        "last_layers",
        "bias",
        "norm",
        "lora",
        "ia3",
        "vera",
        "serial_adapter",
        "parallel_adapter",
        "prefix",
    )
    looks = [look(method) for method in known]
    assert len({(found.light, found.shape) for found in looks}) == len(known)
    assert look("lora+bias") == look("lora+bias")
    assert look("anything else").shape in SHAPES


def test_each_row_of_the_palette_is_of_methods_that_exist():
    """A row nobody uses only takes a look from others."""
    used = {part for recipe in palette._KNOWN for part in recipe.split("+")}
    assert used <= set(plugins.names("methods"))


def _luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(
    "method",
    [
        "head",
        "full",
        "last_layers",
        "bias",
        "norm",
        "lora",
        "ia3",
        "vera",
        "serial_adapter",
        "parallel_adapter",
        "prefix",
        *map(str, range(60)),
    ],
)
def test_colours_can_be_seen_on_both_grounds(method):
    """Contrast of at least 3 to 1, as WCAG 2 asks of graphics."""
    found = look(method)
    assert 1.05 / (_luminance(found.light) + 0.05) >= 3
    assert (_luminance(found.dark) + 0.05) / (_luminance("#16181d") + 0.05) >= 3


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_can_be_drawn(shape):
    assert svg.shape(shape, 10, 10, 5).startswith("M")


def drawn(history, theme):
    facts = Facts(history, h.describe)
    return svg.front(facts, front_plot(facts), theme=theme)


def test_themes():
    history = History(h.search(12))
    auto, light, dark = (drawn(history, theme) for theme in ("auto", "light", "dark"))
    assert "prefers-color-scheme:dark" in auto
    assert "prefers-color-scheme" not in light + dark
    assert "#16181d" in dark
    assert "#16181d" not in light
    with pytest.raises(ValueError, match="auto, light or dark"):
        drawn(history, "blue")


def test_each_point_has_a_tooltip_with_its_label():
    root = ET.fromstring(drawn(History(h.confirmed(h.search(30))), "auto"))
    space = "{http://www.w3.org/2000/svg}"
    points = [group for group in root.iter(f"{space}g") if "ap-pt" in group.get("class", "")]
    assert points
    for point in points:
        assert "validation, one seed" in point.find(f"{space}title").text
    assert any("confirmed on test, 5 seeds" in point.find(f"{space}title").text for point in points)


def test_json_holds_the_front_with_its_schema(tmp_path):
    history = History(h.confirmed(h.search(40)))
    data = json.loads(figure.front_json(history, tmp_path / "front.json", h.describe).read_text())
    assert (data["schema"], data["kind"]) == (1, "autopeft.front")
    assert [member["trial"] for member in data["front"]] == [record.number for record in history.front()]
    assert data["knee"] in [member["trial"] for member in data["front"]]
    assert data["front"][0]["confirmed"]["seeds"] == 5
    assert data["hypervolume"] == history.hypervolumes()[-1]
    assert {baseline["kind"] for baseline in data["baselines"]} == {"trivial", "head", "full"}


def test_csv_has_a_row_a_member_and_no_formula(tmp_path):
    evil = '=HYPERLINK("http://x","y")'
    events = [
        h.header(),
        h.ask(0, {"method": "lora", "lora.modules": [evil], "+lora.lr": -0.5}, 5000),
        h.tell(0, {"accuracy": 0.8, "trainable_parameters": 5000, "loss": -1.5}),
    ]
    path = figure.front_csv(History(events), tmp_path / "front.csv", lambda params: "@" + params["method"])
    (row,) = csv.DictReader(io.StringIO(path.read_text()))
    assert row["name"] == "'@lora"
    assert row["lora.modules"] == "'" + evil
    assert row["'+lora.lr"] == "-0.5"  # a number is no formula
    assert row["loss"] == "-1.5"


def test_ticks():
    assert ticks((0.66, 0.99), 7) == [0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    assert tick_labels([0.7, 0.75]) == ["0.70", "0.75"]
    assert log_ticks((500, 2e6)) == [1e3, 1e4, 1e5, 1e6]
    assert len(log_ticks((4000, 6000))) >= 1


def test_wrapping_balances_two_lines():
    assert wrap("prefix of 16 on layers 2–5") == ["prefix of 16", "on layers 2–5"]
    assert len(wrap("a name that goes on and on and on and on without end, really")) == 2
