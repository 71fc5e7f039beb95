"""Trials as one pass: each is what it would be alone but for rounding, whoever shares the pass."""

import contextlib
import itertools
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from architectures import MAKE
from models import text_setup
from safetensors.torch import load_file

from autopeft import plugins, testing
from autopeft.errors import Refused
from autopeft.tasks import Ragged, Split
from autopeft.training import program, stack_program
from autopeft.training.launch import Eager
from autopeft.training.loop import Worker
from autopeft.training.model import CHAINED, view
from autopeft.training.network import Network
from autopeft.training.pack import Pack
from autopeft.training.recipe import trained_state
from autopeft.training.runners import Alone
from autopeft.training.stack import Member, Stack
from autopeft.trial import WEATHER, Report, Result, Status, Trial

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return text_setup(tmp_path_factory.mktemp("pack"))


def lora(number, rank=8, modules=("query", "value"), layers="all", lr=2e-2, head=1e-2, **more):
    own = {"rank": rank, "modules": list(modules), "layers": layers, "lr": lr, **more}
    params = {"method": "lora", **{f"lora.{key}": value for key, value in own.items()}, "head.lr": head}
    return Trial(number, params, 100 + number)


@pytest.fixture(autouse=True)
def stays_together(caplog, request):
    """A pack that comes apart gives the same results, late: only tests that ask for it may see one."""
    yield
    apart = [record for record in caplog.get_records("call") if "came apart" in record.message]
    assert bool(apart) == ("comes_apart" in request.keywords), [record.message for record in apart]


SMALL = {"rank": 8, "modules": ["query"], "layers": [2], "lr": 5e-3, "alpha": 8}
MIXED = (
    lora(0, rank=2),
    lora(1, **SMALL),
    lora(2, rank=4, modules=["up", "down", "output"], layers=[1, 2], alpha=3, rslora=True, weight_decay=0.1),
    lora(3, rank=1, modules=["key"], head=3e-3),
)


def run(pack, trials):
    """All events by number."""
    found = {trial.number: [] for trial in trials}
    for trial in trials:
        pack.join(trial)
    while events := pack.advance():
        for trial, event in events:
            found.setdefault(trial.number, []).append(event)
    return found


def tensors(setup, number):
    return load_file(Path(setup.folder) / "trials" / f"{number:05d}" / "trained.safetensors")


def steady(event):
    return {name: value for name, value in event.metrics.items() if name not in WEATHER}


def same(one, other, tolerance=1e-4):
    assert one.keys() == other.keys()
    for name in one:
        scale = max(float(one[name].abs().max()), 1e-3)
        assert float((one[name] - other[name]).abs().max()) <= tolerance * scale, name


def alone_and_packed(setup, trials, **options):
    """(events, tensors) by number: of each trial alone, and of all of them as one pack."""
    out = []
    for name in ("alone", "packed"):
        own = setup.but(folder=str(Path(setup.folder).with_name(f"{Path(setup.folder).name}-{name}")), **options)
        worker = Worker(own)
        found = {t.number: list(worker.evaluate(t)) for t in trials} if name == "alone" else run(Pack(worker), trials)
        out.append((found, {trial.number: tensors(own, trial.number) for trial in trials}))
    return out


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prefix_cache_bytes": 0, "micro_batch_size": 5},
        {"optimizer": "sgd"},
        {"layout": "flat"},
        {"layout": "flat", "optimizer": "sgd", "clip": 0.1},
    ],
)
def test_a_packed_trial_is_what_it_is_alone(setup, device, options):
    """Of several ranks, scales, modules, layers and learning rates; reports, scores, counts and tensors."""
    (alone, ours), (packed, theirs) = alone_and_packed(setup, MIXED, device=device, **options)
    for trial in MIXED:
        assert [type(event) for event in packed[trial.number]] == [Report, Report, Result]
        for one, other in zip(alone[trial.number], packed[trial.number], strict=True):
            assert steady(other) == pytest.approx(steady(one), rel=1e-3, abs=1e-3)
        same(ours[trial.number], theirs[trial.number])
    if options.get("optimizer") != "sgd":
        assert packed[0][-1].metrics["accuracy"] > 0.9, "and it learns"
    assert packed[0][-1].detail == alone[0][-1].detail


