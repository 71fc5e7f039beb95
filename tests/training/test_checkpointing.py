"""Gradient checkpointing: the same gradients from fewer kept activations, and chosen where not even one row fits."""

import numpy as np
import pytest
import torch
from models import text_setup, write_completions, write_translator, writer

from autopeft.training import network as networks
from autopeft.training.checkpointing import checkpoint_blocks
from autopeft.training.loop import Worker
from autopeft.training.setup import Setup
from autopeft.trial import Status, Trial

RECIPES = [
    {"method": "lora", "lora.modules": "all", "lora.dropout": 0.3},
    {"method": "full"},
    {"method": "parallel_adapter+prefix"},
    {"method": "adalora"},
    {"method": "lora", "lora.layers": "last_1"},
]


def writing_setup(folder, model, task, **values):
    data = {"train": str(write_completions(folder / "train.csv", 60)), "validation_share": 0.2}
    return Setup.of(
        model=model, task=task, options={"generate_rows": 0}, data=data, folder=str(folder), cache=str(folder / "cache"),
        steps=4, batch_size=8, micro_batch_size=8, keep="all", **values,
    )  # fmt: skip


@pytest.fixture(scope="module")
def setups(tmp_path_factory):
    made = {"bert": text_setup(tmp_path_factory.mktemp("bert")).but(epochs=None, steps=4, prefix_cache_bytes=0)}
    for kind in ("gpt2", "llama"):
        folder = tmp_path_factory.mktemp(kind)
        made[kind] = writing_setup(folder, writer(folder / "model", kind), "causal_language_modelling")
    folder = tmp_path_factory.mktemp("t5")
    made["t5"] = writing_setup(folder, write_translator(folder / "model"), "sequence_to_sequence")
    return made


def gradients(setup, params):
    """(gradients of the first batch by name, bytes kept for them)."""
    worker = Worker(setup)
    network = worker.network(Trial(0, params, 3))
    torch.manual_seed(0)
    network.train()
    kept = {}

    def note(tensor):
        if tensor.numel() and not tensor.requires_grad:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network.backward("train", np.arange(8))
    found = {n: p.grad.clone() for n, p in network.model.named_parameters() if p.grad is not None}
    return found, network


CASES = [
    (kind, "padded", params)
    for kind in ("bert", "gpt2", "llama", "t5")
    for params in RECIPES
    if (kind, params["method"]) != ("gpt2", "parallel_adapter+prefix")  # its query, key and value are one matrix
]
CASES += [("llama", "flat", params) for params in RECIPES]


@pytest.mark.parametrize(("kind", "layout", "params"), CASES, ids=str)
def test_gradients_are_identical(kind, layout, params, setups):
    plain, kept = gradients(setups[kind].but(gradient_checkpointing="off", layout=layout), params)
    again, network = gradients(setups[kind].but(gradient_checkpointing="on", layout=layout), params)
    assert network.is_checkpointed and not kept.is_checkpointed
    assert plain.keys() == again.keys() != set()
    for name, gradient in plain.items():
        assert torch.equal(gradient, again[name]), name


def test_blocks_keep_their_inputs_only(setups):
    """Counted where autograd keeps tensors: between blocks, nothing of their insides."""
    worker = Worker(setups["llama"])
    rows = np.arange(8)
    counts = []
    for blocks in ((), worker.view.blocks):
        network = worker.network(Trial(0, {"method": "full"}, 3))
        checkpoint_blocks(network.model, blocks)
        network.train()
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, kept=kept: (kept.append(tensor), tensor)[1], lambda t: t
        ):
            outputs = network.logits("train", rows)
        counts.append(len(kept))
        outputs.sum().backward()
    assert counts[1] < counts[0] / 4


class Full:
    """Memory for activations of no row, unless they are computed again."""

    def __init__(self, monkeypatch, rows_checkpointed):
        self.tried = []
        backward = networks.Network._backward

        def limited(network, split, rows):
            self.tried.append((network.is_checkpointed, network.micro_batch_size))
            if not network.is_checkpointed or network.micro_batch_size > rows_checkpointed:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
            return backward(network, split, rows)

        monkeypatch.setattr(networks.Network, "_backward", limited)


def test_it_begins_where_not_even_one_row_fits(setups, monkeypatch):
    trial = Trial(0, {"method": "lora"}, 3)
    expected = list(Worker(setups["llama"]).evaluate(trial))[-1]
    assert "gradient_checkpointing" not in expected.metrics
    full = Full(monkeypatch, rows_checkpointed=4)
    result = list(Worker(setups["llama"]).evaluate(trial))[-1]
    assert full.tried[:6] == [(False, 8), (False, 4), (False, 2), (False, 1), (True, 8), (True, 4)]
    assert set(full.tried[6:]) == {(True, 4)}
    assert result.metrics["gradient_checkpointing"] == 1
    assert result.metrics["micro_batch_size"] == 4
    assert result.metrics["loss"] == pytest.approx(expected.metrics["loss"], rel=1e-5)


@pytest.mark.parametrize(("choice", "tried"), [("off", (False, 1)), ("auto", (True, 1)), ("on", (True, 1))])
def test_memory_that_is_full_either_way_ends_the_trial(choice, tried, setups, monkeypatch):
    full = Full(monkeypatch, rows_checkpointed=0)
    result = list(Worker(setups["llama"].but(gradient_checkpointing=choice)).evaluate(Trial(0, {"method": "lora"}, 3)))[
        -1
    ]
    assert result.status is Status.OUT_OF_MEMORY
    assert full.tried[-1] == tried


@pytest.mark.gpu
def test_on_a_gpu_the_peak_is_lower(tmp_path):
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=256, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=1024,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).cuda().eval()
    ids, peaks = torch.randint(0, 64, (16, 128), device="cuda"), []
    for blocks in ((), tuple(f"model.layers.{index}" for index in range(8))):
        checkpoint_blocks(model, blocks)
        torch.cuda.reset_peak_memory_stats()
        model(input_ids=ids, use_cache=False).logits.sum().backward()
        model.zero_grad(set_to_none=True)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < 0.7 * peaks[0]
