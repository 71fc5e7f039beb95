"""A language model learns completions: what is scored, what is cut, what is written."""

import math

import numpy as np
import pytest
import torch
from models import write_completions, writer

from autopeft.errors import ConfigError, UsageError
from autopeft.tasks import Ragged, Raw, Source
from autopeft.tasks._text import tokenizer
from autopeft.tasks.causal_language_modelling import CausalLanguageModelling, greedy
from autopeft.training.answers import Answers, score_batches
from autopeft.training.batches import collate, collate_targets
from autopeft.training.data import prepare
from autopeft.training.loop import Worker
from autopeft.training.model import load_model, view
from autopeft.training.recipe import attach
from autopeft.training.setup import ModelSpec, Setup
from autopeft.trial import Trial


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request, tmp_path_factory):
    return writer(tmp_path_factory.mktemp(request.param), request.param)


def encoded(model, prompts, completions=None, max_length=None, **options):
    task = CausalLanguageModelling(**options)
    targets = {} if completions is None else {"completion": completions}
    return task.encoder(Source(model, max_length=max_length), {})(
        Raw({"prompt": prompts}, targets, np.arange(len(prompts)))
    )


def loaded(model):
    return load_model(ModelSpec(model), "AutoModelForCausalLM", 0)


def test_completion_and_end_are_scored_and_the_prompt_is_not(model):
    split = encoded(model, ["good day", "bad"], ["yes it is", "no"])
    labels = [split.targets["labels"][row].tolist() for row in (0, 1)]
    tokens = tokenizer(model, {})
    assert labels[0][:2] == [-100, -100] and labels[1][:1] == [-100]
    assert tokens.decode(labels[0][2:]) == "yes it is <end>" and labels[1][1:] == [tokens("no")["input_ids"][0], 0]
    assert CausalLanguageModelling().weights(split.targets).tolist() == [4, 2]


def test_the_loss_is_that_of_transformers(model):
    """Its own loss, over the same labels, is the mean over the scored tokens."""
    split, base = encoded(model, ["good day", "bad night film"], ["yes it is", "no"]), loaded(model)
    inputs, targets = collate(split, np.arange(2)), collate_targets(split, np.arange(2))
    labels = targets["labels"]
    theirs = base(**inputs, labels=labels).loss
    ours = CausalLanguageModelling().loss(base(**inputs).logits, targets).sum() / 6
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_long_prompt_is_cut_from_the_left(model):
    tokens = tokenizer(model, {})
    prompt = " ".join(["day"] * 20 + ["good", "film"])
    split = encoded(model, [prompt, "bad"], ["yes it is", "no"], max_length=8, new_tokens=3)
    assert tokens.decode(split.inputs["input_ids"][0]) == "day day good film yes it is <end>"
    assert split.targets["cut"].tolist() == [1, 0]
    bare = encoded(model, [prompt], max_length=8, new_tokens=3)
    assert tokens.decode(bare.inputs["input_ids"][0]) == "day day day good film", "what is generated has room"


def test_a_completion_that_leaves_no_room_loses_its_end(model):
    tokens = tokenizer(model, {})
    split = encoded(model, ["good day"], [" ".join(["film"] * 20)], max_length=8)
    assert tokens.decode(split.inputs["input_ids"][0]) == "day" + 7 * " film"
    assert split.targets["cut"].tolist() == [3]


def test_a_prompt_that_fits_is_whole_even_if_generation_needs_its_room(model):
    """What is learned loses nothing for what is generated: there the prompt alone is cut, as it is without an answer."""
    tokens = tokenizer(model, {})
    prompt = "good bad fine awful day night"
    split = encoded(model, [prompt], ["no"], max_length=8, new_tokens=4)
    assert tokens.decode(split.inputs["input_ids"][0]) == f"{prompt} no <end>" and split.targets["cut"].tolist() == [0]
    fixed, start, begins = split.targets["span"][0]
    asked = split.inputs["input_ids"][0][start:begins]
    assert fixed == 0 and np.array_equal(
        asked, encoded(model, [prompt], max_length=8, new_tokens=4).inputs["input_ids"][0]
    )
    assert tokens.decode(asked) == "fine awful day night"


