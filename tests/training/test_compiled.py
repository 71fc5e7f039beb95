"""Compiled blocks: the same training, compiled once for all blocks and trials that are alike, where that pays."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from models import text_setup, write_completions, writer
from transformers import AutoConfig, AutoModelForCausalLM

from autopeft.errors import EnvironmentFault
from autopeft.training import compiled, program
from autopeft.training.compiled import GAIN, SECONDS, Compiler, Compiling, largest_difference
from autopeft.training.loop import Worker
from autopeft.training.pack import Pack
from autopeft.training.setup import Setup
from autopeft.training.stack import Member, Stack
from autopeft.training.stack_program import StackProgram
from autopeft.trial import Phase, Status, Trial

CPU, GPU = torch.device("cpu"), torch.device("cuda")
STEPS = 6


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return text_setup(tmp_path_factory.mktemp("compiled")).but(
        layout="flat", epochs=None, steps=STEPS, compile="off", rungs=()
    )


@pytest.fixture(scope="module")
def writing(tmp_path_factory):
    """A language model of four blocks."""
    folder = tmp_path_factory.mktemp("writing")
    config = AutoConfig.from_pretrained(writer(folder / "model", "llama"), num_hidden_layers=4)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    return Setup.of(
        model=str(folder / "model"), task="causal_language_modelling",
        data={"train": str(write_completions(folder / "train.csv", 64))}, folder=str(folder / "run"),
        cache=str(folder / "cache"), steps=STEPS, batch_size=8, layout="flat", compile="off", rungs=(), keep="none",
    )  # fmt: skip


@pytest.fixture
def traced(monkeypatch):
    """Blocks are traced, as before they are compiled, and run as they were traced. Counts what torch would compile."""
    from torch._dynamo.testing import CompileCounter

    counter, compile_ = CompileCounter(), torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda call, **options: compile_(call, dynamic=False, backend=counter))
    yield counter
    torch._dynamo.reset()


def trained(worker, params, number=0):
    *_, result = worker.evaluate(Trial(number, params, 7))
    assert result.status is Status.COMPLETE, result.error
    return result


def is_near(one, other):
    assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], abs=1e-5)


LORA = {"method": "lora", "lora.rank": 2, "lora.dropout": 0.1}


@pytest.mark.parametrize("method", ["lora", "ia3", "serial_adapter", "bias", "full", "loha", "prefix"])
def test_compiled_blocks_train_as_others_do(setup, traced, method):
    params = LORA if method == "lora" else {"method": method}
    plain = trained(Worker(setup), params)
    found = trained(Worker(setup.but(compile="on")), params)
    is_near(found, plain)
    assert (plain.ran, found.ran) == ("static", "static+compiled")
    assert traced.frame_count > 0


@pytest.mark.parametrize(
    "params",
    [
        LORA,
        {"method": "lora+norm", "lora.rank": 2},
        {"method": "lora", "lora.modules": "all"},
        {"method": "parallel_adapter"},
    ],
)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_compiled_blocks_have_the_same_gradients(setup, writing, traced, family, params):
    """Each tensor's own: torch 2.11 lost those of a node that returns what it has changed in place."""

    def gradients(mode):
        worker = Worker({"bert": setup, "llama": writing}[family].but(compile=mode))
        network = worker.network(Trial(0, params, 7))
        steps = program.Program(network, STEPS)
        steps.begin(network.attached, 7)
        if mode == "on":
            worker.compiler.compile(network)
        torch.manual_seed(0)
        with torch.no_grad():  # zeros would hide what is behind them
            for name, parameter in network.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        network.static_loss(steps.tape.read()[0], steps.passes[0].size).sum().backward()
        return {name: parameter.grad for name, parameter in network.model.named_parameters() if parameter.requires_grad}

    plain, found = gradients("off"), gradients("on")
    assert traced.frame_count > 0 and plain.keys() == found.keys()
    for name, gradient in plain.items():
        scale = float(gradient.abs().max())
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-4 * scale + 1e-7), name


