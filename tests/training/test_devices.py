"""All tensors of a pass lie on the model's device: on a GPU that only torch's shapes know (FakeTensor), so on any machine.

Such tensors have no numbers. An operation on tensors of two devices is an error, and so is one that waits for a number.
A build of torch for CPUs has to be told that switching to a GPU is nothing, which takes a few lines of C++.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import mobilenet, picture_setup, text_setup, translator, vit, write_completions, writer
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from transformers import AutoModelForCausalLM, GenerationConfig

from autopeft import plugins
from autopeft.errors import Refused
from autopeft.training import greedy, low_rank, program, scorer, stack, stack_program
from autopeft.training.greedy import Greedy
from autopeft.training.launch import Eager
from autopeft.training.loop import Worker
from autopeft.training.program import Program, is_static
from autopeft.training.setup import Setup
from autopeft.training.stack import Member, Stack
from autopeft.training.stack_program import StackProgram
from autopeft.training.static import Statics
from autopeft.trial import Trial

GPU = torch.device("cuda", 0)


GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace c10::impl { C10_REGISTER_GUARD_IMPL(CUDA, NoOpDeviceGuardImpl<DeviceType::CUDA>) }
"""


@pytest.fixture(scope="session")
def guarded(tmp_path_factory):
    """Lets Python's bindings of torch switch to a GPU that is not there."""
    if torch.version.cuda is not None:
        return  # such a build does that by itself
    if shutil.which("g++") is None:
        pytest.skip("g++ is not here")
    folder, torchs = tmp_path_factory.mktemp("guard"), Path(torch.__file__).parent
    (folder / "guard.cpp").write_text(GUARD)
    include = [f"-I{torchs / 'include' / part}" for part in ("", "torch/csrc/api/include")]
    library = folder / "guard.so"
    build = ["g++", "-std=c++20", "-shared", "-fPIC", "guard.cpp", *include, f"-L{torchs / 'lib'}", "-lc10"]
    subprocess.run([*build, "-o", str(library)], cwd=folder, check=True, capture_output=True)
    ctypes.CDLL(str(library))


@pytest.fixture
def gpu(monkeypatch, guarded):
    """A mode in which tensors can be on a GPU, and have no numbers."""
    fakes = {
        "mem_get_info": lambda device=None: (2**36, 2**37),
        "get_device_properties": lambda device=None: SimpleNamespace(total_memory=2**37),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    make = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": make())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.nn.Module, "to", moved)
    for module in (program, stack_program, scorer, greedy):
        monkeypatch.setattr(module, "launcher_of", lambda step, device, generators=(): Eager(step))
    for module in (low_rank, stack):  # a FakeTensor is not quantised
        monkeypatch.setattr(module, "is_plain", lambda layer: not layer.lora_variant)
    return FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False)


def moved(module, *args, **options):
    """nn.Module.to, which changes tensors in place: with these it cannot."""
    device, dtype, *_ = torch._C._nn._parse_to(*args, **options)
    for part in module.modules():
        for name, own in [*part._parameters.items()]:
            if own is not None:
                kind = dtype if dtype is not None and own.is_floating_point() else own.dtype
                made = own.data.to(device or own.device, kind)
                part._parameters[name] = torch.nn.Parameter(made, own.requires_grad)
        for name, own in [*part._buffers.items()]:
            if own is not None:
                part._buffers[name] = own.to(device or own.device)
    return module


def on_gpu(model, mode):
    for part in model.modules():
        for name, own in [*part._parameters.items()]:
            if own is not None:
                part._parameters[name] = torch.nn.Parameter(mode.from_tensor(own.data).to(GPU), own.requires_grad)
        for name, own in [*part._buffers.items()]:
            if own is not None:
                part._buffers[name] = mode.from_tensor(own).to(GPU)


def move(worker, mode):
    """Moves a worker to the GPU. What it has asked its model, and the caches on the disk, stay."""
    on_gpu(worker.base, mode)
    form = worker.statics.form(worker.data)
    worker.device = worker.precision.device = GPU
    worker.statics = Statics(worker.base, worker.view, worker.task, GPU, worker.setup.seed)
    worker.statics._form, worker.statics._is_asked = form, True