@pytest.mark.gpu
def test_a_packed_trial_in_bf16_scores_as_it_does_alone(setup):
    (alone, _), (packed, _) = alone_and_packed(setup, MIXED, device="cuda", precision="bf16", attention="sdpa")
    for trial in MIXED:
        losses = [found[trial.number][-1].metrics["train_loss"] for found in (alone, packed)]
        assert losses[1] == pytest.approx(losses[0], abs=0.05)


def test_what_a_packed_trial_counts_it_trains(setup):
    """Of every method and every pair of them: which can be packed, and that each of their tensors moves; no other is."""
    worker, members = Worker(setup), []
    for params in (params for name in plugins.names("methods") for params in testing.method_pairs(name)):
        with contextlib.suppress(Refused):
            members.append(Member.of(worker, Trial(len(members), params, 5)))
    held = [member for member in members if member is not None]
    assert {member.trial.params["method"] for member in held} >= {"head", "lora", "eva"}
    assert not {part for m in held for part in m.trial.params["method"].split("+")} - {"head", "lora", "eva"}
    before = {member.trial.number: clones(member) for member in held}
    for acts in (False, True):
        some = [member for member in held if bool(member.updates) is acts]
        stack = Stack(worker, some, len(some))
        for _ in range(3):
            stack.step()
        stack.unload()
    for member in held:
        changed = {n for n, t in clones(member).items() if not torch.equal(t, before[member.trial.number][n])}
        assert changed == set(member.attached.trained)


def clones(member):
    return {name: tensor.clone() for name, tensor in member.attached.model.state_dict().items()}


def test_heads_alone_share_passes_over_the_cached_activations(setup, monkeypatch):
    """Beside LoRA, which they neither wait for nor hold up; no pass of theirs goes through a block."""
    heads = [Trial(20 + n, {"method": "head", "head.lr": lr}, 7 + n) for n, lr in enumerate((1e-2, 3e-2, 1e-1))]
    (alone, ours), (packed, theirs) = alone_and_packed(setup, heads)
    for trial in heads:
        assert steady(packed[trial.number][-1]) == pytest.approx(steady(alone[trial.number][-1]), rel=1e-3, abs=1e-3)
        same(ours[trial.number], theirs[trial.number])
    depths, logits = [], Network.logits
    monkeypatch.setattr(
        Network, "logits", lambda net, split, rows: depths.append((net.depth, len(rows))) or logits(net, split, rows)
    )
    found = run(Pack(Worker(setup)), [MIXED[0], *heads])
    assert {n: events[-1].status for n, events in found.items()} == dict.fromkeys((0, 20, 21, 22), Status.COMPLETE)
    assert (4, 48) in depths and (0, 16) in depths, "three heads a pass, above all three blocks; one LoRA by itself"
    same(ours[21], tensors(setup, 21))


def test_who_shares_the_pass_changes_rounding_only(setup):
    worker = Worker(setup)
    run(Pack(worker), MIXED[:2])
    pair = tensors(setup, 0)
    run(Pack(worker), MIXED)
    same(pair, tensors(setup, 0))


def test_trials_join_and_leave_while_others_go_on(setup):
    """The newcomer begins at its first step; who leaves takes nothing along; the rest keep what they have learned."""
    worker = Worker(setup)
    alone = list(worker.evaluate(MIXED[0]))
    expected = tensors(setup, 0)
    pack = Pack(worker)
    for trial in MIXED[:2]:
        pack.join(trial)
    first = pack.advance()
    assert {trial.number for trial, _ in first} == {0, 1}
    pack.leave(MIXED[1])
    pack.join(MIXED[2])
    found = [event for _ in range(20) for event in pack.advance()]
    assert [event.step for trial, event in found if trial.number == 2 and isinstance(event, Report)] == [9, 18]
    assert {trial.number for trial, event in found if isinstance(event, Result)} == {0, 2}
    last = next(event for trial, event in found if trial.number == 0 and isinstance(event, Result))
    assert steady(last) == pytest.approx(steady(alone[-1]), rel=1e-3, abs=1e-3)
    same(expected, tensors(setup, 0))


