"""What would end the capture of a CUDA graph: a step that waits for the device, or reads memory of the host.

On a CPU both go unnoticed, so the operations themselves are watched.
"""

import numpy as np
import pytest
import torch
from models import text_setup

from autopeft import plugins
from autopeft.training.batches import collate
from autopeft.training.loop import Worker
from autopeft.training.program import Program, is_static
from autopeft.training.stack import Member, Stack
from autopeft.training.stack_program import StackProgram
from autopeft.training.tape import Pass
from autopeft.trial import Trial
from tests.training.traces import Watch, watched


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return text_setup(tmp_path_factory.mktemp("capture")).but(layout="flat", epochs=None, steps=4)


DRAWING = {
    "loha",
    "lokr",
}  # draw a number on the host in each pass, whether to leave a module out: called, not captured


def test_the_watch_sees_what_waits():
    values = torch.ones(3)
    with Watch() as watch:
        values[values > 0]
        float(values.sum())
        torch.tensor([1.0])
    assert {"index", "_local_scalar_dense", "lift_fresh"} <= set(watch.found)


HALF = {"precision": "bf16", "attention": "sdpa"}


@pytest.mark.parametrize(
    ("method", "options"), [*((name, {}) for name in plugins.names("methods")), ("lora", HALF), ("full", HALF)]
)
def test_a_step_of_a_trial_can_be_captured(setup, method, options, monkeypatch):
    """Without its optimiser: on a GPU that is one kernel, on a CPU it reads its learning rate."""
    worker = Worker(setup.but(**options))
    network = worker.network(Trial(0, {"method": method}, 1))
    if not is_static(network):
        assert method == "adalora"
        return
    program = Program(network, 4)
    program.begin(network.attached, 1)
    monkeypatch.setattr(program.optimizer, "step", lambda: None)
    before = torch.random.get_rng_state()
    found = watched(program.step, program.passes[0])
    assert torch.equal(before, torch.random.get_rng_state()) == (method not in DRAWING)
    assert not found or method in DRAWING


def test_a_step_of_a_stack_can_be_captured(setup):
    worker = Worker(setup)
    given = {"method": "lora", "lora.rank": 2}
    members = [Member.of(worker, Trial(n, {**given, "lora.dropout": 0.1 * n}, n)) for n in (1, 0)]
    program = StackProgram(Stack(worker, members, 2))
    program.launch(2)
    program.tape.at.zero_()
    program.tape._passed.zero_()
    size = program.stack.network.size_of([next(member.batches) for member in members])
    assert watched(program.step, Pass(size, is_last=True)) == []


def take(given):
    """A pass without gradient, of the whole of what a scorer kept."""
    with torch.no_grad():
        given.launcher.step(next(iter(given._rows)))


@pytest.mark.parametrize(("method", "options"), [("lora", {}), ("bias", {}), ("head", {}), ("lora", HALF)])
def test_a_pass_without_gradient_can_be_captured(setup, method, options):
    worker = Worker(setup.but(**options))
    network = worker.network(Trial(0, {"method": method}, 1))
    Program(network, 4).begin(network.attached, 1)
    worker.scores(network, "validation")
    scorer = network.scorer
    assert scorer is not None and len(scorer._rows) >= 1, "scored by it"
    network.eval()
    before = torch.random.get_rng_state()
    assert watched(lambda _: take(scorer), None) == []
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_pass_of_a_whole_stack_can_be_captured_and_parts_of_it_are_not(setup):
    worker = Worker(setup)
    given = {"method": "lora", "lora.rank": 2}
    stack = Stack(worker, [Member.of(worker, Trial(n, given, n)) for n in (0, 1)], 2)
    StackProgram(stack)
    stack.answers("validation", [1])
    assert not stack.scorer._rows
    stack.answers("validation", [0, 1])
    assert watched(lambda _: take(stack.scorer), None) == []


def test_what_follows_a_replay_finds_the_model_as_it_is(setup):
    """A replay runs no code of ours: where tokens lie is forgotten all the same, as a task may call the model."""
    worker = Worker(setup)
    network = worker.network(Trial(0, {"method": "lora"}, 1))
    program = Program(network, 4)
    program.begin(network.attached, 1)
    rows = np.arange(2)
    inputs = collate(worker.data.splits["validation"], rows, worker.device)
    split, size = network.worker.statics.split(worker.data, "train"), program.passes[0].size
    layout = split.layout(network.send(program.tape.parts[0], size), size)
    network.eval()
    with torch.no_grad():
        expected = network.logits("validation", rows)
        network.scorer.launcher.step = lambda key: None  # replayed
        network.flattening.read(layout)
        assert torch.equal(network.logits("validation", rows), expected)
        assert torch.allclose(network.model(**inputs).logits, expected, atol=1e-5)
