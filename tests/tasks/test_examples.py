"""The unchanged base, shown examples: one more baseline of a language model."""

import subprocess
import sys

import numpy as np
import pytest
from models import CHAT, write_chats, write_completions, writer

from autopeft import app, config, ledger
from autopeft.errors import ConfigError, UsageError
from autopeft.history import SHOWN
from autopeft.tasks import Raw, Source
from autopeft.tasks._text import tokenizer
from autopeft.tasks.causal_language_modelling import CausalLanguageModelling

PROMPTS, ANSWERS = ["good day", "bad night", "fine film"], ["yes", "no", "yes it is"]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request, tmp_path_factory):
    return writer(tmp_path_factory.mktemp(request.param), request.param)


def shown(model, examples, rows=(0, 1, 2), data=None, **options):
    task, source = CausalLanguageModelling(examples=examples, new_tokens=4, **options), Source(model, data=data or {})
    raw = Raw({"prompt": PROMPTS}, {"completion": ANSWERS}, np.arange(3))
    split = task.encoder(source, {})(raw)
    return tokenizer(model, {}), task.shown(split, split, source, {}, 0)


def test_examples_stand_before_each_prompt_and_are_not_learned(model):
    tokens, found = shown(model, [{"prompt": "dull song", "completion": "not"}, {"prompt": "nice", "completion": "it"}])
    assert found.title == "untouched base, shown 2 examples"
    ids, labels = found.split.inputs["input_ids"][1], found.split.targets["labels"][1]
    assert tokens.decode(ids) == "dull song not nice it bad night no <end>"
    assert tokens.decode(labels[labels != -100]) == "no <end>"
    fixed, start, begins = found.split.targets["span"][1]
    assert tokens.decode(ids[[*range(fixed), *range(start, begins)]]) == "dull song not nice it bad night"
    assert found.task.stop == "\n\n"


def test_examples_of_train_are_drawn_by_seed(model):
    tokens, found = shown(model, 2)
    (_, again), (_, more) = shown(model, 2), shown(model, 9)
    assert np.array_equal(found.split.inputs["input_ids"].values, again.split.inputs["input_ids"].values)
    assert "shown 3 examples" in more.title, "there are no more rows"
    assert tokens.decode(found.split.inputs["input_ids"][0]).endswith("good day yes <end>")
    assert shown(model, 0)[1] is None and shown(model, None)[1] is None


def test_examples_that_do_not_fit_are_left_out(model):
    long = {"prompt": " ".join(["day"] * 14), "completion": "no"}
    tokens, found = shown(model, [long, long, {"prompt": "nice", "completion": "it"}])
    assert found.title == "untouched base, shown up to 3 examples (2.0 on average)"
    assert len(found.split.inputs["input_ids"][0]) <= 28, "what is generated has room"
    assert tokens.decode(found.split.inputs["input_ids"][0]).endswith("nice it good day yes <end>")


def test_examples_of_which_none_fits_are_no_baseline(model):
    with pytest.raises(UsageError, match="none of the examples fits into 28 tokens"):
        shown(model, [{"prompt": " ".join(["day"] * 30), "completion": "no"}])


def test_it_answers_the_rows_that_are_generated(model):
    _, found = shown(model, 1, generate_rows=2)
    assert len(found.split) == 2 and found.title.endswith("shown 1 example, first 2 rows")


def test_of_conversations_they_are_conversations(tmp_path):
    model = writer(tmp_path, "llama", CHAT)
    task, source = CausalLanguageModelling(examples=1, new_tokens=4), Source(model, data={"messages": "messages"})
    talk = [{"role": "user", "content": "good"}, {"role": "assistant", "content": "yes"}]
    split = task.encoder(source, {})(Raw({"messages": [talk] * 2}, {"messages": [talk] * 2}, np.arange(2)))
    found = task.shown(split, split, source, {}, 0)
    said = tokenizer(model, {}).decode(found.split.inputs["input_ids"][0])
    assert said == "<user> good <end> <assistant> yes <end> " * 1 + "<user> good <end> <assistant> yes <end>"
    assert found.task.stop is None


@pytest.mark.parametrize("examples", [-1, True, "three", [], [3]])
def test_wrong_examples(examples):
    with pytest.raises(UsageError, match="examples is a number"):
        CausalLanguageModelling(examples=examples)


def test_an_example_without_a_column_is_said(model):
    with pytest.raises(ConfigError, match="one has no 'completion': each has completion, prompt"):
        shown(model, [{"prompt": "good"}])


@pytest.mark.parametrize("form", ["completions", "chat"])
def test_it_is_a_baseline_of_search_and_confirmation(tmp_path, form):
    (tmp_path / "model").mkdir()
    is_chat = form == "chat"
    file = write_chats(tmp_path / "t.jsonl", 40) if is_chat else write_completions(tmp_path / "t.csv", 40)
    columns = {"messages": "messages"} if is_chat else {}
    settings = {
        "model": writer(tmp_path / "model", "llama", CHAT if is_chat else None),
        "task": {"name": "causal_language_modelling", "generate_rows": 4, "new_tokens": 4, "examples": 2},
        "data": {"train": str(file), "validation_share": 0.2, "test_share": 0.2, **columns},
        "space": {"method": ["lora"]}, "objectives": ["exact_match", "trainable_parameters"],
        "training": {"steps": 2, "precision": "fp32", "attention": "eager"}, "sampler": "random", "stopper": "never",
        "executor": "serial", "budget": {"trials": 1}, "trackers": [], "keep": "all",
    }  # fmt: skip
    run = app.search(config.load(settings), tmp_path / "run", quiet=True)
    header = ledger.read(run.folder / ledger.NAME)[0]
    assert "exact_match" in header["baselines"][SHOWN]
    run.confirm(2, quiet=True)
    report = (run.folder / "report.md").read_text()
    title = "untouched base, shown up to 2 examples" if is_chat else "untouched base, shown 2 examples, first 4 rows"
    assert title in report
    table = report.split("## Scores over rows")[1].split("##")[0]
    assert table.count(title) == 4, "two scores, validation and test"
    assert "Wilson" in table and "best and knee" in table
    assert "Scores over rows" in (run.folder / "report.html").read_text()
    if is_chat:
        folder = run.export("best", tmp_path / "adapter")
        code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
        assert "apply_chat_template" in code
        subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)
        (tmp_path / "new.jsonl").write_text((tmp_path / "t.jsonl").read_text().splitlines()[0] + "\n")
        assert list(app.predict(folder, tmp_path / "new.jsonl").columns) == ["completion"]
        assert next(app.follow(folder, [b"good day\n"])).keys() == {"completion"}
