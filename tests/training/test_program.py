"""Training in static shapes: what the plain loop finds but for rounding, whoever had the program before."""

from pathlib import Path

import pytest
import torch
from models import text_setup
from safetensors.torch import load_file

from autopeft import plugins
from autopeft.training import low_rank
from autopeft.training.launch import Eager
from autopeft.training.loop import Worker
from autopeft.training.network import Network
from autopeft.training.pack import Pack
from autopeft.training.program import READ, Program
from autopeft.training.programs import Programs, is_same, structure
from autopeft.training.resident import Room
from autopeft.trial import WEATHER, Report, Result, Status, Trial

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return text_setup(tmp_path_factory.mktemp("program"))


def trial(number=0, method="lora", seed=100, head=1e-2, **own):
    keys = {f"{method}.{name}": value for name, value in own.items()}
    return Trial(number, {"method": method, **keys, "head.lr": head}, seed)


def tensors(setup, number):
    return load_file(Path(setup.folder) / "trials" / f"{number:05d}" / "trained.safetensors")


def steady(event):
    return {name: value for name, value in event.metrics.items() if name not in WEATHER}


def same(one, other, tolerance=1e-4):
    assert one.keys() == other.keys()
    for name in one:
        scale = max(float(one[name].abs().max()), 1e-2)  # a key bias has no gradient but rounding
        assert float((one[name] - other[name]).abs().max()) <= tolerance * scale, name


def both(setup, given, **options):
    """(events, tensors) of a trial in the plain loop and in static shapes."""
    out = []
    for layout in ("padded", "flat"):
        own = setup.but(**options, layout=layout)
        out.append((list(Worker(own).evaluate(given)), tensors(own, given.number)))
    return out


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize(
    ("given", "options"),
    [
        (trial(lr=2e-2, rank=4, weight_decay=0.2), {}),
        (trial(method="full", lr=1e-3), {"schedule": "cosine", "clip": 0.1}),
        (trial(method="bias", lr=1e-2), {"optimizer": "sgd", "weight_decay": 0.1}),
        (trial(method="serial_adapter", lr=1e-2, layers="last_1"), {}),
        (trial(method="lora_plus", lr=1e-2), {"clip": None, "warmup": 0.5, "score_rungs": False}),
        (trial(method="head"), {}),
        (trial(lr=2e-2), {"micro_batch_size": 5}),
        (trial(method="full", lr=1e-3), {"gradient_checkpointing": "on", "micro_batch_size": 7}),
    ],
)
def test_it_trains_as_the_plain_loop_does(setup, given, options, device):
    (plain, ours), (static, theirs) = both(setup, given, device=device, **options)
    assert [type(event) for event in static] == [Report, Report, Result]
    assert (plain[-1].ran, static[-1].ran) == ("plain", "static" if device == "cpu" else "graph")
    for one, other in zip(plain, static, strict=True):
        assert steady(other) == pytest.approx(steady(one), rel=1e-3, abs=1e-3)
    same(ours, theirs)


@pytest.mark.gpu
def test_checkpointed_blocks_that_draw_are_called_on_a_gpu(setup):
    """A graph would draw other masks for the gradients than for the loss."""
    own = setup.but(layout="flat", device="cuda", gradient_checkpointing="on")
    for dropout, ran in ((0.0, "graph"), (0.3, "static")):
        *_, result = Worker(own).evaluate(trial(dropout=dropout))
        assert (result.status, result.ran) == (Status.COMPLETE, ran)


def test_what_changes_ranks_between_steps_runs_as_a_plain_loop(setup):
    (plain, ours), (static, theirs) = both(setup, trial(method="adalora"))
    assert static[-1].ran == "plain"
    assert steady(static[-1]) == pytest.approx(steady(plain[-1]), rel=1e-3, abs=1e-3)
    same(ours, theirs, 1e-3)


