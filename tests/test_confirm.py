"""Confirming again, and going on with what was interrupted: each retraining once, with a seed of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopeft.confirm import Candidate, Confirm
from autopeft.history import History
from autopeft.ledger import Ledger, read
from autopeft.trial import Result, Status, Trial

CANDIDATES = [Candidate(f"trial {n}", n, {"method": "head", "head.lr": 10.0**-n}) for n in (3, 1, 4)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def confirm(path: Path, seeds: int, candidates=CANDIDATES, tell: tuple[int, ...] | None = None) -> Confirm:
    """A round, of which those numbers are told; all where none are given."""
    ledger = Ledger(path)
    try:
        conversation = Confirm(ledger, candidates, seeds, seed=0)
        asked: list[Trial] = []
        while (trial := conversation.ask()) is not None:
            asked.append(trial)
        assert len(asked) == len(conversation)
        for trial in asked if tell is None else [asked[index] for index in tell]:
            conversation.tell(Result(trial, Status.COMPLETE, {"accuracy": 0.5}))
    finally:
        ledger.close()
    return conversation


def told(path: Path) -> dict[str, list[int]]:
    """Name → its seeds, in order."""
    out: dict[str, list[int]] = {}
    for entry in History(read(path)).confirmations:
        out.setdefault(entry.name, []).append(entry.seed)
    return out


def test_each_candidate_gets_so_many_seeds_of_its_own(path):
    conversation = confirm(path, 3)
    assert conversation.notes == []
    seeds = told(path)
    assert {name: len(found) for name, found in seeds.items()} == {"trial 3": 3, "trial 1": 3, "trial 4": 3}
    assert len({seed for found in seeds.values() for seed in found}) == 9


def test_it_goes_seed_by_seed(path):
    confirm(path, 2)
    names = [entry.name for entry in History(read(path)).confirmations]
    assert names == [candidate.name for candidate in CANDIDATES] * 2


@pytest.mark.parametrize("tell", [(), (0,), (1, 3), (5, 8), tuple(range(8)), (2, 5, 8)])
def test_an_interrupted_one_goes_on_to_the_same_seeds(path, tell, tmp_path):
    confirm(path, 3, tell=tell)  # whatever the order in which slots told
    again = confirm(path, 3)
    assert again.notes == [f"going on with the confirmation that was interrupted: {9 - len(tell)} retrainings are left"]
    whole = tmp_path / "whole.jsonl"
    confirm(whole, 3)
    assert {name: sorted(seeds) for name, seeds in told(path).items()} == {
        name: sorted(seeds) for name, seeds in told(whole).items()
    }


def test_one_without_a_retraining_left_in_an_interrupted_round_gets_none(path):
    confirm(path, 2, tell=(0, 1, 2, 3))
    confirm(path, 2)
    assert {len(seeds) for seeds in told(path).values()} == {2}


def test_others_may_come_between(path):
    confirm(path, 2, tell=(0,))
    other = Candidate("trial 9", 9, {"method": "full", "full.lr": 1e-4})
    assert confirm(path, 1, [other]).notes == []
    confirm(path, 2)
    assert {name: len(seeds) for name, seeds in told(path).items()} == {
        "trial 3": 2, "trial 1": 2, "trial 4": 2, "trial 9": 1
    }  # fmt: skip


def test_a_second_one_adds_seeds_and_says_that_the_test_split_was_seen(path):
    confirm(path, 2)
    again = confirm(path, 3, CANDIDATES[:1])
    assert again.notes == ["the test split was seen before by trial 3; these seeds are added to the earlier ones"]
    seeds = told(path)["trial 3"]
    assert len(seeds) == len(set(seeds)) == 5


def test_a_failed_retraining_is_not_tried_again(path):
    ledger = Ledger(path)
    conversation = Confirm(ledger, CANDIDATES[:1], 1, seed=0)
    trial = conversation.ask()
    assert trial is not None
    conversation.tell(Result(trial, Status.FAILED, error="the training loss is nan"))
    ledger.close()
    assert "seen before" in confirm(path, 1, CANDIDATES[:1]).notes[0]


def lose(path: Path, seeds: int = 2) -> list[int]:
    """A round of one candidate whose workers all die. Returns the seeds."""
    ledger = Ledger(path)
    conversation = Confirm(ledger, CANDIDATES[:1], seeds, seed=0)
    asked = []
    while (trial := conversation.ask()) is not None:
        asked.append(trial.seed)
        conversation.tell(Result(trial, Status.FAILED, error="its worker died", fault="machine"))
    ledger.close()
    return asked


def test_a_retraining_that_the_machine_cost_is_tried_again_with_its_seed(path):
    lost = lose(path)
    again = confirm(path, 2, CANDIDATES[:1])
    assert again.notes == ["going on with the confirmation that was interrupted: 2 retrainings are left"]
    found = History(read(path)).confirmations
    assert [(entry.seed, entry.status) for entry in found] == [(seed, Status.COMPLETE) for seed in lost]


def test_one_that_the_machine_cost_twice_has_failed(path):
    assert lose(path) == lose(path)
    assert len(lose(path)) == 2
    seeds = [entry.seed for entry in History(read(path)).confirmations]
    assert len(seeds) == len(set(seeds)) == 4, "the third time they are fresh ones"


def test_who_is_picked_twice_is_confirmed_once(path):
    confirm(path, 2, [CANDIDATES[0], CANDIDATES[0]])
    assert len(told(path)["trial 3"]) == 2
