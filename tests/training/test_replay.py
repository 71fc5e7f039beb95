"""Captured steps train as called ones do, to the last bit: by graphs that are pretended, so on a CPU."""

from pathlib import Path

import pytest
import torch
from models import mobilenet, picture_setup, text_setup, vit, write_completions, writer
from safetensors.torch import load_file

from autopeft import plugins
from autopeft.training import greedy, program, scorer, stack_program
from autopeft.training.launch import WARM, Eager, Graphs
from autopeft.training.loop import Worker
from autopeft.training.pack import Pack
from autopeft.training.setup import Setup
from autopeft.trial import WEATHER, Result, Trial
from tests.training.recorded import GPU, Graph, pretend

STEPS = {"layout": "flat", "epochs": None, "steps": 40, "rungs": (0.5,)}


@pytest.fixture
def graphs(monkeypatch):
    """Launchers are those of a GPU until it is called."""
    pretend(monkeypatch)

    def launched(kind):
        for module in (program, stack_program, scorer, greedy):
            monkeypatch.setattr(module, "launcher_of", kind)

    launched(lambda step, device, generators=(): Graphs(step, GPU, generators))
    return lambda: launched(lambda step, device, generators=(): Eager(step))


@pytest.fixture
def drawing(monkeypatch):
    """What a step draws is drawn on the device, and leaves the host's random state as it is."""
    state = torch.random.get_rng_state()
    monkeypatch.setattr(torch.random, "get_rng_state", lambda: state)


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return text_setup(tmp_path_factory.mktemp("replay")).but(**STEPS)


def alone(worker, trials):
    return {trial.number: list(worker.evaluate(trial)) for trial in trials}


def packed(worker, trials):
    """The first by itself for a while, the others later."""
    pack, found = Pack(worker), {trial.number: [] for trial in trials}
    for trial in trials:
        pack.join(trial)
        for own, event in pack.advance():
            found[own.number].append(event)
    while not all(own and isinstance(own[-1], Result) for own in found.values()):
        for own, event in pack.advance():
            found[own.number].append(event)
    return found


def of(setup, trials, run=alone):
    """(metrics, tensors, how they ran) of trials."""
    events = run(Worker(setup), trials)
    metrics = {
        number: [{name: value for name, value in event.metrics.items() if name not in WEATHER} for event in own]
        for number, own in events.items()
    }
    folder = Path(setup.folder) / "trials"
    tensors = {number: load_file(folder / f"{number:05d}" / "trained.safetensors") for number in events}
    return metrics, tensors, [own[-1].ran for own in events.values()]


def agrees(setup, trials, graphs, run=alone):
    """Compares trials whose steps are captured with those whose steps are called. Returns how the first ones ran."""
    metrics, tensors, ran = of(setup, trials, run)
    replayed = Graph.replayed
    graphs()
    expected, own, called = of(setup, trials, run)
    assert Graph.replayed == replayed
    assert metrics == expected
    for number, given in own.items():
        assert all(torch.equal(tensor, tensors[number][name]) for name, tensor in given.items())
    assert set(called) <= {"static", "stack", "plain"}
    return ran, replayed


def test_a_replay_runs_no_code_of_the_host(graphs):
    """So it would show a step that counts there."""
    values, counted = torch.zeros(1), []

    def step(size):
        counted.append(1)
        values.add_(len(counted))

    graphs_of = Graphs(step, GPU)
    graphs_of.launch(["a"] * (WARM + 3))
    assert len(counted) == WARM + 1 and Graph.replayed == 3
    assert float(values) == sum(range(WARM + 1)) + 3 * (WARM + 1)


# Those that draw on the host are called; one acts between its steps.
WAYS = {"loha": "static", "lokr": "static", "adalora": "plain"}


@pytest.mark.parametrize("method", plugins.names("methods"))
def test_a_trial_of_graphs_is_that_of_calls(setup, method, graphs):
    """And the next one of its structure, which the same graphs serve."""
    ran, replayed = agrees(setup, [Trial(n, {"method": method, "head.lr": 1e-2 / n}, n) for n in (1, 2)], graphs)
    assert set(ran) == {WAYS.get(method, "graph")}
    assert replayed > 2 * 30 or method in WAYS


