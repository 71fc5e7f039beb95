"""With one slot, Ray Tune writes the ledger that serial writes, event by event."""

from __future__ import annotations

import pytest

from autopeft import plugins
from tests.executors.conversations import Toy, events, front, lines, make_search

ONE_SLOT = {"serial": {}, "ray_tune": {"slots": 1}}


def search(folder, name, trials):
    conversation = make_search(folder, trials=trials)
    (folder / "3.fail").touch()
    plugins.load("executors", name)(**ONE_SLOT[name]).run(conversation, Toy(folder))
    conversation.ledger.close()


def test_the_same_ledger_from_both(tmp_path, ray_up):
    """A sampler that depends on all it was told, a stopper that depends on all it saw, a trial that fails."""
    for name in ONE_SLOT:
        search(tmp_path / name, name, 14)
    assert events(tmp_path / "ray_tune") == events(tmp_path / "serial")
    told = [event["status"] for event in events(tmp_path / "serial") if event["event"] == "tell"]
    assert {"COMPLETE", "STOPPED", "FAILED"} == set(told)
    assert len(lines(tmp_path / "ray_tune", "made")) == 1


@pytest.mark.parametrize(("first", "then"), [("serial", "ray_tune"), ("ray_tune", "serial")])
def test_one_goes_on_where_the_other_left(tmp_path, ray_up, first, then):
    search(tmp_path / "whole", "serial", 12)
    search(tmp_path / "handed over", first, 6)
    search(tmp_path / "handed over", then, 12)
    assert events(tmp_path / "handed over") == events(tmp_path / "whole")
    assert front(tmp_path / "handed over") == front(tmp_path / "whole")