def test_what_cannot_be_packed_runs_alone(setup):
    """To the bit as it does alone; and a recipe that does not fit fails with its reason."""
    worker = Worker(setup)
    bias = Trial(10, {"method": "bias", "bias.lr": 1e-2, "head.lr": 1e-2}, 7)
    dora = lora(11, dora=True)
    wrong = lora(12, layers=[77])
    expected = {trial.number: list(worker.evaluate(trial)) for trial in (bias, dora)}
    found = run(Pack(worker), [MIXED[0], bias, dora, wrong])
    for number, events in expected.items():
        assert [steady(event) for event in found[number]] == [steady(event) for event in events]
    assert found[12][-1].status is Status.FAILED
    assert "layers 0 to 2" in found[12][-1].error
    assert found[0][-1].status is Status.COMPLETE


def test_trials_that_run_alone_side_by_side_are_to_the_bit_what_they_are_alone(setup):
    """Each draws its dropout from its own random state, whoever has a turn in between."""
    worker = Worker(setup)
    trials = [lora(number, dora=True, dropout=0.3) for number in (10, 11)]
    expected = [list(worker.evaluate(trial)) for trial in trials]
    ours = [tensors(setup, trial.number) for trial in trials]
    found = run(Pack(worker), [MIXED[0], *trials])
    for trial, events, own in zip(trials, expected, ours, strict=True):
        assert [steady(event) for event in found[trial.number]] == [steady(event) for event in events]
        assert all(torch.equal(tensor, own[name]) for name, tensor in tensors(setup, trial.number).items())


def test_nobody_waits_for_the_end_of_another(setup, monkeypatch):
    """A step of the stack takes a second, one alone three, and each gets as much time as the others."""
    clock, seconds, shares = [0.0], {Stack: 1.0, Alone: 3.0}, []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def timed(kind, name):
        whole = getattr(kind, name)

        def slow(self):
            clock[0] += seconds[kind]
            running = pack._running()
            if len(running) == 4:
                shares.append([runner.seconds for runner in running])
            return whole(self)

        monkeypatch.setattr(kind, name, slow)

    timed(Stack, "step")
    timed(Alone, "turn")
    biases = [Trial(10 + n, {"method": "bias", "bias.lr": 1e-2, "head.lr": 1e-2}, 7) for n in (0, 1)]
    head = Trial(20, {"method": "head", "head.lr": 1e-2}, 7)
    pack, order = Pack(Worker(setup)), []
    for trial in (*biases, MIXED[0], head):
        pack.join(trial)
    while events := pack.advance():
        order += [trial.number for trial, event in events if isinstance(event, Result)]
    assert len(shares) > 50 and all(max(some) - min(some) <= 3.0 for some in shares)
    assert sorted(order[:2]) == [0, 20] and sorted(order[2:]) == [10, 11], "by what their steps take"


def test_a_newcomer_does_not_make_up_for_what_it_missed(setup):
    pack = Pack(Worker(setup))
    pack.join(MIXED[0])
    pack.advance()
    pack.join(Trial(10, {"method": "bias", "bias.lr": 1e-2, "head.lr": 1e-2}, 7))
    stack, newcomer = pack._running()
    assert 0 < newcomer.seconds == stack.seconds


def test_who_joins_leaves_the_global_random_state_as_it_was(setup):
    """From which a trial that runs alone meanwhile draws its dropout."""
    pack = Pack(Worker(setup))
    state = torch.random.get_rng_state()
    pack.join(lora(12, dora=True, dropout=0.3))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_loss_that_is_not_finite_costs_its_own_trial_only(setup):
    worker = Worker(setup)
    alone = list(worker.evaluate(MIXED[0]))
    expected = tensors(setup, 0)
    found = run(Pack(worker), [MIXED[0], lora(9, lr=1e30)])
    assert found[9][-1].status is Status.FAILED
    assert "training loss is" in found[9][-1].error
    assert steady(found[0][-1]) == pytest.approx(steady(alone[-1]), rel=1e-3, abs=1e-3)
    same(expected, tensors(setup, 0))


def test_a_trial_over_its_time_limit_fails_in_a_pack_too(setup):
    found = run(Pack(Worker(setup.but(trial_seconds=1e-9))), MIXED[:2])
    assert [found[n][-1].status for n in (0, 1)] == [Status.FAILED] * 2
    assert "time limit" in found[0][-1].error