@pytest.mark.parametrize("method", plugins.names("methods"))
def test_a_program_serves_the_next_trial_of_its_structure(setup, method, monkeypatch):
    """Of every method: other learning rates and another seed, with nothing left of the trial before."""
    own = setup.but(layout="flat", epochs=None, steps=6, rungs=(0.5,))
    made, init = [], Program.__init__
    monkeypatch.setattr(Program, "__init__", lambda *given: made.append(given) or init(*given))
    trials = [trial(number, method, seed=number, head=1e-2 * number) for number in (1, 2)]
    fresh = list(Worker(own).evaluate(trials[1]))
    expected = tensors(own, 2)
    worker, made[:] = Worker(own), []
    list(worker.evaluate(trials[0]))
    found = list(worker.evaluate(trials[1]))
    assert [steady(event) for event in found] == [steady(event) for event in fresh]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors(own, 2).items())
    assert len(made) == (0 if method == "adalora" else 1)


def test_a_program_does_not_serve_a_trial_whose_clone_hides_something_else(setup):
    worker = Worker(setup)
    one, other, third = (worker.network(trial(seed=seed)).attached for seed in (1, 1, 2))
    assert is_same(one, other) and is_same(one, third), "all that differs by seed is copied"
    layer = next(name for name in one.added if name.endswith("lora_A.default"))
    for attached, value in ((one, 0.0), (third, 1.0)):
        attached.model.get_submodule(layer).hidden = {"drawn": torch.full((2,), value)}
    assert not is_same(one, other) and not is_same(one, third)


def test_structures_are_equal_but_for_learning_rates():
    one = {"method": "lora", "lora.lr": 1e-2, "lora.rank": 4, "head.lr": 1.0}
    assert structure(one) == structure({**one, "lora.lr": 1e-3, "head.lr": 0.1})
    assert structure(one) != structure({**one, "lora.rank": 8})
    assert structure(one) != structure({**one, "lora.weight_decay": 0.1}), "a number inside the captured kernel"


def test_programs_kept_are_few_and_a_running_one_is_nobody_elses(setup):
    worker, programs = Worker(setup), Programs(most=2)
    trials = [trial(n, rank=n) for n in (1, 2, 3)]

    def take(given):
        return programs.take(given, worker.network(given), 4)

    first = [take(given) for given in (*trials, trials[2])]
    assert len(set(map(id, first))) == 4, "two trials of a structure side by side have a program each"
    for given, program in zip(trials, first, strict=False):
        programs.keep(given, program)
    assert take(trials[0]) is not first[0], "the one that waited longest is gone"
    assert take(trials[2]) is first[2] and take(trials[2]) is not first[2]
    assert programs.drop() and not programs.drop()
    for given, program in zip(trials[1:], first[1:], strict=False):
        programs.keep(given, program)
    assert programs.drop(1) and take(trials[1]) is not first[1]
    assert programs.drop() and take(trials[2]) is not first[2]


def test_a_loss_that_is_not_finite_is_found_at_its_own_step(setup):
    """Though losses are read now and then only."""
    given = trial(lr=1e25)
    errors = [list(Worker(setup.but(layout=layout)).evaluate(given))[-1].error for layout in ("padded", "flat")]
    assert errors[0] == errors[1] and "training loss is nan at step" in errors[0]


def test_losses_are_read_at_rungs_and_every_few_steps(setup, monkeypatch):
    counts, launch = [], Eager.launch

    def noted(launcher, sizes, *given):
        if launcher.step.__func__ is Program.step:  # the others are passes that score
            counts.append(len(sizes))
        launch(launcher, sizes, *given)

    monkeypatch.setattr(Eager, "launch", noted)
    events = list(Worker(setup.but(layout="flat", epochs=None, steps=70, rungs=(0.1, 0.5))).evaluate(trial()))
    assert counts == [7, READ, 3, READ, 10]
    assert [event.step for event in events[:-1]] == [7, 35]


def test_out_of_memory_begins_again_with_smaller_passes(setup, monkeypatch):
    """Nothing is reported twice."""
    expected = list(Worker(setup).evaluate(trial()))
    static_loss, calls = Network.static_loss, []

    def limited(network, rows, *given):
        calls.append(rows)
        if len(calls) > 12 and torch.is_grad_enabled() and rows.shape[1] > 8:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return static_loss(network, rows, *given)

    monkeypatch.setattr(Network, "static_loss", limited)
    found = list(Worker(setup.but(layout="flat")).evaluate(trial()))
    assert [type(event) for event in found] == [Report, Report, Result]
    assert found[-1].metrics["micro_batch_size"] == 8 and found[-1].ran == "static"
    assert found[-1].metrics["train_loss"] == pytest.approx(expected[-1].metrics["train_loss"], rel=1e-3)