def test_rows_that_are_too_long_are_dropped_where_asked(model):
    long = " ".join(["day"] * 20)
    split = encoded(model, ["good", long, "bad"], ["no", "no", long], max_length=8, too_long="drop")
    assert len(split) == 1 and list(split.left_out) == [1, 2]
    assert split.notes == {"longer than 8 tokens: dropped": 2}
    assert len(encoded(model, [long], max_length=8, too_long="drop")) == 1, "what is asked is answered"
    cut = encoded(model, ["good", long], ["no", "no"], max_length=8)
    assert len(cut) == 2 and cut.notes == {"longer than 8 tokens: cut": 1}


def test_dropped_rows_are_in_no_split_and_are_said(tmp_path):
    long = " ".join(["day"] * 40)
    lines = [f"good,{long if row % 4 == 0 else 'no'}" for row in range(40)]
    (tmp_path / "t.csv").write_text("prompt,completion\n" + "\n".join(lines) + "\n")
    setup = Setup.of(
        model=writer(tmp_path), task="causal_language_modelling", cache=str(tmp_path / "cache"),
        data={"train": str(tmp_path / "t.csv"), "validation_share": 0.25}, options={"too_long": "drop"},
    )  # fmt: skip
    data = prepare(setup)
    assert sum(map(len, data.splits.values())) == 30
    for name, split in data.splits.items():
        assert len(split) == len(data.rows[name]) == data.origin["rows"][name] and not (data.rows[name] % 4 == 0).any()
    counts = [note for note in data.origin["notes"] if "longer than 32 tokens: dropped" in note]
    assert len(counts) == 2 and counts[0].startswith("train: ")
    (tmp_path / "t.csv").write_text("prompt,completion\n" + "\n".join([f"good,{long}"] * 20) + "\n")
    with pytest.raises(ConfigError, match="train has no row left: 15 rows longer than 32 tokens: dropped"):
        prepare(setup)


def test_a_template_is_written_before_it_is_encoded(model):
    data = {"prompt": "{mood} {time}", "completion": "{mood}"}
    task = CausalLanguageModelling()
    raw = Raw({"mood": ["good", "bad"], "time": ["day", "night"]}, {"completion": ["good", "bad"]}, np.arange(2))
    split = task.encoder(Source(model, data=data), {})(raw)
    assert np.array_equal(
        split.inputs["input_ids"].values,
        encoded(model, ["good day", "bad night"], ["good", "bad"]).inputs["input_ids"].values,
    )
    assert task.columns_of(data) == {"mood": "prompt", "time": "prompt"} == task.columns_of(data, inputs_only=True)


def test_a_plain_text_is_learned_whole(model, tmp_path):
    task, tokens = CausalLanguageModelling(), tokenizer(model, {})
    texts = ["good day it is", "bad " * 40]
    raw = Raw({"text": texts}, {"text": texts}, np.arange(2))
    split = task.encoder(Source(model, data={"text": "text"}, max_length=8), {})(raw)
    assert tokens.decode(split.inputs["input_ids"][0]) == "good day it is <end>"
    assert tokens.decode(split.targets["labels"][0][1:]) == "day it is <end>" and split.targets["labels"][0][0] == -100
    assert len(split.inputs["input_ids"][1]) == 8 and split.targets["cut"].tolist() == [0, 2]
    base, found = loaded(model), Answers(task, split)
    for rows in score_batches(split.lengths, base):
        found.take(rows, base(**collate(split, rows)).logits, base)
    assert found.kept["completion"] == [None, None], "there is no completion to write"
    assert set(task.score(found.kept, split.targets, {}).metrics) == {"perplexity", "token_accuracy"}
    asked = task.encoder(Source(model, data={"text": "text"}), {})(Raw({"text": ["good day"]}, {}, np.arange(1)))
    assert tokens.decode(asked.inputs["input_ids"][0]) == "good day"