def test_time_in_which_another_trial_has_the_worker_counts_for_nothing(setup, monkeypatch):
    def slow(worker, trial, split, course):
        time.sleep(2.2)
        yield Result(trial, Status.COMPLETE, {"accuracy": 0.5})

    monkeypatch.setattr(Worker, "turns", slow)
    bias = Trial(10, {"method": "bias", "bias.lr": 1e-2, "head.lr": 1e-2}, 7)
    head = Trial(11, {"method": "head", "head.lr": 1e-2}, 7)
    found = run(Pack(Worker(setup.but(epochs=1, trial_seconds=2.0))), [MIXED[0], head, bias])
    for number in (0, 11):
        assert found[number][-1].status is Status.COMPLETE, found[number][-1].error
        assert found[number][-1].metrics["train_seconds"] < 2.0


def test_time_in_which_another_trial_attaches_counts_for_nothing(setup, monkeypatch):
    """Packed, and alone between its reports; each of three attaches for a minute of a fake clock."""
    clock, of = [0.0], Member.of
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def slow(worker, trial):
        clock[0] += 60
        return of(worker, trial)

    monkeypatch.setattr(Member, "of", slow)
    pack = Pack(Worker(setup.but(trial_seconds=90.0)))
    bias = Trial(10, {"method": "bias", "bias.lr": 1e-2, "head.lr": 1e-2}, 7)
    pack.join(bias)
    (trial, event) = pack.advance()[0]
    assert (trial.number, type(event)) == (10, Report)
    pack.join(MIXED[0])
    pack.join(Trial(11, {"method": "head", "head.lr": 1e-2}, 7))
    found = run(pack, [])
    for number in (0, 10, 11):
        assert found[number][-1].status is Status.COMPLETE, found[number][-1].error
    assert found[10][-1].metrics["train_seconds"] == 0.0


def test_a_pack_ends_without_results_when_the_search_does(setup):
    pack = Pack(Worker(setup, lambda: True))
    pack.join(MIXED[0])
    assert pack.advance() == []


def limit_memory(monkeypatch, rows):
    """Memory for so many rows in one pass with gradients."""
    passes, whole = [], Network.logits

    def logits(network, split, some):
        if torch.is_grad_enabled():
            if len(some) > rows:
                raise RuntimeError("CUDA out of memory. Tried to allocate 1.00 GiB")
            passes.append(len(some))
        return whole(network, split, some)

    monkeypatch.setattr(Network, "logits", logits)
    return passes


class Late(Eager):
    """Looks as if the device were still busy for a while after each launch."""

    asked = 0

    def launch(self, sizes, before=None):
        self.asked = 0
        super().launch(sizes, before)

    def is_done(self):
        self.asked += 1
        return self.asked > 2


def test_who_joins_and_leaves_while_steps_are_on_the_device_changes_nothing(setup, monkeypatch):
    """Also of trials by themselves, whose steps are launched side by side."""
    monkeypatch.setattr(stack_program, "launcher_of", lambda step, *given: Late(step))
    monkeypatch.setattr(program, "launcher_of", lambda step, *given: Late(step))
    own = setup.but(layout="flat")
    alone = {trial.number: list(Worker(setup).evaluate(trial)) for trial in (*MIXED, *biases(10, 11))}
    expected = {number: tensors(setup, number) for number in alone}
    pack = Pack(Worker(own))
    left = [MIXED[1], *biases(10), MIXED[2], MIXED[3], *biases(11)]
    pack.join(MIXED[0])
    found = {trial.number: [] for trial in (MIXED[0], *left)}
    turns, is_gone = [], []

    def is_due():
        turns.append(1)
        return len(turns) % 3 == 0 and bool(left)

    while (events := pack.advance(is_due)) or left:
        for trial, event in events:
            found[trial.number].append(event)
            if trial.number == 3 and not is_gone:
                pack.leave(trial)
                is_gone.append(trial)
        if left:
            pack.join(left.pop(0))
    assert len(found.pop(3)) == 1, "who has left is not heard again"
    for number, events in found.items():
        assert [type(event) for event in events] == [Report, Report, Result]
        for one, other in zip(alone[number], events, strict=True):
            assert steady(other) == pytest.approx(steady(one), rel=2e-3, abs=2e-3)
        same(expected[number], tensors(own, number), 1e-3)