SETUPS = {"vit": vit, "mobilenet": mobilenet}


@pytest.fixture(scope="module", params=["bert", "llama", "gpt2", "vit", "mobilenet"])
def setup(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "bert":
        return text_setup(folder).but(layout="flat", epochs=None, steps=4)
    if request.param in SETUPS:
        return picture_setup(folder, SETUPS[request.param]).but(layout="flat", steps=4)
    return Setup.of(
        model=writer(folder / "model", request.param), task="causal_language_modelling", options={"generate_rows": 0},
        data={"train": str(write_completions(folder / "train.csv", 64))}, folder=str(folder / "run"),
        cache=str(folder / "cache"), batch_size=8, micro_batch_size=8, steps=4, layout="flat",
    )  # fmt: skip


@pytest.mark.parametrize("method", plugins.names("methods"))
def test_a_trial_is_on_its_models_device(setup, method, gpu):
    """What the method adds, the batches, the loss and the answers."""
    worker, trial = Worker(setup), Trial(0, {"method": method}, 1)
    try:
        network = worker.network(trial)
    except Refused as fault:
        pytest.skip(str(fault))
    worker.scores(network, "validation")
    with gpu, torch.no_grad():
        move(worker, gpu)
        try:
            network = worker.network(trial)
        except (Refused, DataDependentOutputException, DynamicOutputShapeException) as fault:
            pytest.skip(f"attaching reads numbers: {fault}")
        tensors = [*network.model.parameters(), *network.model.buffers()]
        assert {tensor.device for tensor in tensors} == {GPU}
        rows = network.score_batches("validation")[0]
        network.eval()
        assert network.logits("validation", rows).device == GPU
        if not is_static(network) or method in ("loha", "lokr"):  # these toss a coin on the host
            return
        steps = Program(network, 4)
        steps.begin(network.attached, 1)
        rows, weight = steps.tape.read()
        losses = network.static_loss(rows, steps.passes[0].size, "train", weight)
        assert losses.device == GPU and losses.shape == (1,)


def test_a_stack_is_on_its_models_device(setup, gpu):
    worker = Worker(setup)
    first = Member.of(worker, Trial(0, {"method": "lora"}, 1))
    if first is None:
        pytest.skip("this model runs its trials alone")
    Stack(worker, [first], 1).answers("validation", [0])
    with gpu, torch.no_grad():
        move(worker, gpu)
        members = [Member.of(worker, Trial(n, {"method": "lora", "lora.rank": 2 * n}, n)) for n in (1, 2)]
        both = Stack(worker, members, 2)
        steps = StackProgram(both)
        batches = [next(member.batches) for member in members]
        size = both.network.size_of(batches)
        assert both.static_loss((0, 1), both.network.send(batches, size), size).device == GPU
        both.values.grad = torch.ones_like(both.values)
        both.update(steps.coefficients[0])
        rows = both.network.score_batches("validation", 8, 2)[0]
        assert {logits.device for logits in both._logits("validation", [rows] * 2, [0, 1], 8)} == {GPU}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bart"])
def test_generation_is_on_its_models_device(kind, gpu, tmp_path):
    if kind in ("t5", "bart"):
        model = translator(kind).eval()
    else:
        model = AutoModelForCausalLM.from_pretrained(writer(tmp_path, kind)).eval()
    config = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=6, pad_token_id=1, eos_token_id=[0], decoder_start_token_id=3
    )
    with gpu, torch.no_grad():
        on_gpu(model, gpu)
        ids = torch.full((3, 5), 4, device=GPU)
        writing = Greedy(model, GPU).begin(ids, torch.ones_like(ids), config)
        writing.step()
        assert {writing.written.device, writing.token.device} == {GPU}


def test_it_shows_what_is_left_on_the_host(gpu):
    with gpu, pytest.raises(RuntimeError, match="device"):
        torch.ones(3, device=GPU) + torch.from_numpy(np.ones(3))