def test_blocks_that_are_alike_and_later_trials_are_served_by_what_was_compiled(writing, traced):
    """The first block differs, as nothing below it has a gradient; a size of a batch is one more."""
    worker = Worker(writing.but(compile="on"))
    first = trained(worker, LORA)
    once, sizes = traced.frame_count, len(worker.compiler._costs)
    # Attention is left out: what is before it and behind it are graphs of their own. Twelve a size, were no block shared
    assert len(worker.view.blocks) == 4 and once == 7 * sizes
    later = trained(worker, {**LORA, "lora.lr": 3e-3}, number=1)
    assert traced.frame_count == once, "its learning rate is a tensor"
    assert first.metrics["loss"] != later.metrics["loss"]


def test_a_stack_is_compiled_once_for_all_its_updates(writing, traced):
    def losses(mode):
        worker = Worker(writing.but(compile=mode))
        trials = [Trial(number, {"method": "lora", "lora.rank": number}, number) for number in (2, 3)]
        program = StackProgram(Stack(worker, [Member.of(worker, trial) for trial in trials], 2))
        out, counts = [], []
        for _ in range(STEPS):
            program.launch(1)
            out += [loss for of_step in program.read() for loss in of_step]
            counts.append(traced.frame_count)
        return out, counts, program.compiling

    plain, _, off = losses("off")
    found, counts, on = losses("on")
    assert found == pytest.approx(plain, abs=1e-5)
    assert (off.named("stack"), on.named("stack")) == ("stack", "stack+compiled")
    sizes = len(on._known)
    assert counts[0] == 0, "others may join in the first step, and change shapes"
    assert 0 < counts[-1] <= counts[1] * sizes, "no more for each step"


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with g++, which is not here")
def test_a_trial_compiled_for_this_cpu(writing, tmp_path):
    """By torch's own compiler, with the random numbers of dropout as they are without it."""
    path = tmp_path / "train.csv"
    path.write_text("prompt,completion\n" + "good day night,yes it is\n" * 40)
    setup = writing.but(data={"train": str(path)}, cache=str(tmp_path / "cache"), folder=str(tmp_path / "run"))
    phases = []
    plain = trained(Worker(setup), LORA)
    worker = Worker(setup.but(compile="on", trial_seconds=600.0))
    for event in worker.phases(Trial(0, LORA, 7)):
        phases.append(event)
    is_near(phases[-1], plain)
    names = [event for event in phases if isinstance(event, Phase)]
    assert names.count(Phase.PREPARING) == 2 and names[-1] is Phase.SCORING, "no watchdog while it compiles"
    assert worker.compiler.seconds != SECONDS
    assert phases[-1].metrics["train_seconds"] < 10 * plain.metrics["train_seconds"] + worker.compiler.seconds


@pytest.mark.gpu
@pytest.mark.parametrize("params", [LORA, {"method": "lora", "lora.rank": 2}, {"method": "full"}, {"method": "ia3"}])
def test_what_is_compiled_is_captured(writing, params):
    """The step of a trial is one launch, with compiled blocks in it, and its dropout is that of plain torch."""
    setup = writing.but(device="cuda", precision="fp32", attention="sdpa", steps=30)
    plain = trained(Worker(setup), params)
    found = trained(Worker(setup.but(compile="on")), params)
    assert (plain.ran, found.ran) == ("graph", "graph+compiled")
    assert found.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=1e-3)


@pytest.mark.gpu
def test_a_stack_that_is_compiled_is_captured(writing):
    def losses(mode):
        worker = Worker(writing.but(device="cuda", compile=mode, steps=30))
        trials = [Trial(number, {"method": "lora", "lora.rank": number}, number) for number in (2, 3)]
        program = StackProgram(Stack(worker, [Member.of(worker, trial) for trial in trials], 2))
        out = []
        for _ in range(3):
            program.launch(10)
            out += [loss for of_step in program.read() for loss in of_step]
        assert program.launcher.name == "graph"
        return out

    assert losses("on") == pytest.approx(losses("off"), rel=1e-2)