def test_a_program_of_a_stack_serves_whoever_fits_in_a_vacant_place(setup, monkeypatch):
    """One that ends or is stopped leaves nothing behind; one that is too large, or has dropout, has another built."""
    made, init = [], stack_program.StackProgram.__init__
    monkeypatch.setattr(
        stack_program.StackProgram, "__init__", lambda self, stack: made.append(len(stack.members)) or init(self, stack)
    )
    own = setup.but(layout="flat")
    small = lora(4, rank=1, modules=["query"], layers=[1], lr=1e-2)
    large, dropping = lora(5, rank=16), lora(6, rank=1, modules=["query"], dropout=0.1)
    alone = {trial.number: list(Worker(setup).evaluate(trial)) for trial in (MIXED[0], MIXED[2], small, large)}
    expected = {number: tensors(setup, number) for number in alone}
    pack, found = Pack(Worker(own)), {}

    def until(number, kind):
        while True:
            events = pack.advance()
            for trial, event in events:
                found.setdefault(trial.number, []).append(event)
            if any(trial.number == number and isinstance(event, kind) for trial, event in events):
                return

    for trial in (MIXED[0], MIXED[1], MIXED[2]):
        pack.join(trial)
    until(1, Report)
    pack.leave(MIXED[1])
    until(0, Report)
    pack.join(small)
    until(4, Report)
    assert made == [3], "the small one took the place of the one that left"
    pack.join(large)
    until(5, Report)
    assert made == [3, 4], "nobody's place is as wide as that"
    until(5, Result)
    pack.join(dropping)
    until(6, Report)
    assert made == [3, 4, 1, 1], "most places were vacant; then the last one had ended; masks are part of a pass"
    for number, events in alone.items():
        for one, other in zip(events, found[number], strict=True):
            assert steady(other) == pytest.approx(steady(one), rel=2e-3, abs=2e-3)
        same(expected[number], tensors(own, number), 1e-3)


def test_out_of_memory_in_static_shapes_takes_the_rest_in_several_passes(setup, monkeypatch):
    """From the step on that did not fit."""
    (_, ours), _ = alone_and_packed(setup, MIXED)
    whole, passes = Network.static_loss, []

    def limited(network, rows, *given):
        if len(passes) > 5 and len(rows) > 2 and torch.is_grad_enabled():
            raise RuntimeError("CUDA out of memory. Tried to allocate 1.00 GiB")
        passes.append(len(rows))
        return whole(network, rows, *given)

    monkeypatch.setattr(Network, "static_loss", limited)
    found = run(Pack(Worker(setup.but(layout="flat"))), MIXED)
    assert passes[:8] == [4] * 6 + [2, 2]
    for trial in MIXED:
        assert [event.step for event in found[trial.number][:-1]] == [9, 18]
        same(ours[trial.number], tensors(setup, trial.number))


def test_out_of_memory_splits_the_pack_and_loses_no_trial(setup, monkeypatch):
    (_, ours), _ = alone_and_packed(setup, MIXED)
    passes = limit_memory(monkeypatch, rows=2 * setup.train.batch_size)
    found = run(Pack(Worker(setup)), MIXED)
    assert max(passes) == 2 * setup.train.batch_size
    for trial in MIXED:
        assert found[trial.number][-1].status is Status.COMPLETE, found[trial.number][-1].error
        same(ours[trial.number], tensors(setup, trial.number))


@pytest.mark.comes_apart
def test_out_of_memory_with_one_member_leaves_each_trial_alone_where_it_divides_its_batch(setup, monkeypatch):
    limit_memory(monkeypatch, rows=setup.train.batch_size - 1)
    found = run(Pack(Worker(setup)), MIXED[:2])
    for number in (0, 1):
        assert found[number][-1].metrics["micro_batch_size"] == setup.train.batch_size // 2
        assert [event.step for event in found[number][:-1]] == [9, 18]


@pytest.mark.comes_apart
def test_a_fault_of_one_costs_no_other_a_result_and_nothing_is_reported_twice(setup, monkeypatch):
    """Nobody knows whose fault it is: each begins again, alone, and what was reported is not reported again."""
    step, calls = Stack.step, []

    def fails_later(stack):
        calls.append(stack)
        if len(calls) == 12:
            raise RuntimeError("as asked")
        return step(stack)

    monkeypatch.setattr(Stack, "step", fails_later)
    found = run(Pack(Worker(setup)), MIXED[:2])
    for number in (0, 1):
        assert [type(event) for event in found[number]] == [Report, Report, Result]
        assert [event.step for event in found[number][:-1]] == [9, 18]
        assert found[number][-1].status is Status.COMPLETE


