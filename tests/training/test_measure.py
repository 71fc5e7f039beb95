"""What is measured to choose, and that other work on the machine does not choose."""

import time

import numpy as np
import pytest
from models import bert, write_texts

from autopeft.errors import EnvironmentFault, UsageError
from autopeft.tasks import Ragged, Split
from autopeft.training import measure
from autopeft.training.batches import order
from autopeft.training.launch import Eager
from autopeft.training.loop import Worker
from autopeft.training.measure import choose, some_rows
from autopeft.training.network import Network
from autopeft.training.pace import middle_batch
from autopeft.training.precision import PRECISIONS
from autopeft.training.setup import Setup
from autopeft.training.stack import Stack
from autopeft.trial import Trial

WAIT = 0.3  # seconds: many times what a step of the tiny model takes


@pytest.fixture
def setup(tmp_path):
    (tmp_path / "model").mkdir()
    data = {"train": str(write_texts(tmp_path / "train.csv", 120)), "text": "text", "label": "label",
            "validation_share": 0.25, "test_share": 0.25}  # fmt: skip
    return Setup.of(
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


def test_what_slows_the_machine_for_a_while_does_not_count(setup, monkeypatch):
    left = iter(range(measure.CHOICE_STEPS + 1))  # the first candidate's first round

    def burn(_):
        end = time.process_time() + (WAIT if next(left, None) is not None else 0.0)
        while time.process_time() < end:
            pass

    each_step(monkeypatch, burn)
    choice = choose(setup, "fp32", "auto", {"method": "lora"})
    assert next(left, None) is None
    assert all(candidate["step_seconds"] < WAIT for candidate in choice.candidates)


def test_a_precision_that_the_user_fixed_is_kept_however_much_it_differs(setup, monkeypatch):
    monkeypatch.setattr(measure, "TOLERANCE", -1.0)
    choice = choose(setup, "bf16", "auto", {"method": "lora"})
    assert choice.precision == "bf16"
    assert choice.attention in ("eager", "sdpa")


@pytest.mark.parametrize(("method", "is_packed"), [("lora", True), ("bias", False)])
def test_for_a_pack_the_step_of_a_pack_is_measured(setup, monkeypatch, method, is_packed):
    """Where its trials can be packed: a pack computes, where a trial alone waits for the launch of kernels."""
    members, step = [], Stack.step
    monkeypatch.setattr(Stack, "step", lambda stack: members.append(len(stack.members)) or step(stack))
    choice = choose(setup, "fp32", "auto", {"method": method}, pack=3)
    assert members == ([3] * len(members) if is_packed else [])
    assert bool(members) == is_packed
    assert all(candidate["step_seconds"] > 0 for candidate in choice.candidates)


@pytest.mark.parametrize("is_fast", [True, False])
def test_bf16_is_a_candidate_where_its_products_are_fast(setup, monkeypatch, is_fast):
    asked = []
    monkeypatch.setattr(measure, "is_bf16_fast", lambda device: asked.append(device) or is_fast)
    choice = choose(setup, "auto", "eager", {"method": "lora"})
    assert asked == ["cpu"]
    if is_fast:
        assert [candidate["precision"] for candidate in choice.candidates] == list(PRECISIONS)
    else:
        assert (choice.precision, choice.candidates) == ("fp32", ())


@pytest.mark.parametrize("where", ["logits", "step"])
def test_a_candidate_that_fails_beside_others_is_left_out(setup, monkeypatch, caplog, where):
    """As a kernel for 16 bits may, on a card that is too old."""
    monkeypatch.setattr(measure, "is_bf16_fast", lambda device: True)
    monkeypatch.setattr(measure, "TOLERANCE", 1.0)

    def failing(name):
        whole = getattr(Network, name)

        def maybe(network, *given):
            if network.worker.setup.machine.precision == "bf16":
                raise RuntimeError("CUDA error: no kernel image is available")
            return whole(network, *given)

        return maybe

    name = {"logits": "logits", "step": "backward"}[where]
    monkeypatch.setattr(Network, name, failing(name))
    choice = choose(setup, "auto", "sdpa", {"method": "lora"})
    assert choice.precision != "bf16"
    assert caplog.text.count("bf16 with attention sdpa is left out") == 1 and "no kernel image" in caplog.text
    seconds = {each["precision"]: each["step_seconds"] for each in choice.candidates}
    assert "bf16" not in seconds if where == "logits" else seconds["bf16"] is None
    assert seconds["fp32"] > 0 and seconds["bf16_frozen"] > 0


def test_whether_bf16_is_fast_is_measured(monkeypatch):
    seconds = iter([3.0] * 8 + [2.0] * 8 + [2.0] * 8 + [3.0] * 8)
    monkeypatch.setattr(measure, "_seconds_of", lambda call: call() and next(seconds))
    assert measure.is_bf16_fast("cpu")
    assert not measure.is_bf16_fast("cpu")


def test_a_part_of_a_split_has_whole_rows():
    values, offsets = np.arange(12), np.array([0, 2, 2, 5, 9, 12])
    split = Split({"ids": Ragged(values, offsets, 7.0), "pixels": np.arange(5)[:, None]}, {"label": np.arange(5) % 2})
    some = some_rows(split, 3, seed=1)
    rows = some.inputs["pixels"][:, 0]
    assert len(some) == 3
    assert some.targets["label"].tolist() == (rows % 2).tolist()
    ids = some.inputs["ids"]
    assert [ids.values[ids.offsets[i] : ids.offsets[i + 1]].tolist() for i in range(3)] == [
        values[offsets[row] : offsets[row + 1]].tolist() for row in rows
    ]
    assert some_rows(split, 5, seed=1) is split


def test_a_cost_is_by_proportion_and_a_cache_is_built_once(tmp_path, monkeypatch):
    """On a fifth of the rows the cost of a trial is that of all of them."""
    (tmp_path / "model").mkdir()
    data = {"train": str(write_texts(tmp_path / "train.csv", 400)), "text": "text", "label": "label",
            "validation_share": 0.5}  # fmt: skip
    setup = Setup.of(
        model=bert(tmp_path / "model"), task="text_classification", data=data, folder=str(tmp_path / "run"),
        cache=str(tmp_path / "cache"), batch_size=16, epochs=1,
    )  # fmt: skip
    monkeypatch.setattr(measure, "SAMPLE", 40)
    seen = []
    scores = Worker.scores

    def noted(worker, network, split):
        seen.append(len(worker.data.splits[split]))
        return scores(worker, network, split)

    monkeypatch.setattr(Worker, "scores", noted)
    monkeypatch.setattr(measure, "step_seconds", lambda *given: [9e9, 100.0, 100.0, 100.0, 100.0])
    head = {"method": "head", "head.lr": 1e-3}
    first, again = measure.costs(setup, [head, head])
    assert seen == [40] * 2 * measure.ROUNDS
    assert first.peak_memory_bytes is None, "a CPU's process knows no method's"
    assert first.seconds == pytest.approx(13 * 100.0, rel=0.3)  # 13 steps an epoch of 200 rows
    assert first.cache_seconds > 5 * again.cache_seconds


def test_a_cost_counts_no_waiting_and_the_fastest_of_its_rounds(setup, monkeypatch):
    left = iter(range(1 + measure.STEPS))  # the first round

    def slow(_):
        time.sleep(WAIT)
        end = time.process_time() + (WAIT if next(left, None) is not None else 0.0)
        while time.process_time() < end:
            pass

    each_step(monkeypatch, slow)
    (cost,) = measure.costs(setup.but(steps=10), [{"method": "bias"}])
    assert next(left, None) is None
    assert 0 < cost.seconds < 10 * WAIT


def test_a_slow_model_is_measured_on_few_rows_and_once(setup, monkeypatch):
    """So that a plan takes minutes where a trial takes hours."""
    seen = []
    scores = Worker.scores

    def noted(worker, network, split):
        seen.append(len(worker.data.splits[split]))
        return scores(worker, network, split)

    monkeypatch.setattr(Worker, "scores", noted)
    monkeypatch.setattr(measure, "FEWEST", 8)
    measure.costs(setup, [{"method": "bias"}])
    assert seen == [22] * measure.ROUNDS, "all rows of validation: the model is quick"
    monkeypatch.setattr(measure, "PASS_SECONDS", 0.0)
    monkeypatch.setattr(measure, "LONG", 0.0)
    seen.clear()
    (cost,) = measure.costs(setup.but(cache=str(setup.cache) + "-own"), [{"method": "bias"}])
    assert seen == [8]
    assert cost.seconds > 0


@pytest.mark.parametrize(("seconds", "most"), [(0.0, measure.FEWEST), (1e9, 32)])
def test_a_choice_of_a_slow_model_is_made_on_few_rows(setup, monkeypatch, seconds, most):
    """A whole batch of texts takes a language model minutes on a CPU."""
    monkeypatch.setattr(measure, "PASS_SECONDS", seconds)
    rows = {"logits": [], "_backward": []}

    def noted(name):
        whole = getattr(Network, name)
        return lambda network, split, some: rows[name].append(len(some)) or whole(network, split, some)

    for name in rows:
        monkeypatch.setattr(Network, name, noted(name))
    choice = choose(setup.but(batch_size=32, micro_batch_size=32), "fp32", "auto", {"method": "lora"})
    assert len(choice.candidates) == 2
    assert max(rows["_backward"]) == most and len(rows["_backward"]) == 2 * measure.ROUNDS * (measure.CHOICE_STEPS + 1)
    assert max(rows["logits"]) == (most if seconds == 0.0 else 32)


def test_steps_that_take_long_are_measured_once(setup, monkeypatch):
    monkeypatch.setattr(measure, "LONG", 0.0)
    worker = Worker(setup)
    network = worker.network(Trial(0, {"method": "bias"}, 1))
    assert len(measure.step_seconds(worker, network, measure.STEPS)) == 2, "after one that warms up"


def test_a_configuration_that_fails_has_no_cost_and_ends_no_plan(setup, monkeypatch, capsys):
    attach = Worker.network

    def broken(worker, trial):
        if trial.params["method"] == "bias":
            raise RuntimeError("sizes 4 and 8")
        return attach(worker, trial)

    monkeypatch.setattr(Worker, "network", broken)
    found = measure.costs(setup, [{"method": "bias"}, {"method": "head"}])
    assert [cost.method for cost in found] == ["head"]
    assert capsys.readouterr().err.startswith("bias: not measured: RuntimeError: sizes 4 and 8")


@pytest.mark.parametrize("where", ["logits", "backward"])
def test_a_model_that_does_not_take_the_data_is_one_message(setup, monkeypatch, where):
    """As with a text that is longer than its positions, or a picture of another size."""

    def broken(*_):
        raise IndexError("index out of range in self")

    monkeypatch.setattr(Network, where, broken)
    with pytest.raises(
        UsageError, match=r"does not take the rows of \w+ \(input_ids up to \d+.*\): IndexError: index out"
    ):
        choose(setup, "fp32", "auto", {"method": "lora"})


def test_memory_that_runs_out_while_measuring_is_the_machines(setup, monkeypatch):
    def broken(*_):
        raise MemoryError

    monkeypatch.setattr(Network, "logits", broken)
    with pytest.raises(EnvironmentFault, match=r"set training\.micro_batch_size"):
        choose(setup, "fp32", "auto", {"method": "lora"})


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_an_attention_that_the_model_lacks_is_said_before_training(setup, monkeypatch, precision):
    """As transformers says it, for a model without that attention."""
    from transformers import BertForSequenceClassification

    monkeypatch.setattr(BertForSequenceClassification, "_supports_sdpa", False)
    with pytest.raises(UsageError, match=r"has no sdpa attention: set training.attention to eager"):
        choose(setup, precision, "sdpa", {"method": "lora"})
    choice = choose(setup, "fp32", "auto", {"method": "lora"})
    assert choice.attention == "eager"


@pytest.mark.parametrize(("method", "pack"), [("bias", 1), ("lora", 1), ("lora", 3), ("adalora", 1)])
def test_static_shapes_are_measured_as_they_are_launched(setup, monkeypatch, method, pack):
    """All steps of the batch of middle length, by the launcher that training has; what cannot be captured, as it runs."""
    sizes, launch = [], Eager.launch
    monkeypatch.setattr(Eager, "launch", lambda self, own, *given: sizes.extend(own) or launch(self, own, *given))
    own = setup.but(layout="flat")
    choice = choose(own, "fp32", "auto", {"method": method}, pack)
    assert len(choice.candidates) == 2 and all(candidate["step_seconds"] > 0 for candidate in choice.candidates)
    assert len(set(sizes)) == (0 if method == "adalora" else 1)
    (cost,) = measure.costs(own.but(cache=str(own.cache) + "-own"), [{"method": method}])
    assert 0 < cost.seconds < 600


def test_the_middle_batch_has_as_many_shorter_as_longer_ones(setup):
    worker = Worker(setup)
    lengths = worker.data.splits["train"].lengths
    totals = sorted(int(lengths[rows].sum()) for rows in order(lengths, 16, setup.seed, 0))
    assert int(lengths[middle_batch(worker)].sum()) == totals[len(totals) // 2]