@pytest.mark.parametrize(
    ("data", "faults"),
    [
        ({"prompt": "a", "messages": "b"}, ["gives 'prompt', 'messages': a row is"]),
        ({"text": "a", "completion": "b"}, ["gives 'completion', 'text'", "`data.text` has none"]),
        ({"text": ["a", "b"]}, ["pairs are for classes", "`data.text` has none"]),
        ({"messages": "{a}"}, ["got the template '{a}'"]),
        ({"prompt": "{a", "completion": "{}"}, ["single '{'", "no column's name"]),
        ({"text": "a"}, ["`data.text` has none"]),
        ({"prompt": "{a}", "completion": "b"}, []),
    ],
)
def test_keys_that_do_not_go_together(data, faults):
    found = CausalLanguageModelling(answer_after="####").data_faults(data)
    assert len(found) == len(faults)
    for fault, expected in zip(found, faults, strict=True):
        assert expected in str(fault)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"too_long": "skip"}, "cut or drop"),
        ({"too_long": "skip", "new_tokens": 0, "generated": ["exact", "rouge"]}, "task: 4 faults"),
        ({"generated": ["exact"]}, "Did you mean 'exact_match'"),
        ({"generated": 3}, "generated: expected a list"),
        ({"answer_after": " "}, "expected the text before an answer"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UsageError, match=message):
        CausalLanguageModelling(**options)


def test_completions_without_the_pattern_are_said(tmp_path):
    lines = ["prompt,completion"] + [f"good,{'#### 1' if row else 'one'}" for row in range(20)]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(ConfigError, match=r"task\.answer_after: \w+ has 1 row without '####': row 0"):
        CausalLanguageModelling(answer_after="####").read({"train": str(tmp_path / "t.csv")}, 0)


def test_what_is_generated_is_scored_with_intervals():
    task = CausalLanguageModelling(answer_after="####", generated=["exact_match", "contains"])
    kept = {"loss": np.array([1.0, 1.0, 1.0]), "right": np.array([1, 0, 1]),
            "completion": ["so #### 1,000.", "it is 5", None], "wanted": ["#### 1000", "#### 5", None]}  # fmt: skip
    labels = Ragged.of([[-100, 5], [-100, 5], [-100, 5]], np.int32, -100)
    found = task.score(kept, {"labels": labels, "cut": np.array([0, 1, 2])}, {})
    assert found.metrics["exact_match"] == 0.5 and found.metrics["contains"] == 1.0
    said = found.detail["row_scores"]["exact_match"]
    assert said["rows"] == 2 and said["interval"] == "Wilson" and 0 < said["low"] < 0.5 < said["high"] < 1
    assert found.detail["completions"] == {
        "rows": 3, "tokens": 3, "generated": 2, "cut_prompts": 1, "cut_completions": 1
    }  # fmt: skip


def test_an_end_token_in_a_text_ends_nothing(model):
    split = encoded(model, ["good"], ["no <end> no"])
    assert (split.targets["labels"][0] == 0).sum() == 1


def test_the_model_writes_what_it_writes_alone(model):
    """Prompts of different lengths, padded on the left, whatever their batch; the same as one forward pass a token."""
    base, tokens = loaded(model), tokenizer(model, {})
    prompts = [torch.tensor(tokens(text)["input_ids"]) for text in ("good", "bad night film song", "fine day")]
    together = greedy(base, tokens, prompts, 5)
    for prompt, answer in zip(prompts, together, strict=True):
        ids = prompt
        with torch.no_grad():
            while len(ids) < len(prompt) + 5 and (len(ids) == len(prompt) or ids[-1] != 0):
                ids = torch.cat([ids, base(input_ids=ids[None]).logits[0, -1].argmax()[None]])
        assert tokens.decode(answer, skip_special_tokens=True) == tokens.decode(
            ids[len(prompt) :], skip_special_tokens=True
        )