def test_dropout_is_each_members_own(setup):
    worker = Worker(setup)
    run(Pack(worker), MIXED[:2])
    without = [tensors(setup, number) for number in (0, 1)]
    run(Pack(worker), [MIXED[0], lora(1, **SMALL, dropout=0.5)])
    same(without[0], tensors(setup, 0))
    assert any((without[1][name] - tensor).abs().max() > 1e-3 for name, tensor in tensors(setup, 1).items())


@pytest.mark.parametrize("name", sorted(name for name in CHAINED if "mobilenet" not in name))
def test_every_architecture_whose_blocks_are_a_chain_can_be_packed(setup, name):
    """Three steps of several trials, on the model's own default modules and on all that it has."""
    worker = other_model(Worker(setup.but(epochs=None, steps=3, prefix_cache_bytes=0)), MAKE[name]())
    trials = [Trial(n, {"method": "lora", "lora.rank": 2 + n, "lora.lr": 1e-2, "head.lr": 1e-2, **more}, n)
              for n, more in enumerate(({}, {"lora.modules": "all", "lora.layers": [1]}, {}))]  # fmt: skip
    members = [Member.of(worker, trial) for trial in trials]
    stack = Stack(worker, members, 2)
    packed = [stack.step() for _ in range(3)]
    stack.unload()
    for trial, member, *losses in zip(trials, members, *packed, strict=True):
        network = worker.network(trial)
        assert losses == pytest.approx([loss for _, loss in worker.train(network, trial.seed, 3)], rel=1e-4)
        same(trained_state(network.attached), trained_state(member.attached))


def test_convolutions_run_alone(setup):
    worker = other_model(Worker(setup), MAKE["mobilenet_v2"]())
    assert Member.of(worker, lora(0, modules=["convolution"])) is None


def other_model(worker, model):
    """The worker with another base, and rows that it reads."""
    rng = np.random.default_rng(0)
    if "ImageClassification" in type(model).__name__:
        side = model.config.image_size
        columns = {"pixel_values": rng.normal(size=(40, 3, side, side)).astype(np.float32)}
    else:
        lengths = rng.integers(3, 7, 40)
        columns = {"input_ids": Ragged(rng.integers(2, 20, lengths.sum()), np.concatenate([[0], lengths.cumsum()]), 0)}
    worker.data = replace(worker.data, splits={"train": Split(columns, {"label": rng.integers(0, 3, 40)})})
    worker.base, worker.view = model, view(model)
    return worker


def test_lora_twice_in_one_recipe_is_no_member_and_scores_as_it_does_alone(setup):
    """Its parts have a learning rate each, and may lie around one another."""
    twice = {"method": "lora@a+lora@b", "lora@a.lr": 1e-2, "lora@b.lr": 1e-3, "lora@b.rank": 2}
    assert Member.of(Worker(setup), Trial(0, twice, 5)) is None
    by_layer = {"method": "lora", "lora.rank.1": 2, "lora.rank.query.0": 0}
    assert Member.of(Worker(setup), Trial(1, by_layer, 5)) is not None
    (alone, ours), (packed, theirs) = alone_and_packed(setup, [Trial(0, twice, 5), Trial(1, by_layer, 5), MIXED[2]])
    for number in (0, 1):
        assert steady(packed[number][-1]) == pytest.approx(steady(alone[number][-1]), rel=1e-3, abs=1e-3)
        same(ours[number], theirs[number])


class Card:
    """A GPU's memory by tables: what each trial holds, and what its turns take beside."""

    def __init__(self, pack_of, size, held, extra):
        self.pack_of, self.size, self.held, self.extra, self.most = pack_of, size, held, extra, 0

    def allocated(self):
        steps = [(trial.number, runner) for runner in self.pack_of()._running() for trial in runner.trials]
        taken = sum(self.held[number] for number, runner in steps if not runner.n_new)
        self.most = max(self.most, taken)
        return taken

    def peak(self):
        return self.allocated() + self.extra

    def reset(self):
        pass

    def holds(self, more):
        return self.size - self.allocated() > more

    def release(self):
        pass


def biases(*numbers):
    return [Trial(number, {"method": "bias", "bias.lr": 1e-2, "head.lr": 1e-2}, 7) for number in numbers]


def measured_pack(setup, **table):
    pack = Pack(Worker(setup), memory=Card(lambda: pack, **table))
    return pack