@pytest.mark.parametrize("kind", [torch._dynamo.exc.InternalTorchDynamoError, RuntimeError])
def test_where_torch_cannot_compile_the_search_goes_on_or_says_so(setup, monkeypatch, caplog, kind):
    def broken(call, **options):
        def fail(*args, **kwargs):
            raise kind("no compiler found")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    worker = Worker(setup)
    plain = trained(worker, LORA)
    worker = Worker(setup)
    worker.compiler.mode = "auto"
    monkeypatch.setattr(Compiler, "pays", lambda *given: True)
    found = trained(worker, LORA)
    is_near(found, plain)
    assert found.ran == "static" and worker.compiler.mode == "off"
    assert [r.message for r in caplog.records] == ["blocks are not compiled, as torch cannot: no compiler found"]
    ordered = Worker(setup.but(compile="on"))
    if kind is RuntimeError:  # the compiler's own? nobody knows
        *_, result = ordered.evaluate(Trial(0, LORA, 7))
        assert result.status is Status.FAILED and "no compiler found" in result.error
        return
    with pytest.raises(
        EnvironmentFault, match=r"cannot be compiled here: no compiler found\. Leave training\.compile out"
    ):
        trained(ordered, LORA)


def test_memory_that_runs_out_is_no_fault_of_the_compiler(setup, monkeypatch):
    def full(call, **options):
        def fail(*args, **kwargs):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

        return fail

    monkeypatch.setattr(torch, "compile", full)
    monkeypatch.setattr(Compiler, "pays", lambda *given: True)
    worker = Worker(setup)
    worker.compiler.mode = "auto"
    *_, result = worker.evaluate(Trial(0, LORA, 7))
    assert result.status is Status.COMPLETE and result.ran == "static", "begun again, until blocks were checkpointed"
    assert result.metrics["gradient_checkpointing"] == 1
    assert worker.compiler.mode == "auto"


# ── whether it is right ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("mode", ["on", "auto"])
def test_a_compiler_that_loses_gradients_is_found_out(setup, monkeypatch, caplog, mode, stacked):
    """As torch 2.11 did. The trial is what it is with plain blocks, dropout included."""
    monkeypatch.setattr(torch, "compile", lambda call, **options: lambda *given, **more: losing(call(*given, **more)))
    monkeypatch.setattr(Compiler, "pays", lambda compiler, *given: compiler.mode != "off")

    def run(compile):
        worker = Worker(setup.but(prefix_cache_bytes=0))
        worker.compiler.mode = compile
        if not stacked:
            return trained(worker, LORA)
        pack = Pack(worker)
        for number in (0, 1):
            pack.join(Trial(number, {**LORA, "lora.rank": 2 + number}, 7))
        events = [event for _ in range(STEPS + 1) for _, event in pack.advance()]
        return events[-1]

    if mode == "on":
        with pytest.raises(EnvironmentFault, match=r"other gradients than plain ones.*turn it off"):
            run("on")
        return
    found = run("auto")
    assert "other gradients than plain ones" in caplog.text
    expected = run("off")
    assert found.metrics["loss"] == expected.metrics["loss"]
    assert found.ran == expected.ran == ("stack" if stacked else "static")


def losing(states):
    """A block's outputs without their gradient."""
    return tuple(map(losing, states)) if isinstance(states, tuple) else states.detach() + 0 * states


@pytest.mark.parametrize(
    ("found", "expected", "difference"),
    [
        ([[3.0, 4.0]], [[3.0, 4.0]], 0.0),
        ([[3.0, 4.0], [0.0]], [[3.0, 4.0], [1.0]], 1.0),
        ([None, [1.0]], [[0.5], [1.0]], 1.0),
        ([[1000.0], [0.3]], [[1000.0], [0.1]], 0.0),  # beside so large a gradient it may be rounding
        ([[1.1], None], [[1.0], None], 0.1),
        ([None], [None], 0.0),
    ],
)
def test_how_far_gradients_are_apart(found, expected, difference):
    own = [[None if values is None else torch.tensor(values) for values in side] for side in (found, expected)]
    assert largest_difference(*own) == pytest.approx(difference)