@pytest.mark.parametrize("method", ["lora", "ia3", "prefix", "parallel_adapter", "serial_adapter", "norm"])
def test_methods_write_what_their_logits_say(tmp_path, method):
    """The cache of keys and values that generation goes by takes an adapter's part in."""
    path = writer(tmp_path, "llama")
    base, tokens = loaded(path), tokenizer(path, {})
    changed = attach(base, view(base), {"method": method, f"{method}.lr": 1e-2}, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in changed.model.named_parameters():
            if name in changed.trained:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    prompt = torch.tensor(tokens("good day film")["input_ids"])
    (written,) = greedy(changed.model, tokens, [prompt], 6)
    ids = torch.cat([prompt, written])
    with torch.no_grad():
        foretold = changed.model(input_ids=ids[None]).logits[0].argmax(-1)
    assert foretold[len(prompt) - 1 : -1].tolist()[: len(written)] == written.tolist()


def test_no_row_is_generated_where_none_is_asked_for(model):
    task = CausalLanguageModelling(generate_rows=0)
    assert not {"exact_match", "contains"} & set(task.metrics)
    split, base = encoded(model, ["good day"], ["no"]), loaded(model)
    found = Answers(task, split)
    for rows in score_batches(split.lengths, base):
        found.take(rows, base(**collate(split, rows)).logits, base)
    assert found.kept["completion"] == [None]
    assert set(task.score(found.kept, split.targets, {}).metrics) == {"perplexity", "token_accuracy"}


def test_nothing_that_is_kept_has_the_size_of_the_vocabulary(model):
    split, base, task = encoded(model, ["good day"], ["no"]), loaded(model), CausalLanguageModelling()
    found = Answers(task, split)
    found.take(np.arange(1), base(**collate(split, np.arange(1))).logits, base)
    assert all(np.ndim(values[0]) == 0 for values in found.kept.values())


def test_passes_over_many_tokens_have_fewer_rows(model, monkeypatch):
    from autopeft.training import answers

    monkeypatch.setattr(answers, "SCORE_VALUES", 17 * 40)  # 40 tokens of 17 logits
    batches = score_batches(np.array([20, 15, 3, 50, 1]), loaded(model))
    assert [batch.tolist() for batch in batches] == [[3], [0, 1], [2, 4]]


@pytest.mark.parametrize(
    ("prompt", "completion", "message"),
    [("good", "", "empty 'completion'"), ("", "no", "empty 'prompt'")],
)
def test_empty_texts_are_said(tmp_path, prompt, completion, message):
    file = tmp_path / "t.csv"
    file.write_text(f'prompt,completion\ngood,no\nbad,yes\n"{prompt}","{completion}"\n')
    with pytest.raises(ConfigError, match=message):
        CausalLanguageModelling().read({"train": str(file)}, 0)


def test_too_short_a_length_is_said(model):
    with pytest.raises(UsageError, match="max_length"):
        encoded(model, ["good"], ["no"], max_length=1)
    with pytest.raises(UsageError, match="new_tokens"):
        CausalLanguageModelling(new_tokens=0)


def test_it_learns_and_the_base_is_its_baseline(tmp_path):
    """Full fine-tuning of a small model writes the wanted completions; perplexity is exp of the loss."""
    setup = Setup.of(
        model=writer(tmp_path / "model"), task="causal_language_modelling",
        data={"train": str(write_completions(tmp_path / "t.csv", 240)), "validation_share": 0.2, "test_share": 0.2},
        folder=str(tmp_path / "run"), cache=str(tmp_path / "cache"), steps=120, batch_size=16, keep="none",
    )  # fmt: skip
    setup = setup.but(options={"generate_rows": 24, "new_tokens": 6})
    worker = Worker(setup)
    result = list(worker.evaluate(Trial(0, {"method": "full", "full.lr": 5e-3}, 0)))[-1]
    found = result.metrics
    assert found["exact_match"] > 0.9 and found["token_accuracy"] > 0.9, found
    assert math.isclose(found["perplexity"], math.exp(found["loss"]), rel_tol=1e-6)
    assert result.detail["completions"]["generated"] == 24
    data = worker.data
    trivial = data.task.trivial(
        data.splits["train"].targets, data.splits["validation"].targets, data.about,
        lambda: worker.base_answers(data.splits["validation"], data.task).kept,
    )  # fmt: skip
    assert trivial.metrics["perplexity"] > 5 * found["perplexity"]
    assert math.isclose(trivial.metrics["loss"], math.log(trivial.metrics["perplexity"]), rel_tol=1e-6)
    bf16 = Worker(setup.but(precision="bf16", steps=4))
    assert list(bf16.evaluate(Trial(0, {"method": "lora", "lora.lr": 1e-3}, 0)))[-1].metrics["perplexity"] > 1