def join_while_there_is_room(pack, trials):
    """What the executor does; returns the most trials that ran at once."""
    left, most = list(trials), 0
    while left or pack._running():
        while left and (not pack._running() or pack.has_room()):
            pack.join(left.pop(0))
            most = max(most, pack._n_running)
        assert pack.advance(pack.has_room if left else lambda: False) or left
    return most


def test_as_many_join_as_memory_holds_by_what_the_first_was_seen_to_take(setup):
    """Each holds 100, and 20 more during its turn: under 550, another needs 1.25 times 120 free."""
    own = setup.but(epochs=None, steps=12, rungs=(0.5,), score_rungs=False)
    pack = measured_pack(own, size=550, held=dict.fromkeys(range(10, 17), 100), extra=20)
    pack.join(biases(10)[0])
    assert not pack.has_room(), "the first is measured alone"
    assert pack.advance(pack.has_room) == [] and pack.has_room()
    pack.join(biases(11)[0])
    assert not pack.has_room(), "as many new ones as were measured"
    most = join_while_there_is_room(pack, biases(12, 13, 14, 15, 16))
    assert most == 4


def test_a_stack_grows_to_what_memory_holds_within_a_few_steps(setup):
    """Not 25 steps for each doubling: those that were first would be at their end before the last join."""
    own = setup.but(layout="flat", epochs=None, steps=60, rungs=(0.9,), score_rungs=False)
    trials = [lora(number, rank=2) for number in range(8)]
    pack = measured_pack(own, size=10_000, held=dict.fromkeys(range(8), 100), extra=20)
    left, steps = list(trials), []
    while left:
        while left and (not pack._running() or pack.has_room()):
            pack.join(left.pop(0))
            steps.append(max(course_steps(pack)))
        assert pack.advance(pack.has_room) == [] or not left
    assert steps == [0, 1, 2, 2, 3, 3, 3, 3]


def course_steps(pack):
    return [member.step for together in pack._together.values() for member in together.members]


def test_out_of_memory_in_company_costs_no_trial_a_result_or_a_batch(setup, monkeypatch):
    """It begins again beside half as many others, at last alone; nothing is reported twice, no batch is divided."""
    backward, company, pack = Network.backward, [], Pack(Worker(setup))

    def hungry(network, split, rows):
        is_large = any("query.bias" in name for name in network.attached.trained)
        if is_large and network.worker.has_company():
            company.append(pack._n_running - 1)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return backward(network, split, rows)

    norms = [Trial(number, {"method": "norm", "norm.lr": 1e-2, "head.lr": 1e-2}, 7) for number in (1, 2, 3, 4)]
    expected = list(Worker(setup).evaluate(biases(10)[0]))
    monkeypatch.setattr(Network, "backward", hungry)
    # Each turn takes one second: a first one that took long on a busy machine would let all others end before the second
    monkeypatch.setattr("autopeft.training.pack.time", SimpleNamespace(monotonic=partial(next, itertools.count())))
    found = run(pack, [*norms, *biases(10)])
    assert company[0] == 4 and all(2 * later <= before for before, later in itertools.pairwise(company))
    assert {events[-1].status for events in found.values()} == {Status.COMPLETE}
    assert [type(event) for event in found[10]] == [Report, Report, Result]
    assert steady(found[10][-1]) == steady(expected[-1])
    assert found[10][-1].metrics["micro_batch_size"] == setup.machine.micro_batch_size


def test_out_of_memory_alone_is_a_trials_own(setup, monkeypatch):
    def full(network, split, rows):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    monkeypatch.setattr(Network, "_backward", full)
    found = run(Pack(Worker(setup)), biases(10, 11))
    assert [found[number][-1].status for number in (10, 11)] == [Status.OUT_OF_MEMORY] * 2
    assert all(len(events) == 1 for events in found.values())


def test_the_ledger_can_say_how_each_trial_ran(setup):
    found = run(Pack(Worker(setup.but(epochs=1))), [MIXED[0], *biases(10)])
    assert {number: {event.ran for event in events} for number, events in found.items()} == {
        0: {"stack"},
        10: {"plain"},
    }
    stopped = Result.stopped(MIXED[0], Report.from_json(found[0][0].to_json()))
    assert (stopped.status, stopped.ran, stopped.metrics) == (Status.STOPPED, "stack", found[0][0].metrics)