# ── whether it pays ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_pays_if_the_steps_ahead_save_more_than_their_sizes_cost():
    compiler = Compiler("auto", GPU)
    needed = 3 * SECONDS / GAIN  # seconds of training
    assert compiler.pays(1001, needed / 1000, 3) and not compiler.pays(999, needed / 1000, 3)
    assert not compiler.pays(10**9, None, 1), "not measured"
    compiler.note_cost(30.0, 3)
    assert compiler.seconds == pytest.approx(10.0)
    compiler.note_gain(0.4, 0.1)
    assert compiler.gain == pytest.approx(0.75)
    assert compiler.pays(41, 1.0, 3) and not compiler.pays(39, 1.0, 3)
    compiler.note_gain(0.1, 0.2)  # slower
    assert compiler.gain == pytest.approx(-0.125) and not compiler.pays(10**9, 1.0, 1)


def test_auto_is_for_gpus():
    assert Compiler("auto", CPU).mode == "off" and Compiler("on", CPU).mode == "on"
    assert not Compiler("off", GPU).pays(10**9, 1.0, 1) and Compiler("on", CPU).pays(0, None, 5)


class Program:
    """Steps of a second, of .4 s when compiled, and 30 s of compiling for each size."""

    def __init__(self, compiler, monkeypatch):
        self.now, self.calls, self.known = 0.0, [], set()
        monkeypatch.setattr(compiled, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(compiler, "compile", lambda network: self.calls.append("compile"))
        launcher = SimpleNamespace(wait=lambda: self.calls.append("wait"), forget=lambda: self.calls.append("forget"))
        network = SimpleNamespace(is_checkpointed=False, blocks=("block.0",))
        self.compiling = Compiling(compiler, network, launcher, list)

    def take(self, sizes, left):
        self.compiling.decide(left, sizes)
        with self.compiling.timed():
            for size in sizes:
                self.now += 0.4 if self.compiling.is_on else 1.0
                if self.compiling.is_on and size not in self.known:
                    self.now += 30.0
                    self.compiling.compiler.spent += 30.0
                    self.known.add(size)
        self.now += 1000.0  # others' turns
        return self.compiling.note(sizes)


def test_it_is_decided_by_what_was_measured(monkeypatch):
    compiler = Compiler("auto", GPU)
    program = Program(compiler, monkeypatch)
    sizes = ["short", "long"] * 5
    assert program.take(sizes, 20) == 0.0 and not program.compiling.is_on
    for _ in range(2):  # the first was no measurement: its sizes were news
        program.take(sizes, 20)
    assert not program.compiling.is_on, "20 steps of a second, and the 20 taken once more, save 18 of 24 seconds"
    spent = program.take(sizes, 200)
    assert program.calls == ["wait", "compile", "forget"] and program.compiling.is_on
    assert spent == pytest.approx(60.0), "and not the steps themselves, which are the trial's"
    assert compiler.seconds == pytest.approx(30.0) and compiler.gain == GAIN
    assert [program.take(sizes, 100) for _ in range(3)] == [0.0] * 3
    assert compiler.gain == pytest.approx(0.6)
    assert program.take([*sizes, "other"], 100) == pytest.approx(30.0)
    assert program.compiling.named("graph") == "graph+compiled"


@pytest.mark.parametrize("network", [{"is_checkpointed": True}, {"blocks": ()}])
def test_a_network_that_is_checkpointed_or_all_cached_is_left_as_it_is(monkeypatch, network):
    program = Program(Compiler("on", CPU), monkeypatch)
    vars(program.compiling.network).update(network)
    program.take(["one"], 10)
    assert not program.compiling.is_on and program.calls == []
