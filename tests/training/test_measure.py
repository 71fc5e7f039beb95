"""What is measured to choose, and that other work on the machine does not choose."""

import time

import pytest
from models import bert, write_texts

from autopeft.training.loop import Network
from autopeft.training.measure import STEPS, choose
from autopeft.training.precision import PRECISIONS
from autopeft.training.setup import Setup

WAIT = 0.3  # seconds: many times what a step of the tiny model takes


@pytest.fixture
def setup(tmp_path):
    (tmp_path / "model").mkdir()
    data = {"train": str(write_texts(tmp_path / "train.csv", 120)), "text": "text", "label": "label",
            "validation_share": 0.25, "test_share": 0.25}  # fmt: skip
    return Setup(
        model=bert(tmp_path / "model"), task="text_classification", data=data, folder=str(tmp_path / "run"),
        cache=str(tmp_path / "cache"), batch_size=16,
    )  # fmt: skip


def each_step(monkeypatch, before):
    """Calls `before(setup)` in every training step."""
    backward = Network.backward

    def slowed(network, split, rows):
        before(network.worker.setup)
        return backward(network, split, rows)

    monkeypatch.setattr(Network, "backward", slowed)


def test_waiting_for_the_cpu_does_not_count(setup, monkeypatch):
    each_step(monkeypatch, lambda _: time.sleep(WAIT))
    choice = choose(setup, "fp32", "auto", {"method": "lora"})
    assert {candidate["attention"] for candidate in choice.candidates} == {"eager", "sdpa"}
    assert all(0 < candidate["step_seconds"] < WAIT for candidate in choice.candidates)


def test_a_slow_candidate_is_given_up_after_a_step(setup, monkeypatch):
    def work(at):
        until = time.process_time() + (WAIT if at.precision == "bf16" else 0.0)
        while time.process_time() < until:
            pass

    each_step(monkeypatch, work)
    choice = choose(setup, "auto", "eager", {"method": "lora"})
    steps = {candidate["precision"]: candidate["steps"] for candidate in choice.candidates}
    assert list(steps) == list(PRECISIONS)
    assert (steps["fp32"], steps["bf16"]) == (STEPS, 1)
    assert choice.precision != "bf16"