@pytest.mark.parametrize(
    ("params", "options"),
    [
        ({"method": "lora", "lora.modules": "all"}, {"precision": "bf16", "attention": "sdpa", "schedule": "cosine"}),
        ({"method": "full", "full.lr": 1e-3}, {"optimizer": "sgd", "weight_decay": 0.1, "clip": 0.1}),
        ({"method": "bias"}, {"precision": "bf16_frozen", "clip": None, "warmup": 0.5}),
        ({"method": "head"}, {}),
        ({"method": "last_layers"}, {"batch_size": 5}),
        ({"method": "lora"}, {"micro_batch_size": 3}),
        ({"method": "adalora"}, {"micro_batch_size": 3}),
        ({"method": "ia3+bias"}, {"micro_batch_size": 1, "clip": 0.1, "optimizer": "sgd"}),
        ({"method": "full", "full.lr": 1e-3}, {"gradient_checkpointing": "on"}),
        ({"method": "lora"}, {"gradient_checkpointing": "on", "micro_batch_size": 8, "precision": "bf16"}),
        ({"method": "serial_adapter"}, {"prefix_cache_bytes": 0}),
    ],
)
def test_whatever_the_training_is(setup, params, options, graphs):
    trials = [Trial(n, {**params, "head.lr": 1e-2 / n}, n) for n in (1, 2)]
    ran, replayed = agrees(setup.but(**options), trials, graphs)
    assert set(ran) == {WAYS.get(params["method"], "graph")}
    assert replayed > 60 * (-(-setup.train.batch_size // options.get("micro_batch_size", 99))) or ran[0] == "plain"


def test_dropout_is_drawn_anew_by_each_replay(setup, graphs, drawing):
    trials = [Trial(n, {"method": "lora", "lora.dropout": 0.3, "head.lr": 1e-2}, n) for n in (1, 2)]
    ran, replayed = agrees(setup, trials, graphs)
    assert ran == ["graph", "graph"] and replayed > 60


@pytest.mark.parametrize("augment", [[], ["flip", "crop"]])
@pytest.mark.parametrize("make", [vit, mobilenet])
def test_pictures(tmp_path, make, augment, graphs, drawing):
    setup = picture_setup(tmp_path, make).but(**STEPS, keep="all", options={"augment": augment})
    ran, replayed = agrees(setup, [Trial(n, {"method": "norm", "head.lr": 1e-2}, n) for n in (1, 2)], graphs)
    assert ran == ["graph", "graph"] and replayed > 60


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize(
    ("params", "options"),
    [
        ({"method": "lora", "lora.modules": "all"}, {}),
        ({"method": "norm+lora"}, {"micro_batch_size": 3, "gradient_checkpointing": "on"}),
    ],
)
def test_language_models(tmp_path, kind, params, options, graphs):
    setup = Setup.of(
        model=writer(tmp_path / "model", kind), task="causal_language_modelling", options={"generate_rows": 4},
        data={"train": str(write_completions(tmp_path / "train.csv", 64))}, folder=str(tmp_path / "run"),
        cache=str(tmp_path / "cache"), batch_size=8, micro_batch_size=8, keep="all", **STEPS,
    ).but(**options)  # fmt: skip
    ran, replayed = agrees(setup, [Trial(n, params, n) for n in (1, 2)], graphs)
    assert ran == ["graph", "graph"] and replayed > 60


@pytest.mark.parametrize("options", [{}, {"micro_batch_size": 3}])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_stack_of_graphs_is_that_of_calls(setup, dropout, options, graphs):
    own = {"method": "lora", "lora.dropout": dropout, "head.lr": 1e-2}
    trials = [Trial(n, {**own, "lora.rank": 2**n, "lora.lr": 1e-2 / n}, n) for n in (1, 2, 3)]
    ran, replayed = agrees(setup.but(**options), trials, graphs, packed)
    assert ran == ["stack"] * 3 and replayed > 40
