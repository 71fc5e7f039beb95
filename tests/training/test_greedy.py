"""Greedy generation in static shapes: token for token what the model's own `generate` writes."""

from functools import partial

import numpy as np
import pytest
import torch
from models import translator, write_completions, writer
from transformers import AutoModelForCausalLM, GenerationConfig

from autopeft.training import answers as answers_module
from autopeft.training import greedy
from autopeft.training.greedy import Greedy, is_greedy, static_generation, takes_static_cache
from autopeft.training.launch import WARM, Graphs
from autopeft.training.loop import Worker
from autopeft.training.setup import Setup
from autopeft.training.stack import Member, Stack
from autopeft.trial import Trial
from tests.training.recorded import GPU, Graph, pretend
from tests.training.traces import watched

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
DEVICES = ["cpu", CUDA]
END, PAD, START = 0, 1, 3


@pytest.fixture(scope="module", params=["gpt2", "llama", "t5", "bart"])
def model(request, tmp_path_factory):
    """Two that go on with what they read, and two that read with an encoder."""
    if request.param in ("t5", "bart"):
        made = translator(request.param).eval()
        made.generation_config.forced_eos_token_id = None  # that of BART would end a text that has no room left
        return made
    return AutoModelForCausalLM.from_pretrained(writer(tmp_path_factory.mktemp(request.param), request.param)).eval()


def rows(model, lengths, seed=0, n_words=12):
    """Rows padded on the left; for an encoder on the right."""
    given = prompts(lengths, seed, n_words)
    if model.config.is_encoder_decoder:
        given = {name: values.flip(1) for name, values in given.items()}
    return given


def prompts(lengths, seed=0, n_words=12):
    draw, longest = np.random.default_rng(seed), max(lengths)
    ids, mask = np.full((len(lengths), longest), PAD), np.zeros((len(lengths), longest), np.int64)
    for row, length in enumerate(lengths):
        ids[row, longest - length :] = draw.integers(2, n_words, length)
        mask[row, longest - length :] = 1
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def config(new=8, ends=(END,), **more):
    return GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=new, pad_token_id=PAD, eos_token_id=list(ends),
        decoder_start_token_id=START, **more
    )  # fmt: skip


def both(model, given, device="cpu", **options):
    """What the model's own `generate` writes, and what is written in static shapes."""
    model = model.to(device)
    given = {name: values.to(device) for name, values in given.items()}
    with torch.no_grad():
        own = model.generate(**given, generation_config=config(**options))
        with static_generation(model, torch.device(device), is_wanted=True):
            writer_of = model.generate
            assert isinstance(writer_of, Greedy)
            found = writer_of(**given, generation_config=config(**options))
            assert writer_of.writing is not None, "not by the model's own `generate`"
    return own.tolist(), found.tolist()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lengths", [(1,), (5, 2, 9), (7, 7)])
def test_it_writes_what_generate_writes(model, lengths, device):
    own, found = both(model, rows(model, lengths), device)
    assert found == own


def test_a_token_that_is_replayed_is_the_one_that_is_called(model, monkeypatch):
    """By graphs that are pretended."""
    pretend(monkeypatch)
    monkeypatch.setattr(greedy, "launcher_of", lambda step, device: Graphs(step, GPU))
    for lengths in ((5, 2, 9), (4, 18)):
        before = Graph.replayed
        own, found = both(model, rows(model, lengths), new=12, ends=(9,))
        assert found == own and Graph.replayed - before == 11 - WARM


def test_what_is_read_is_no_wider_than_the_model_takes(model, monkeypatch):
    monkeypatch.setattr(greedy, "WIDTHS", 20)
    own, found = both(model, rows(model, (27, 3)), new=4)
    assert found == own


def test_it_does_so_with_eager_attention(model):
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    own, found = both(model, rows(model, (5, 2, 9)))
    model.set_attn_implementation(before)
    assert found == own


@pytest.mark.parametrize("device", DEVICES)
def test_rows_end_where_they_do_for_generate(model, device):
    """Any word may be an end: the first that each row writes, the third of some, one that none writes."""
    given = rows(model, (4, 6, 3, 8))
    written = torch.tensor(both(model, given, device)[0])[:, -8:]
    ends = {
        "the first of all": written[:, 0].unique().tolist(),
        "one that a row writes later": [int(written[0, 3])],
        "two": [int(written[1, 2]), int(written[2, 5])],
        "none": [],
    }
    for ending in ends.values():
        own, found = both(model, given, device, ends=ending)
        assert found == own


