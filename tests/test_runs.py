"""A run and its trackers: each is given what its constructor names, and filled or opened where it can be."""

from types import SimpleNamespace

import pytest

from autopeft import plugins, runs
from autopeft.errors import AutoPEFTError, EnvironmentFault, UsageError, command
from autopeft.history import History
from autopeft.runs import Run
from tests.reports import histories as h


class Least:
    """All that a tracker must have: its constructor takes the folder, and nothing of what is offered."""

    def __init__(self, folder):
        self.folder = folder

    def start(self, history):
        pass

    def handle(self, event):
        pass

    def finish(self):
        pass


class Asking(Least):
    """Names what it needs, and can be filled and opened."""

    def __init__(self, folder, quiet, adapters, colour="red"):
        super().__init__(folder)
        self.given = (quiet, adapters, colour)

    def fill(self, history):
        return {"rows": len(history.told)}

    def open_command(self, history):
        return f"open {self.folder}"


class Breaking(Least):
    def fill(self, history):
        raise ZeroDivisionError("by nobody")


class Busy(Least):
    def fill(self, history):
        raise UsageError("another process is writing")


def run_with(tmp_path, monkeypatch, *trackers, **options):
    """A run whose config has these trackers, all with the same options."""
    known = {tracker.__name__: tracker for tracker in trackers}
    monkeypatch.setattr(plugins, "load", lambda kind, name: known[name])
    run = Run(tmp_path, History(h.search(4)))
    run.__dict__["config"] = SimpleNamespace(trackers=[SimpleNamespace(name=name, options=options) for name in known])
    return run


def test_a_tracker_is_given_what_it_names_and_nothing_else(tmp_path, monkeypatch):
    run = run_with(tmp_path, monkeypatch, Asking, colour="blue")
    tracker = runs.make_tracker(run.config.trackers[0], run, quiet=True)
    assert tracker.given == (True, run.exported_adapter, "blue")


def test_trackers_that_cannot_be_filled_or_opened_are_passed_over(tmp_path, monkeypatch):
    run = run_with(tmp_path, monkeypatch, Least, Asking)
    assert run.track() == {"Asking": {"rows": len(run.history.told)}}
    assert run.open_commands() == {"Asking": f"open {tmp_path}"}


@pytest.mark.parametrize(
    ("trackers", "fault", "text"),
    [
        ((Breaking, Asking), EnvironmentFault, "tracker 'Breaking': ZeroDivisionError: by nobody"),
        ((Busy, Asking), UsageError, "another process is writing"),
        ((Busy, Breaking, Asking), EnvironmentFault, "another process is writing; tracker 'Breaking'"),
    ],
)
def test_one_that_breaks_is_named_after_the_others_are_filled(tmp_path, monkeypatch, trackers, fault, text):
    run = run_with(tmp_path, monkeypatch, *trackers)
    filled = []
    monkeypatch.setattr(Asking, "fill", lambda self, history: filled.append(1) or {})
    with pytest.raises(AutoPEFTError, match=text) as caught:
        run.track()
    assert type(caught.value) is fault
    assert filled == [1]


def test_a_suggested_command_can_be_pasted():
    assert command("autopeft", "track", "runs/a-1") == "`autopeft track runs/a-1`"
    assert command("autopeft", "track", "exp #3 (100%)?/a") == "`autopeft track 'exp #3 (100%)?/a'`"
