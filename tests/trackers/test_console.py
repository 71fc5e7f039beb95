"""What the terminal shows: a live display, or lines; and that nothing printed meanwhile is lost or breaks it."""

import io
import re
import sys
import threading
import time
from dataclasses import replace

import pytest
from rich.console import Console as Terminal

from autopeft.history import History
from autopeft.trackers.console import Console, Scene, View, duration, time_left
from tests.reports import histories as h

COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7]m")


def terminal(**options):
    return Terminal(file=io.StringIO(), force_terminal=True, width=100, height=30, **options)


def follow(console, events):
    history = History(events[:1])
    console.start(history)
    for event in events[1:]:
        history.apply(event)
        console.handle(event)
    return history


def drawn(view):
    out = Terminal(file=io.StringIO(), width=100)
    out.print(view)
    return out.file.getvalue()


def test_lines_where_nobody_watches(tmp_path, capsys):
    events = h.search(30)
    console = Console(tmp_path / "demo-1", describe=h.describe)
    history = follow(console, events)
    console.finish()
    out, err = capsys.readouterr()
    assert out == "", "stdout is for data"
    lines = err.splitlines()
    assert lines[0] == "searching in demo-1"
    assert len(lines) == 1 + len(history.told)
    first = history.records[0]
    assert lines[1].startswith(f"[1/40] trial 0 done: accuracy {first.metrics['accuracy']:.4f}, 1,540 parameters · ")
    assert lines[1].endswith(f"{h.describe(first.params)} · on the front")
    assert any("failed: the training loss is nan at step 33" in line for line in lines)
    assert any("stopped: at step 120" in line for line in lines)
    assert "\x1b" not in err


def test_quiet_says_nothing(tmp_path, capsys):
    console = Console(tmp_path, quiet=True)
    follow(console, h.search(10))
    console.finish()
    assert capsys.readouterr() == ("", "")


def test_the_display_has_counts_budget_front_and_time_left(tmp_path):
    events = h.search(30)
    console = Console(tmp_path / "demo-1", describe=h.describe, terminal=terminal())
    history = follow(console, events)
    text = drawn(console.view)
    console.finish()
    assert "demo-1" in text
    ended = [str(record.status) for record in history.trials]
    for word, status in (("done", "COMPLETE"), ("stopped", "STOPPED"), ("failed", "FAILED"), ("running", "None")):
        assert f"{ended.count(status)} {word}" in text
    assert f"{len(history.records) - len(history.trials)} refused" in text
    assert f"{len(history.told)}/40 trials" in text
    assert "left" in text
    assert f"hypervolume {history.hypervolumes()[-1]:.4f}" in text
    best = history.front()[0]
    assert f"best accuracy {best.metrics['accuracy']:.4f}, trial {best.number}" in text
    for record in history.front()[:10]:
        assert f"{record.metrics['accuracy']:.4f}" in text
        assert h.describe(record.params)[:20] in text


def test_without_describe_params_are_shown(tmp_path):
    console = Console(tmp_path, terminal=terminal())
    follow(console, h.search(3))
    console.finish()
    assert "method" in drawn(console.view)


def test_the_display_leaves_the_terminal_as_it_was(tmp_path):
    before = sys.stdout, sys.stderr
    console = Console(tmp_path, terminal=terminal())
    follow(console, h.search(5))
    console.finish()
    console.finish()
    assert (sys.stdout, sys.stderr) == before
    assert console.terminal.file.getvalue().count("\x1b[?25l") == console.terminal.file.getvalue().count("\x1b[?25h")


def test_ray_may_print_meanwhile(tmp_path, monkeypatch):
    """Threads that print, to stdout and stderr, while the display is drawn: each line is there, whole."""
    console = Console(tmp_path, describe=h.describe, terminal=terminal())
    monkeypatch.setattr(sys, "stdout", Tty())
    events = h.search(30)
    history = History(events[:1])
    console.start(history)

    def print_lines(stream, name):
        for index in range(30):
            print(f"(pid={index}) {name} says {index}.", file=getattr(sys, stream))
            time.sleep(0.002)

    threads = [threading.Thread(target=print_lines, args=(s, n)) for s, n in (("stdout", "out"), ("stderr", "err"))]
    for thread in threads:
        thread.start()
    for event in events[1:]:
        history.apply(event)
        console.handle(event)
        time.sleep(0.001)
    for thread in threads:
        thread.join()
    console.finish()
    shown = Terminal.render_str(console.terminal, console.terminal.file.getvalue()).plain
    for name in ("out", "err"):
        assert all(f"(pid={index}) {name} says {index}." in shown for index in range(30))


class Tty(io.StringIO):
    def isatty(self):
        return True


def test_stdout_in_a_file_stays_data(tmp_path, monkeypatch):
    """`autopeft search --json > file`: what is printed goes to the file, not into the display."""
    file = io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    console = Console(tmp_path, terminal=terminal())
    history = History(h.search(2)[:1])
    console.start(history)
    print("data")
    console.finish()
    assert file.getvalue() == "data\n"


def test_no_color(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(tmp_path, describe=h.describe, terminal=terminal())
    follow(console, h.search(20))
    console.live.refresh()
    console.finish()
    shown = console.terminal.file.getvalue()
    assert "accuracy" in shown
    assert not COLOUR.search(shown)
    monkeypatch.delenv("NO_COLOR")
    coloured = Console(tmp_path, describe=h.describe, terminal=terminal(color_system="standard"))
    follow(coloured, h.search(20))
    coloured.live.refresh()
    coloured.finish()
    assert COLOUR.search(coloured.terminal.file.getvalue()), "or this test could not fail"


def test_a_dumb_terminal_gets_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    console = Console(tmp_path, terminal=terminal())
    follow(console, h.search(4))
    assert console.live is None
    console.finish()
    assert "[3/40]" in console.terminal.file.getvalue()


def test_going_on_says_what_was_told_before(tmp_path):
    view = View(History(h.search(10)), "demo-1", h.describe)
    assert view.opening() == "searching in demo-1, 9 trials told before"
    assert "9/40 trials" in drawn(view)


@pytest.mark.parametrize(
    ("scene", "seconds", "expected"),
    [
        (Scene(told=10, most=40), 100.0, None),
        (Scene(told=10, most=40, rate=2.0), 100.0, 60.0),
        (Scene(told=10, most_seconds=130.0), 100.0, 30.0),
        (Scene(told=10, most=40, rate=2.0, most_seconds=130.0), 100.0, 30.0),
        (Scene(told=10, most_seconds=90.0), 100.0, 0.0),
        (Scene(), 100.0, None),
    ],
)
def test_time_left(scene, seconds, expected):
    scene = replace(scene, at=time.monotonic())
    assert time_left(scene, seconds) == (None if expected is None else pytest.approx(expected, abs=1.0))


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (75, "1:15"), (3700, "1:01:40")])
def test_duration(seconds, text):
    assert duration(seconds) == text
