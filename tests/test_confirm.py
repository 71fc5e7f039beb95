"""Confirming again, and going on with what was interrupted: each retraining once; races; seeds that pair candidates."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autopeft.choosers import Race, Round
from autopeft.confirm import Candidate, Confirm
from autopeft.errors import UsageError
from autopeft.history import History
from autopeft.ledger import Ledger, read
from autopeft.trial import Result, Status, Trial, derive_seed

CANDIDATES = [Candidate(f"trial {n}", n, {"method": "head", "head.lr": 10.0**-n}) for n in (3, 1, 4)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def confirm(path: Path, seeds: int, candidates=CANDIDATES, tell: tuple[int, ...] | None = None) -> Confirm:
    """A round, of which those numbers are told; all where none are given."""
    ledger = Ledger(path)
    try:
        conversation = Confirm(ledger, Round(History(ledger.events), candidates, seeds), seed=0)
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


def test_each_candidate_gets_so_many_seeds_and_the_same_ones(path):
    conversation = confirm(path, 3)
    assert conversation.notes == []
    seeds = told(path)
    assert {name: len(found) for name, found in seeds.items()} == {"trial 3": 3, "trial 1": 3, "trial 4": 3}
    assert len(seeds["trial 3"]) == len(set(seeds["trial 3"]))
    assert seeds["trial 3"] == seeds["trial 1"] == seeds["trial 4"], "by index: they pair the candidates"


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
    conversation = Confirm(ledger, Round(History(ledger.events), CANDIDATES[:1], 1), seed=0)
    trial = conversation.ask()
    assert trial is not None
    conversation.tell(Result(trial, Status.FAILED, error="the training loss is nan"))
    ledger.close()
    assert "seen before" in confirm(path, 1, CANDIDATES[:1]).notes[0]


def test_a_retraining_with_other_counts_than_its_trial_has_failed(path):
    """The count is what its mean stands beside on the front."""
    ledger = Ledger(path)
    candidate = replace(CANDIDATES[0], known={"trainable_parameters": 10.0})
    conversation = Confirm(ledger, Round(History(ledger.events), [candidate], 2), seed=0)
    for count in (10.0, 11.0):
        trial = conversation.ask()
        assert trial is not None
        conversation.tell(Result(trial, Status.COMPLETE, {"accuracy": 0.5, "trainable_parameters": count}))
    first, second = conversation.history.confirmations
    assert (first.status, second.status) == (Status.COMPLETE, Status.FAILED)
    assert second.error == "counted wrongly before training: trainable_parameters is 11, foretold were 10"
    ledger.close()


def lose(path: Path, seeds: int = 2) -> list[int]:
    """A round of one candidate whose workers all die. Returns the seeds."""
    ledger = Ledger(path)
    conversation = Confirm(ledger, Round(History(ledger.events), CANDIDATES[:1], seeds), seed=0)
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


def test_the_seeds_of_an_older_autopeft_count_and_its_round_goes_on(path):
    """There they were of a name and an index, and paired nobody."""
    ledger = Ledger(path)
    ledger.append({"event": "confirming", "seeds": {"trial 3": 3, "trial 1": 3}})
    for candidate, index in ((CANDIDATES[0], 0), (CANDIDATES[0], 1), (CANDIDATES[1], 0)):
        seed = derive_seed(0, "confirm", candidate.name, index)
        ledger.append(
            {
                "event": "confirm", "name": candidate.name, "number": candidate.number, "params": {}, "seed": seed,
                "status": "COMPLETE", "metrics": {"accuracy": 0.5}, "error": "",
            }
        )  # fmt: skip
    ledger.close()
    again = confirm(path, 3, CANDIDATES[:2])
    assert again.notes == ["going on with the confirmation that was interrupted: 3 retrainings are left"]
    seeds = told(path)
    assert {name: len(set(found)) for name, found in seeds.items()} == {"trial 3": 3, "trial 1": 3}
    assert seeds["trial 3"][2:] == [derive_seed(0, "confirm", 0)]
    assert seeds["trial 1"][1:] == [derive_seed(0, "confirm", 0), derive_seed(0, "confirm", 1)]


# ── races ───────────────────────────────────────────────────────────────────────────────────────────────────────────

# On test: 0 and 1 are far apart, 1 and 2 cannot be told apart. Validation says that all three are on the front.
MEANS, SPREAD = {0: 0.90, 1: 0.80, 2: 0.799}, {0: 0.002, 1: 0.02, 2: 0.01}


@pytest.fixture
def searched(tmp_path: Path) -> Path:
    from tests.reports import histories as h

    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(h.header())
    for number, (accuracy, size) in enumerate([(0.9, 3000), (0.8, 2000), (0.7, 1000)]):
        ledger.append(h.ask(number, {"method": "lora", "lora.rank": number}, size))
        ledger.append(h.tell(number, {"accuracy": accuracy, "trainable_parameters": size}))
    ledger.close()
    return ledger.path


def score(trial: Trial) -> float:
    number = trial.params["lora.rank"]
    return MEANS[number] + SPREAD[number] * float(np.random.default_rng(trial.seed).normal())


def race(path: Path, most: int, seeds: int = 3, slots: int = 1, die_after: int | None = None) -> Confirm:
    """A race with so many retrainings at once, of which the oldest ends first; a driver that dies after some."""
    ledger = Ledger(path)
    candidates = [Candidate.of(record) for record in History(ledger.events).records]
    conversation = Confirm(ledger, Race(History(ledger.events), candidates, seeds, most), seed=0)
    running: list[Trial] = []
    for told in itertools.count():
        while len(running) < slots and (trial := conversation.ask()) is not None:
            running.append(trial)
        if not running or told == die_after:
            break
        trial = running.pop(0)
        conversation.tell(Result(trial, Status.COMPLETE, {"accuracy": score(trial)}))
    ledger.close()
    return conversation


def lengths(path: Path) -> list[int]:
    found = told(path)
    return [len(set(found.get(f"trial {number}", []))) for number in range(3)]


@pytest.mark.parametrize("slots", [1, 4])
def test_a_race_gives_seeds_to_neighbours_that_overlap_and_no_more_than_it_may(searched, slots):
    race(searched, most=24, slots=slots)
    found = lengths(searched)
    assert sum(found) == 24, "1 and 2 stay tied"
    assert found[0] == 3, "0 was told apart by its first seeds"
    assert found[1] > found[2] > 3, "the wider interval gets more"


def test_a_race_ends_where_nobody_overlaps(searched, monkeypatch):
    monkeypatch.setitem(MEANS, 2, 0.5)
    race(searched, most=60)
    assert lengths(searched) == [3, 3, 3]


@pytest.mark.parametrize("die_after", range(0, 24, 5))
def test_a_race_that_was_killed_goes_on_as_if_it_was_not(searched, die_after, tmp_path):
    whole = tmp_path / "whole.jsonl"
    whole.write_bytes(searched.read_bytes())
    race(whole, most=24)
    race(searched, most=24, die_after=die_after)
    again = race(searched, most=24)
    assert again.notes == (
        [f"going on from {die_after} retrainings; the race ends at 24, or where no neighbours overlap"]
        if die_after
        else []
    )
    assert told(searched) == told(whole)
    assert len(History(read(searched)).races) == 1


def test_a_race_counts_what_was_confirmed_before_and_may_be_given_more(searched):
    race(searched, most=12)
    race(searched, most=20)
    assert sum(lengths(searched)) == 20
    assert [entry["race"] for entry in History(read(searched)).races] == [12, 20]


def test_a_race_that_is_too_short_is_wrong_input(searched):
    with pytest.raises(UsageError, match="3 configurations need 9 for 3 seeds each"):
        race(searched, most=8)


def test_one_whose_retrainings_all_diverge_is_no_neighbour(searched):
    ledger = Ledger(searched)
    candidates = [Candidate.of(record) for record in History(ledger.events).records]
    conversation = Confirm(ledger, Race(History(ledger.events), candidates, 2, 30), seed=0)
    while (trial := conversation.ask()) is not None:
        if trial.params["lora.rank"] == 1:
            conversation.tell(Result(trial, Status.FAILED, error="the training loss is nan"))
        else:
            conversation.tell(Result(trial, Status.COMPLETE, {"accuracy": score(trial)}))
    ledger.close()
    assert lengths(searched)[1] == 2
