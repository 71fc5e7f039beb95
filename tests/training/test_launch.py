"""When a step is called, captured and replayed: on a card that is pretended."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from autopeft.training.launch import WARM, Graphs

DEVICE = torch.device("cuda")


class Card:
    """torch.cuda in names. A step that is captured is not taken; a replay takes it. Notes what it is asked for."""

    def __init__(self, monkeypatch):
        self.done, self.states, self.is_capturing, self.faults, self.emptied = [], [], False, [], 0
        card = self

        class Graph:
            def __init__(self):
                self.generators = []

            def register_generator_state(self, generator):
                self.generators.append(generator)

            def replay(self):
                card.done.append(("replay", self.size))

            def capture_begin(self, pool, capture_error_mode):
                card.is_capturing, card.graph = True, self

            def capture_end(self):
                card.is_capturing = False

        @contextlib.contextmanager
        def graph(made, pool, stream):
            self.emptied += 1
            made.capture_begin(pool, "global")
            try:
                yield
            finally:
                made.capture_end()

        stream = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)
        state = SimpleNamespace(
            graphsafe_get_state=lambda: "before", graphsafe_set_state=lambda state: self.states.append(state)
        )
        fakes = {
            "Stream": lambda device: stream, "stream": lambda own: contextlib.nullcontext(),
            "Event": lambda: SimpleNamespace(record=lambda stream: None, query=lambda: True),
            "graph_pool_handle": lambda: "pool", "CUDAGraph": Graph, "graph": graph, "current_device": lambda: 0,
            "current_stream": lambda device: "current", "default_generators": (state,),
        }  # fmt: skip
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        make = torch.Generator
        monkeypatch.setattr(torch, "Generator", lambda device: make())

    def step(self, size):
        if not self.is_capturing:
            self.done.append(("step", size))
            return
        if self.faults:
            raise self.faults.pop(0)
        self.graph.size = size


@pytest.fixture
def card(monkeypatch):
    return Card(monkeypatch)


def test_each_size_is_captured_after_real_passes_and_replayed(card):
    """Every launch is one step, whether called or replayed; a later size is warm sooner."""
    member = object()
    graphs = Graphs(card.step, DEVICE, [member])
    before = []
    graphs.launch(["a"] * (WARM + 2), before.append)
    assert card.done == [("step", "a")] * WARM + [("replay", "a")] * 2 and before == list(range(WARM + 2))
    assert card.graph.generators == [member] and graphs.is_done()
    card.done.clear()
    graphs.launch(["b", "b", "a", "b"])
    assert card.done == [("step", "b"), ("replay", "b"), ("replay", "a"), ("replay", "b")]
    assert card.states == [graphs.generator, "before"] * 2, "random numbers are its own during its launches only"
    assert graphs.name == "graph" and graphs.read(torch.ones(2)) == [1.0, 1.0]


def test_what_cannot_be_captured_is_called_from_then_on(card, caplog):
    graphs = Graphs(card.step, DEVICE)
    card.faults = [RuntimeError("operation not permitted when stream is capturing")] * 2
    graphs.launch(["a"] * (WARM + 2))
    assert card.done == [("step", "a")] * (WARM + 2)
    assert graphs.name == "static" and caplog.text.count("is no CUDA graph") == 1


def test_memory_that_runs_out_in_a_capture_is_raised(card):
    graphs = Graphs(card.step, DEVICE)
    card.faults = [torch.cuda.OutOfMemoryError("CUDA out of memory")] * 2
    with pytest.raises(torch.cuda.OutOfMemoryError):
        graphs.launch(["a"] * (WARM + 1))
    assert card.states[-1] == "before" and not card.is_capturing


@pytest.mark.parametrize("fault", [RuntimeError("not beside other streams"), torch.cuda.OutOfMemoryError("CUDA out")])
def test_what_fails_beside_others_is_captured_with_the_device_to_itself(card, fault):
    """All streams have ended then, and memory that nobody uses is given back."""
    graphs = Graphs(card.step, DEVICE)
    card.faults = [fault]
    graphs.launch(["a"] * (WARM + 2))
    assert card.done == [("step", "a")] * WARM + [("replay", "a")] * 2 and card.emptied == 1
    graphs.launch(["b"] * 3)
    assert card.emptied == 1 and graphs.name == "graph"


def test_a_step_that_draws_on_the_host_is_not_captured(card):
    def drawing(size):
        torch.rand(1)
        card.step(size)

    graphs = Graphs(drawing, DEVICE)
    graphs.launch(["a"] * (WARM + 2))
    assert card.done == [("step", "a")] * (WARM + 2) and graphs.name == "static"
