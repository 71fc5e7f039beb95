"""Conversations by a model's own chat template: what is learned, with the template's marks and without."""

import json

import numpy as np
import pytest
from models import CHAT, UNMARKED_CHAT, write_chats, writer

from autopeft.errors import ConfigError, UsageError
from autopeft.tasks import Raw, Source
from autopeft.tasks._chat import ChatTemplate, conversation, conversation_faults
from autopeft.tasks._text import tokenizer
from autopeft.tasks._writing import end_tokens
from autopeft.tasks.causal_language_modelling import CausalLanguageModelling
from autopeft.training.model import load_model
from autopeft.training.setup import ModelSpec

TALK = [
    {"role": "system", "content": "good"},
    {"role": "user", "content": "day is"},
    {"role": "assistant", "content": "yes it"},
    {"role": "user", "content": "film"},
    {"role": "assistant", "content": "no"},
]
LEARNED = "yes it <end> | no <end>"


@pytest.fixture(scope="module", params=[CHAT, UNMARKED_CHAT], ids=["marked", "unmarked"])
def model(request, tmp_path_factory):
    return writer(tmp_path_factory.mktemp("chat"), "llama", request.param)


def encoded(model, talks, is_answered=True, max_length=None, **options):
    source = Source(model, data={"messages": "talk"}, max_length=max_length)
    targets = {"messages": talks} if is_answered else {}
    return CausalLanguageModelling(**options).encoder(source, {})(Raw({"talk": talks}, targets, np.arange(len(talks))))


def spans(tokens, labels):
    """The learned tokens, runs apart."""
    runs, last = [], None
    for at, label in enumerate(labels):
        if label != -100:
            runs = [*runs, [label]] if last != at - 1 else [*runs[:-1], [*runs[-1], label]]
            last = at
    return " | ".join(tokens.decode(run) for run in runs)


def test_the_assistants_turns_are_learned_and_nothing_else(model):
    tokens, split = tokenizer(model, {}), encoded(model, [TALK])
    assert tokens.decode(split.inputs["input_ids"][0]) == (
        "<system> good <end> <user> day is <end> <assistant> yes it <end> <user> film <end> <assistant> no <end>"
    )
    assert spans(tokens, split.targets["labels"][0]) == LEARNED


def test_what_stands_behind_the_end_of_a_turn_is_not_learned(tmp_path):
    """As the line break behind <|im_end|>: generation has ended there."""
    path = writer(tmp_path, "llama", UNMARKED_CHAT.replace("{{ ' ' }}{% endfor %}", "{{ ' it ' }}{% endfor %}"))
    tokens, split = tokenizer(path, {}), encoded(path, [TALK])
    assert spans(tokens, split.targets["labels"][0]) == LEARNED
    assert tokens.decode(split.inputs["input_ids"][0]).endswith("<end> it <assistant> no <end>")


def test_json_text_and_a_list_are_one(model):
    one, other = encoded(model, [TALK]), encoded(model, [json.dumps(TALK)])
    assert np.array_equal(one.inputs["input_ids"][0], other.inputs["input_ids"][0])


def test_what_is_asked_is_the_conversation_before_the_last_answer(model):
    """Of a row with an answer as of one without: a file of conversations can be answered as it is."""
    tokens, split = tokenizer(model, {}), encoded(model, [TALK])
    fixed, start, begins = split.targets["span"][0]
    assert fixed == start == 0
    asked = split.inputs["input_ids"][0][:begins].tolist()
    for talk in (TALK, TALK[:-1]):
        assert encoded(model, [talk], is_answered=False).inputs["input_ids"][0].tolist() == asked
    assert tokens.decode(asked).endswith("<user> film <end> <assistant>")


def test_turns_after_the_last_answer_are_left_out(model):
    tokens, split = tokenizer(model, {}), encoded(model, [TALK[:4]])
    assert tokens.decode(split.inputs["input_ids"][0]).endswith("yes it <end>")


def test_a_long_conversation_loses_its_beginning_or_is_dropped(model):
    tokens, split = tokenizer(model, {}), encoded(model, [TALK, TALK[:3]], max_length=9, new_tokens=2)
    assert tokens.decode(split.inputs["input_ids"][0]) == "yes it <end> <user> film <end> <assistant> no <end>"
    assert split.targets["cut"].tolist() == [1, 1] and split.notes == {"longer than 9 tokens: cut": 2}
    dropped = encoded(model, [TALK, TALK[:3]], max_length=12, too_long="drop")
    assert len(dropped) == 1 and dropped.left_out == [0] and dropped.notes == {"longer than 12 tokens: dropped": 1}