def test_looks_now_and_then_cut_what_was_written_too_much(model, monkeypatch):
    monkeypatch.setattr(greedy, "READ", 3)
    given = rows(model, (4, 6))
    ending = [int(torch.tensor(both(model, given)[0])[:, -8:][0, 1])]
    own, found = both(model, given, ends=ending)
    assert found == own


def test_one_greedy_serves_batches_of_other_sizes_and_prompts(model):
    with torch.no_grad(), static_generation(model, torch.device("cpu"), is_wanted=True):
        for seed, lengths in enumerate([(5, 2), (3, 5), (1, 2, 3), (6, 4)]):
            given = rows(model, lengths, seed)
            own = model.generate.plain(**given, generation_config=config())
            assert torch.equal(model.generate(**given, generation_config=config()), own)


def test_a_step_can_be_captured(model):
    with torch.no_grad():
        writer_of = Greedy(model, torch.device("cpu"))
        writer_of(**rows(model, (4, 6)), generation_config=config(new=6))
        writer_of.begin(*rows(model, (4, 6)).values(), config(new=6))
        assert watched(writer_of._step, writer_of.size) == []


def test_other_requests_are_generates_own(model):
    given = rows(model, (4, 6))
    own = GenerationConfig(temperature=0.7, top_p=0.9)
    assert is_greedy(config(), own) and not is_greedy(config(repetition_penalty=1.3), own)
    assert not is_greedy(config(), GenerationConfig(repetition_penalty=1.1)), "which `generate` heeds, too"
    assert not is_greedy(GenerationConfig(do_sample=True, num_beams=1, max_new_tokens=3), own)
    assert not is_greedy(GenerationConfig(do_sample=False, num_beams=2, max_new_tokens=3), own)
    assert not is_greedy(GenerationConfig(do_sample=False, num_beams=1), own)
    with torch.no_grad():
        own = model.generate(**given, generation_config=config(repetition_penalty=1.3))
        with static_generation(model, torch.device("cpu"), is_wanted=True):
            found = model.generate(**given, generation_config=config(repetition_penalty=1.3))
    assert torch.equal(found, own)


def test_it_is_for_gpus_and_for_models_whose_cache_can_be_static(model, monkeypatch):
    with static_generation(model, torch.device("cpu")):
        assert "generate" not in vars(model)
    assert takes_static_cache(model)
    assert not takes_static_cache(torch.nn.Linear(1, 1))
    with static_generation(model, torch.device("cpu"), is_wanted=True):
        assert "generate" in vars(model)
    assert "generate" not in vars(model)
    monkeypatch.setattr(greedy, "Greedy", lambda model, device: "static")
    with static_generation(model, torch.device("cuda")):
        assert model.generate == "static"


def test_what_trials_write_for_scoring_is_what_generate_writes(tmp_path, monkeypatch):
    """Of a trial by itself, and of members that share passes."""
    setup = Setup.of(
        model=writer(tmp_path / "model", "llama"), task="causal_language_modelling", options={"new_tokens": 6},
        data={"train": str(write_completions(tmp_path / "train.csv", 80)), "validation_share": 0.4},
        folder=str(tmp_path / "run"), cache=str(tmp_path / "cache"), steps=30, batch_size=16, rungs=(), layout="flat",
    )  # fmt: skip

    def written():
        worker = Worker(setup)
        trials = [Trial(n, {"method": "lora", "lora.lr": 3e-2, "lora.rank": n, "lora.dropout": 0.0}, n) for n in (2, 4)]
        network = worker.network(trials[0])
        for _ in worker.train(network, 2, 30):
            pass
        network.eval()
        stack = Stack(worker, [Member.of(worker, trial) for trial in trials], 2)
        for _ in range(30):
            stack.step()
        every = [worker.answers(network, "validation"), *stack.answers("validation", [0, 1])]
        return [answers.kept["completion"] for answers in every]

    own, calls, call = written(), [], Greedy.__call__

    def counted(self, **given):
        calls.append(len(given["input_ids"]))
        return call(self, **given)

    monkeypatch.setattr(answers_module, "static_generation", partial(static_generation, is_wanted=True))
    call = Greedy.__call__
    monkeypatch.setattr(
        Greedy, "__call__", lambda self, **given: calls.append(len(given["input_ids"])) or call(self, **given)
    )
    assert [list(texts) for texts in written()] == [list(texts) for texts in own]
    assert len(calls) == 2 and calls[1] == 2 * calls[0], "two members side by side"
    assert len({tuple(texts) for texts in own}) > 1 and any(own[0]), "they write, and not all the same"
