"""A CUDA graph that is pretended: what is captured is noted operation by operation, and a replay runs the same again.

As of a real one, a replay runs no code of ours: it reads and writes the tensors that were there at its capture, and
numbers of the host are those of its capture. A capture leaves all tensors and random states as they were.
"""

import contextlib
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autopeft.training import launch
from tests.training.traces import DEPENDENT

GPU = torch.device("cuda")


class Recording(TorchDispatchMode):
    """Notes operations with their tensors. What they write to tensors from before, and draw, is taken back by `undo`."""

    def __init__(self, generators):
        super().__init__()
        self.operations, self._before, self._own = [], {}, set()
        self._states = [(generator, generator.get_state()) for generator in (torch.default_generator, *generators)]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        if name in DEPENDENT:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        for storage in _storages(_written(function, args, kwargs)):
            if storage.data_ptr() not in self._own and storage.data_ptr() not in self._before:
                self._before[storage.data_ptr()] = (storage, storage.clone())
        out = function(*args, **kwargs)
        self._own |= {storage.data_ptr() for storage in _storages(_made(function, out))}
        self.operations.append((function, args, kwargs, out))  # holds the tensors: no address is used twice
        return out

    def undo(self):
        """Takes back what was written, and what was drawn."""
        for storage, before in self._before.values():
            storage.copy_(before)
        for generator, state in self._states:
            generator.set_state(state)


class Graph:
    """torch.cuda.CUDAGraph."""

    replayed = 0  # of all graphs

    def __init__(self):
        self.operations, self.generators = [], []

    def register_generator_state(self, generator):
        self.generators.append(generator)

    def capture_begin(self, pool=None, capture_error_mode="global"):
        self.recording = Recording(self.generators)
        self.recording.__enter__()

    def capture_end(self):
        self.recording.__exit__(None, None, None)
        self.recording.undo()
        self.operations = self.recording.operations

    def replay(self):
        Graph.replayed += 1
        with torch.no_grad():
            for function, args, kwargs, out in self.operations:
                again = function(*args, **kwargs)
                for old, new in zip(_made(function, out), _made(function, again), strict=True):
                    for part in (
                        (torch.Tensor._indices, torch.Tensor._values) if old.is_sparse else (torch.Tensor.detach,)
                    ):
                        part(old).copy_(part(new))


@contextlib.contextmanager
def capturing(graph, pool=None, stream=None):
    """torch.cuda.graph."""
    graph.capture_begin()
    try:
        yield
    finally:
        graph.capture_end()


class Drawing:
    """Random numbers of a launcher come from its own generator."""

    def __init__(self, generator, device):
        self.generator = generator

    def __enter__(self):
        self.before = torch.default_generator.get_state()
        torch.default_generator.set_state(self.generator.get_state())

    def __exit__(self, *fault):
        self.generator.set_state(torch.default_generator.get_state())
        torch.default_generator.set_state(self.before)


def pretend(monkeypatch):
    """Lets `Graphs` of `GPU` capture and replay steps on a CPU."""
    stream = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)
    fakes = {
        "Stream": lambda device: stream, "stream": lambda own: contextlib.nullcontext(),
        "Event": lambda: SimpleNamespace(record=lambda stream: None, query=lambda: True),
        "graph_pool_handle": lambda: "pool", "CUDAGraph": Graph, "graph": capturing,
        "current_stream": lambda device: "current",
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    make = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": make())
    monkeypatch.setattr(launch, "_drawing_from", Drawing)
    monkeypatch.setattr(Graph, "replayed", 0)


def _written(function, args, kwargs):
    """The tensors that an operation writes to."""
    given = [*zip(function._schema.arguments, args, strict=False)]
    given += [(argument, kwargs[argument.name]) for argument in function._schema.arguments if argument.name in kwargs]
    of = [value for argument, value in given if argument.alias_info is not None and argument.alias_info.is_write]
    return [leaf for leaf in tree_leaves(of) if isinstance(leaf, torch.Tensor)]


def _storages(tensors):
    return [tensor.untyped_storage() for tensor in tensors if not tensor.is_sparse]


def _made(function, out):
    """The tensors of a result that are new: no views of others, and none that were written to."""
    outs = out if isinstance(out, tuple) and len(function._schema.returns) > 1 else (out,)
    of = [part for given, part in zip(function._schema.returns, outs, strict=False) if given.alias_info is None]
    return [leaf for leaf in tree_leaves(of) if isinstance(leaf, torch.Tensor)]