def test_generation_ends_where_the_templates_turn_ends(tmp_path):
    path = writer(tmp_path, "llama", CHAT.replace("content'] + ' <end>' }}{% endg", "content'] + ' <user>' }}{% endg"))
    tokens = tokenizer(path, {})
    tokens.add_special_tokens({"additional_special_tokens": ["<user>"]})
    model = load_model(ModelSpec(path), "AutoModelForCausalLM", 0)
    assert end_tokens(tokens, model) == [0, tokens.convert_tokens_to_ids("<user>")]


def test_a_template_that_forgets_is_refused_with_what_to_do(tmp_path):
    """As templates of models that think: of earlier turns they leave something out."""
    forgets = UNMARKED_CHAT.replace(
        "{{ message['content'] + ' <end>' }}{% else %}",
        "{{ (message['content'] if loop.last else 'it') + ' <end>' }}{% else %}",
    )
    model = writer(tmp_path, "llama", forgets)
    assert len(encoded(model, [TALK[:3]])) == 1, "one answer is no trouble"
    with pytest.raises(ConfigError, match=r"row 0: .* writes turn 2 of it otherwise .* one answer"):
        encoded(model, [TALK])


def test_a_template_that_refuses_an_order_names_the_row(tmp_path):
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT
    with pytest.raises(ConfigError, match=r"row 1: .* refuses this conversation: no system role"):
        encoded(writer(tmp_path, "llama", refuses), [TALK[1:], TALK])


def test_a_model_without_a_template_is_said(tmp_path):
    with pytest.raises(UsageError, match="no chat template"):
        encoded(writer(tmp_path), [TALK])
    with pytest.raises(UsageError, match="no chat template"):
        ChatTemplate(tokenizer(writer(tmp_path), {}))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (None, "are empty"),
        ("{", "are no JSON"),
        ("[]", "are no list of messages"),
        ({"role": "user"}, "are no list of messages"),
        ([{"role": "user"}], "have no text `role` and `content` in message 0"),
        ([{"role": "user", "content": "good"}], "have no turn of the assistant"),
        ([{"role": "assistant", "content": "good"}], "begin with the assistant"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}], "have an empty turn"),
    ],
)
def test_cells_that_are_no_conversation(cell, message):
    (fault,) = conversation_faults([TALK, cell, cell], "train", are_answered=True)
    assert (
        message in fault.message
        and "train has 2 rows that" in fault.message
        and fault.rows == (1, 2)
        and fault.path == "data.messages"
    )


def test_null_keys_are_none():
    assert conversation([{"role": "user", "content": "a", "tool_calls": None}]) == [{"role": "user", "content": "a"}]


def test_a_data_set_of_the_hub(tmp_path):
    """As `datasets` saves it to the disk, with messages as a list of structs."""
    import datasets

    rows = [json.loads(line) for line in write_chats(tmp_path / "t.jsonl", 20).read_text().splitlines()]
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(str(tmp_path / "hub"))
    given = {"hub": str(tmp_path / "hub"), "messages": "messages", "validation_share": 0.2}
    data = CausalLanguageModelling().read(given, 0)
    assert sum(map(len, data.splits.values())) == 20
    assert conversation(data.splits["train"].inputs["messages"][0])[0] == {"role": "user", "content": "is it day"}


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_files_of_conversations(tmp_path, ending):
    import pandas as pd

    rows = [json.loads(line) for line in write_chats(tmp_path / "t.jsonl", 20).read_text().splitlines()]
    file = tmp_path / f"t.{ending}"
    if ending == "parquet":
        pd.DataFrame(rows).to_parquet(file)
    elif ending == "csv":
        pd.DataFrame({"messages": [json.dumps(row["messages"]) for row in rows]}).to_csv(file, index=False)
    data = CausalLanguageModelling().read({"train": str(file), "messages": "messages", "validation_share": 0.2}, 0)
    cells = [conversation(cell) for raw in data.splits.values() for cell in raw.inputs["messages"]]
    assert len(cells) == 20 and all(cell[0] == {"role": "user", "content": "is it day"} for cell in cells)
