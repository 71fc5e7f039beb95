"""One trial: what it reports, how it ends, and that the cached prefix changes nothing."""

import errno
import math
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from models import mobilenet, text_setup
from safetensors.torch import load_file

from autopeft.errors import EnvironmentFault, UsageError
from autopeft.training import loop, low_rank
from autopeft.training.course import rung_steps, total_steps
from autopeft.training.loop import Worker
from autopeft.training.optimizer import learning_rate_factor
from autopeft.training.prefix_cache import PrefixCache
from autopeft.training.setup import Setup
from autopeft.trial import WEATHER, Phase, Report, Result, Status, Trial


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return text_setup(tmp_path_factory.mktemp("loop"))


@pytest.fixture(scope="module")
def worker(setup):
    return Worker(setup)


def trial(method="lora", number=0, seed=5, **params):
    return Trial(number, {"method": method, f"{method}.lr": 5e-3, "head.lr": 1e-2, **params}, seed)


def outcome(events):
    *reports, result = list(events)
    assert all(isinstance(report, Report) for report in reports)
    assert isinstance(result, Result)
    return reports, result


def steady(metrics):
    return {name: value for name, value in metrics.items() if name not in WEATHER}


def test_a_trial_reports_at_its_rungs_and_learns(worker, setup):
    reports, result = outcome(worker.evaluate(trial("full", number=1)))
    assert [report.step for report in reports] == [9, 18]
    assert all({"train_loss", "accuracy"} <= set(report.metrics) for report in reports)
    assert result.status is Status.COMPLETE, result.error
    assert result.metrics["accuracy"] > 0.9
    tensors = load_file(Path(setup.folder) / "trials" / "00001" / "trained.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == result.metrics["trainable_parameters"]


@pytest.mark.parametrize("method", ["head", "last_layers", "lora"])
def test_the_same_trial_twice_gives_the_same_bits(worker, setup, method):
    runs = [outcome(worker.evaluate(trial(method, number=2)))[1]]
    first = (Path(setup.folder) / "trials" / "00002" / "trained.safetensors").read_bytes()
    outcome(worker.evaluate(trial("lora", number=3)))  # something else in between
    runs.append(outcome(Worker(setup).evaluate(trial(method, number=2)))[1])
    assert (Path(setup.folder) / "trials" / "00002" / "trained.safetensors").read_bytes() == first
    assert steady(runs[0].metrics) == steady(runs[1].metrics)


@pytest.mark.parametrize("method", ["head", "last_layers", "bias"])
def test_the_cached_prefix_changes_logits_by_rounding_only(worker, setup, method):
    plain = Worker(setup.but(prefix_cache_bytes=0))
    params = {f"{method}.layers": [2]} if method == "bias" else {}
    cached, uncached = (w.network(trial(method, **params)) for w in (worker, plain))
    assert cached.depth > 0 == uncached.depth
    a, b = (w.answers(n, "validation").kept["logits"] for w, n in ((worker, cached), (plain, uncached)))
    assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


def test_the_base_is_untouched_by_a_hundred_trials_of_all_kinds(worker):
    before = {name: tensor.clone() for name, tensor in worker.base.state_dict().items()}
    for number, method in enumerate(["lora", "full", "bias", "ia3", "serial_adapter"]):
        worker.network(trial(method, number=number))
        outcome(Worker.evaluate(worker, trial(method, number=10 + number)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in worker.base.state_dict().items())


def test_a_loss_that_is_not_finite_fails_with_its_reason(worker):
    _, result = outcome(worker.evaluate(trial("full", **{"full.lr": 1e12})))
    assert result.status is Status.FAILED
    assert "training loss is" in result.error or "not finite" in result.error


def test_a_trial_that_takes_too_long_fails(setup):
    _, result = outcome(Worker(setup.but(trial_seconds=1e-9)).evaluate(trial()))
    assert result.status is Status.FAILED
    assert "time limit" in result.error


def test_a_trial_ends_without_a_result_when_the_search_does(setup):
    assert list(Worker(setup, lambda: True).evaluate(trial())) == []


OWN = (AttributeError("x"), IndexError("x"), AssertionError(), StopIteration("x"), NameError("x"), NotImplementedError("x"),
       KeyError("x"), ValueError("x"), RuntimeError("shape '[2, 3]' is invalid for input of size 4"),
       FileNotFoundError(2, "x"), Exception("x"))  # fmt: skip
OTHERS = (EnvironmentFault("x"), UsageError("x"), KeyboardInterrupt(), OSError(errno.ENOSPC, "x"),
          Exception("I/O error: No space left on device (os error 28)"))  # fmt: skip


@pytest.mark.parametrize("fault", OWN)
def test_every_exception_of_a_trial_is_its_status(worker, monkeypatch, fault):
    """A fault of ours too: the record says where it was, and the search goes on."""

    def broken(*_):
        raise fault

    monkeypatch.setattr(loop, "make_optimizer", broken)
    _, result = outcome(worker.evaluate(trial()))
    assert result.status is Status.FAILED
    assert result.error.startswith(type(fault).__name__ if not isinstance(fault, StopIteration) else "RuntimeError")
    assert re.search(r" \(autopeft/training/loop\.py:\d+\)$", result.error), result.error


@pytest.mark.parametrize("fault", OTHERS)
def test_what_the_user_or_the_machine_does_wrong_flies(worker, monkeypatch, fault):
    def broken(*_):
        raise fault

    monkeypatch.setattr(loop, "make_optimizer", broken)
    with pytest.raises(type(fault)):
        outcome(worker.evaluate(trial()))


def test_a_time_limit_is_for_training(setup, monkeypatch):
    """Not for building what all trials share, nor for the final scoring: here each takes a minute of a fake clock."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    build, answers = PrefixCache._build, Worker.answers

    def slow_build(*args):
        clock[0] += 60
        return build(*args)

    def slow_answers(*args):
        clock[0] += 60
        return answers(*args)

    monkeypatch.setattr(PrefixCache, "_build", slow_build)
    worker = Worker(setup.but(trial_seconds=30.0, score_rungs=False))
    worker.prefix.folder = worker.prefix.folder.with_name("anew")
    monkeypatch.setattr(worker, "answers", lambda *args: slow_answers(worker, *args))
    events = list(worker.phases(trial("last_layers")))
    phases = [event for event in events if isinstance(event, Phase)]
    assert phases == [Phase.PREPARING, Phase.TRAINING, Phase.SCORING]
    assert events[-1].status is Status.COMPLETE, events[-1].error
    assert clock[0] >= 180, "train and validation were built, and validation was scored"
    assert events[-1].metrics["train_seconds"] == 0.0
    assert events[-1].metrics["evaluate_seconds"] == 60.0


def test_a_split_over_the_bound_is_scored_without_a_cache(setup, worker):
    """As test in a confirmation, where training fits and test does not."""
    network = worker.network(trial("last_layers"))
    assert network.depth > 0
    exact = worker.answers(network, "validation").kept["logits"]
    limited = Worker(setup)
    limited.data.splits["test"] = limited.data.splits["validation"]
    network = limited.network(trial("last_layers"))
    limited.prefix.limit_bytes = 0  # from now on
    found = limited.answers(network, "test").kept["logits"]
    np.testing.assert_allclose(found, exact, atol=1e-5 * np.abs(exact).max())


def test_a_refused_configuration_fails_rather_than_flies(worker):
    _, result = outcome(worker.evaluate(trial("lora", **{"lora.layers": [77]})))
    assert result.status is Status.FAILED
    assert "layers 0 to 2" in result.error


def test_a_penalty_counts_once_whatever_the_micro_batches(setup):
    """Of AdaLoRA: the gradients of a batch whole, and of the same batch in parts; the loss is without it."""
    found, rows = [], np.arange(16)
    for size in (16, 5):
        worker = Worker(setup.but(micro_batch_size=size, prefix_cache_bytes=0))
        network = worker.network(trial("adalora"))
        loss = network.backward("train", rows)
        found.append({n: p.grad for n, p in network.model.named_parameters() if p.grad is not None})
        assert loss == pytest.approx(math.log(2), abs=0.2)
        penalty = network.attached.during[0].penalty()
        assert penalty > 0.1
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], atol=1e-6), name


def test_a_tensor_that_is_counted_and_never_trained_fails_the_trial(setup, monkeypatch):
    """A fused LoRA that keeps the gradient of its layer's bias to itself."""
    whole = low_rank._Updated.backward

    def without_the_bias(ctx, *gradients):
        of_x, of_weight, _, *rest = whole(ctx, *gradients)
        return of_x, of_weight, None, *rest

    lora_and_bias = Trial(0, {"method": "lora+bias"}, 5)
    assert outcome(Worker(setup).evaluate(lora_and_bias))[1].status is Status.COMPLETE
    monkeypatch.setattr(low_rank._Updated, "backward", staticmethod(without_the_bias))
    _, result = outcome(Worker(setup).evaluate(lora_and_bias))
    assert result.status is Status.FAILED
    assert "counted as trained, yet no gradient reached" in result.error
    assert "query.base_layer.bias" in result.error


class Limited:
    """Memory for so many rows of gradient at once."""

    def __init__(self, network, rows):
        self.network, self.rows, self.model = network, rows, network.model

    def __call__(self, *args, **inputs):
        first = next(iter(inputs.values()))
        if torch.is_grad_enabled() and len(first) > self.rows:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return self.model(*args, **inputs)

    def __getattr__(self, name):
        return getattr(self.model, name)


def limited(monkeypatch, rows):
    make = loop.Worker.network

    def network(self, trial):
        made = make(self, trial)
        made.model = Limited(made, rows)
        return made

    monkeypatch.setattr(loop.Worker, "network", network)


def test_out_of_memory_halves_the_micro_batch_at_the_same_effective_batch(setup, monkeypatch):
    plain = outcome(Worker(setup).evaluate(trial("bias")))[1]
    limited(monkeypatch, 5)
    _, result = outcome(Worker(setup).evaluate(trial("bias")))
    assert result.status is Status.COMPLETE, result.error
    assert result.metrics["micro_batch_size"] == 4
    assert result.metrics["train_loss"] == pytest.approx(plain.metrics["train_loss"], rel=1e-3)


def test_out_of_memory_with_one_row_is_a_status_of_its_own(setup, monkeypatch):
    limited(monkeypatch, 0)
    _, result = outcome(Worker(setup).evaluate(trial("bias")))
    assert result.status is Status.OUT_OF_MEMORY
    assert "out of memory" in result.error


def test_a_convolutional_prefix_is_cached_too(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for index in range(40):
        folder = tmp_path / "pictures" / ("dark" if index % 2 else "light")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100, (32, 32, 3)) + (0 if index % 2 else 150)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    (tmp_path / "model").mkdir()
    setup = Setup.of(
        model=mobilenet(tmp_path / "model"), task="image_classification",
        data={"train": str(tmp_path / "pictures"), "validation_share": 0.25, "test_share": 0.25},
        folder=str(tmp_path / "run"), cache=str(tmp_path / "cache"), epochs=1, batch_size=8,
    )  # fmt: skip
    for method in ("head", "last_layers"):
        cached, plain = Worker(setup), Worker(setup.but(prefix_cache_bytes=0))
        a, b = (w.answers(w.network(trial(method)), "validation").kept["logits"] for w in (cached, plain))
        assert cached.network(trial(method)).depth > 0
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()
    _, result = outcome(cached.evaluate(trial("lora", **{"lora.modules": ["convolution"], "lora.layers": [15]})))
    assert result.status is Status.COMPLETE, result.error


def test_steps_rungs_and_schedule():
    setup = Setup.of(model="", task="", data={}, folder="", cache="", epochs=2, batch_size=10, warmup=0.1)
    assert total_steps(setup, 95) == 20
    assert total_steps(setup.but(steps=7, epochs=None), 95) == 7
    assert rung_steps((0.01, 0.3, 1.0), 20) == {1, 6}
    factors = [learning_rate_factor(setup, 20, step) for step in range(20)]
    assert factors[2] == max(factors) == 1.0
    assert factors[0] == pytest.approx(1 / 3)
    assert 0 < factors[-1] < 0.1
    assert learning_rate_factor(setup.but(schedule="constant"), 20, 19) == 1.0
