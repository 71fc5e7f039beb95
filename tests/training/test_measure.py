"""What is measured to choose, and that other work on the machine does not choose."""

import time

from models import bert, write_texts

from autopeft.training.loop import Network
from autopeft.training.measure import choose
from autopeft.training.setup import Setup

WAIT = 0.3  # seconds: many times what a step of the tiny model takes


def test_waiting_for_the_cpu_does_not_count(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    data = {"train": str(write_texts(tmp_path / "train.csv", 120)), "text": "text", "label": "label",
            "validation_share": 0.25, "test_share": 0.25}  # fmt: skip
    setup = Setup(
        model=bert(tmp_path / "model"), task="text_classification", data=data, folder=str(tmp_path / "run"),
        cache=str(tmp_path / "cache"), batch_size=16,
    )  # fmt: skip
    backward = Network.backward

    def interrupted(network, split, rows):
        time.sleep(WAIT)
        return backward(network, split, rows)

    monkeypatch.setattr(Network, "backward", interrupted)
    choice = choose(setup, "fp32", "auto", {"method": "lora"})
    assert {candidate["attention"] for candidate in choice.candidates} == {"eager", "sdpa"}
    assert all(0 < candidate["step_seconds"] < WAIT for candidate in choice.candidates)
