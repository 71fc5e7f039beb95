"""With one slot, Ray Tune writes the ledger that serial writes, event by event, and the same trained tensors."""

from __future__ import annotations

import pytest

from autopeft import app, plugins
from autopeft.config import load
from tests.executors.conversations import Toy, events, front, lines, make_search
from tests.models import bert, write_texts

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


# ── the product: its trainer, samplers and stoppers ─────────────────────────────────────────────────────────────────


def config(tmp_path, task, **options):
    """A search of seconds, of all methods on text or ten on digits."""
    given = {
        "runs": str(tmp_path), "executor": "serial", "trackers": [], "keep": "all",
        "training": {"steps": 8, "precision": "fp32", "attention": "eager"}, **options,
    }  # fmt: skip
    if task == "digits":
        return {"model": "digits", "task": "digits", "data": {}, "space": "digits", **given}
    (tmp_path / "model").mkdir()
    data = {"train": str(write_texts(tmp_path / "train.csv", 160)), "text": "text", "label": "label"}
    return {"model": bert(tmp_path / "model"), "task": task, "data": data, "space": "all_methods", **given}


def composed(tmp_path):
    """Serial adapter, parallel adapter and prefix in one recipe, in bf16."""
    return config(tmp_path, "text_classification", space="autopeft_tacl24", sampler="random", stopper="never",
                  budget={"trials": 4}, training={"steps": 8, "precision": "bf16", "attention": "eager"})  # fmt: skip


CASES = {
    "digits, TPE, dominated": lambda folder: config(
        folder, "digits", budget={"trials": 18}, sampler={"name": "tpe", "n_startup_trials": 4},
        stopper={"name": "dominated", "rungs": [0.3, 0.6]},
    ),
    "text, NSGA-II, halving": lambda folder: config(
        folder, "text_classification", budget={"trials": 27}, sampler={"name": "nsga2", "population_size": 4},
        stopper={"name": "halving", "rungs": [0.3, 0.6]},
    ),
    "composed, bf16": composed,
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_product_gives_the_same_ledger_and_the_same_tensors(tmp_path, ray_up, case):
    given = CASES[case](tmp_path)
    for name, options in ONE_SLOT.items():
        loaded = load({**given, "executor": {"name": name, **options}})
        app.search(loaded, tmp_path / name, quiet=True)
    found, expected = (events(tmp_path / name)[1:] for name in ("ray_tune", "serial"))
    assert found == expected
    told = [event for event in expected if event["event"] == "tell"]
    assert {"COMPLETE"} <= {event["status"] for event in told} <= {"COMPLETE", "STOPPED"}
    assert case.startswith("composed") or "STOPPED" in {event["status"] for event in told}
    kept = [path.relative_to(tmp_path / "serial") for path in (tmp_path / "serial" / "trials").glob("*/*")]
    assert len(kept) == 3 * sum(event["status"] == "COMPLETE" for event in told)
    for path in kept:
        assert (tmp_path / "ray_tune" / path).read_bytes() == (tmp_path / "serial" / path).read_bytes(), path


def test_many_trials_a_worker_have_the_scores_of_serial(tmp_path, ray_up):
    """Two workers, each with a GPU (declared) and three trials at once; the sampler is random: the same trials."""
    given = config(
        tmp_path, "text_classification", space="small", sampler="random", stopper="never", budget={"trials": 8}
    )
    told = {}
    for name, options in {"serial": {}, "ray_tune": {"trials_per_worker": 3}}.items():
        loaded = load({**given, "executor": {"name": name, **options}})
        app.search(loaded, tmp_path / name, quiet=True)
        told[name] = {event["number"]: event for event in events(tmp_path / name) if event["event"] == "tell"}
    assert sorted(told["ray_tune"]) == sorted(told["serial"]) == list(range(8))
    for number, event in told["serial"].items():
        found = told["ray_tune"][number]
        assert found["status"] == event["status"]
        assert found["metrics"]["loss"] == pytest.approx(event["metrics"]["loss"], rel=1e-4)