def test_memory_that_runs_out_before_it_trains_again_ends_the_trial(setup, monkeypatch):
    """After a first attempt that could have been narrowed."""
    network, begun = Worker.network, []

    def full(*given):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    def once(worker, given):
        begun.append(given)
        return network(worker, given) if len(begun) == 1 else full()

    monkeypatch.setattr(Worker, "network", once)
    monkeypatch.setattr(Network, "static_loss", full)
    *_, result = Worker(setup.but(layout="flat")).evaluate(trial())
    assert result.status is Status.OUT_OF_MEMORY and len(begun) == 2


def test_a_trial_that_ends_by_should_end_leaves_its_program_ready(setup):
    asked = []
    worker = Worker(setup.but(layout="flat"), lambda: len(asked) > 0)
    events = worker.evaluate(trial())
    next(events)
    asked.append(1)
    assert list(events) == []
    asked.clear()
    assert list(worker.evaluate(trial()))[-1].status is Status.COMPLETE


def test_what_no_gradient_reaches_fails_its_trial(setup, monkeypatch):
    """A fused LoRA that keeps the gradient of its layer's bias to itself."""
    whole = low_rank._Updated.backward

    def without_the_bias(ctx, *gradients):
        of_x, of_weight, _, *rest = whole(ctx, *gradients)
        return of_x, of_weight, None, *rest

    monkeypatch.setattr(low_rank._Updated, "backward", staticmethod(without_the_bias))
    worker, given = Worker(setup.but(layout="flat", epochs=1)), Trial(0, {"method": "lora+bias"}, 5)
    for _ in ("a new program", "one that is kept"):
        result = list(worker.evaluate(given))[-1]
        assert result.status is Status.FAILED and "yet no gradient reached" in result.error


def test_columns_that_stay_on_the_host_are_sent_step_by_step(setup, monkeypatch):
    """By themselves and in a stack; trials side by side share the place where batches come to lie."""
    own = setup.but(layout="flat", epochs=None, steps=12)
    given = [trial(1, rank=2), trial(2, rank=4), trial(3, "bias")]
    expected = [steady(list(Worker(own).evaluate(one))[-1]) for one in given]
    monkeypatch.setattr(Room, "take", lambda self, n_bytes: False)
    sent, send = [], Network.send
    monkeypatch.setattr(Network, "send", lambda net, *args: sent.append(torch.is_grad_enabled()) or send(net, *args))
    pack, found = Pack(Worker(own)), {}
    for one in given:
        pack.join(one)
    while events := pack.advance():
        found.update({one.number: event for one, event in events})
    assert sum(sent) == 2 * 12, "a step of the stack, and one of the other"
    for one, alone in zip(given, expected, strict=True):
        assert steady(found[one.number]) == pytest.approx(alone, rel=1e-3, abs=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["padded", "flat"])
def test_dropout_of_trials_side_by_side_is_their_own_on_a_gpu(setup, layout):
    """Graphs draw from the generator that they were captured with, and a kept one is seeded anew."""
    own = setup.but(device="cuda", layout=layout)
    given = [trial(number, seed=number, dora=True, dropout=0.3) for number in (1, 2, 3)]
    expected = [steady(list(Worker(own).evaluate(one))[-1]) for one in given]
    worker = Worker(own)
    in_turn = [list(worker.evaluate(one))[-1] for one in given]
    pack, found = Pack(Worker(own)), {}
    for one in given:
        pack.join(one)
    while events := pack.advance():
        found.update({one.number: event for one, event in events})
    for one, alone, later in zip(given, expected, in_turn, strict=True):
        assert steady(later) == pytest.approx(alone, rel=1e-3, abs=1e-3)
        assert steady(found[one.number]) == pytest.approx(alone, rel=1e-3, abs=1e-3)
    assert {event.ran for event in in_turn} == {"graph" if layout == "flat" else "plain"}
