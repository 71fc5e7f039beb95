"""Tags of words: entities against hand counts and another implementation, windows of long documents, faulty data."""

from __future__ import annotations

import json

import numpy as np
import pytest
from models import bert, write_words

from autopeft.errors import ConfigError, UsageError
from autopeft.tasks import Raw, Source
from autopeft.tasks._entities import Tags, counts, spans
from autopeft.tasks._windows import windows
from autopeft.tasks.token_classification import UNSCORED, TokenClassification, of_tags

NAMES = ["O", "B-person", "I-person", "B-place", "I-place"]
ABOUT = {"label_names": NAMES, "n_outputs": len(NAMES)}


def scores(found, true):
    """Of documents, each a list of tags."""
    documents = np.repeat(np.arange(len(true)), [len(tags) for tags in true])
    found, true = (np.array([NAMES.index(tag) for tags in side for tag in tags]) for side in (found, true))
    return of_tags(found, true, documents, NAMES)


def chunks(tags):
    """Entities as the published conlleval script finds them, tag by tag."""
    out, start = [], None
    for at, (before, tag) in enumerate(zip(["O", *tags], [*tags, "O"], strict=True)):
        ends = before != "O" and (tag == "O" or tag[0] == "B" or tag[2:] != before[2:])
        begins = tag != "O" and (before == "O" or tag[0] == "B" or tag[2:] != before[2:])
        if ends:
            out.append((start, at - 1, before[2:]))
        if begins:
            start = at
    return out


def test_counts_by_hand():
    true = [["B-person", "I-person", "O", "B-place"], ["O", "B-person"]]
    found = [["B-person", "I-person", "O", "B-person"], ["B-place", "B-person"]]
    got = scores(found, true)
    assert got.detail == {
        "of": "entity type", "names": ["person", "place"], "rows": [2, 1], "predicted": [3, 1], "correct": [2, 0],
    }  # fmt: skip
    assert got.metrics == {"f1": 4 / 7, "precision": 2 / 4, "recall": 2 / 3, "accuracy": 4 / 6}


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["I-person", "I-person"], [(0, 1, 0)]),  # begins without a B: an entity, as seqeval counts by default
        (["B-person", "I-place"], [(0, 0, 0), (1, 1, 1)]),
        (["B-person", "B-person"], [(0, 0, 0), (1, 1, 0)]),
        (["O", "O"], []),
        (["B-place", "O", "I-place"], [(0, 0, 1), (2, 2, 1)]),
    ],
)
def test_where_entities_begin_and_end(tags, expected):
    found = spans(np.array([NAMES.index(tag) for tag in tags]), np.zeros(2 if len(tags) == 2 else 3), Tags(NAMES))
    assert list(map(tuple, found.tolist())) == expected


def test_an_entity_ends_with_its_document():
    found = spans(np.array([1, 2, 2]), np.array([0, 0, 1]), Tags(NAMES))
    assert found[:, :2].tolist() == [[0, 1], [2, 2]]


def random_tags(rng, n_documents):
    return [rng.choice(NAMES, rng.integers(1, 12)).tolist() for _ in range(n_documents)]


def test_entities_are_those_of_conlleval():
    rng = np.random.default_rng(0)
    for tags in random_tags(rng, 300):
        found = spans(np.array([NAMES.index(tag) for tag in tags]), np.zeros(len(tags)), Tags(NAMES))
        assert [(start, end, Tags(NAMES).types[kind]) for start, end, kind in found.tolist()] == chunks(tags)


def test_scores_are_those_of_seqeval():
    metrics = pytest.importorskip("seqeval.metrics", reason="seqeval is not installed")
    rng = np.random.default_rng(1)
    for _ in range(50):
        true = random_tags(rng, 8)
        found = [[tag if rng.random() < 0.7 else rng.choice(NAMES) for tag in tags] for tags in true]
        got = scores(found, true).metrics
        assert got["f1"] == pytest.approx(metrics.f1_score(true, found))
        assert got["precision"] == pytest.approx(metrics.precision_score(true, found))
        assert got["recall"] == pytest.approx(metrics.recall_score(true, found))
        assert got["accuracy"] == pytest.approx(metrics.accuracy_score(true, found))


def test_without_entities_all_scores_but_accuracy_are_zero():
    assert scores([["O"]], [["O"]]).metrics == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 1.0}
    assert counts(np.array([0]), np.array([1]), np.array([0]), Tags(NAMES))["predicted"] == [0, 0]


# ── windows ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    bert(folder)
    vocab = folder / "vocab.txt"
    vocab.write_text(vocab.read_text() + "\n##s\n##time")  # "films" and "nighttime" are two tokens
    return str(folder)


def encoded(model, documents, tags=None, max_length=None):
    raw = Raw({"tokens": documents}, {} if tags is None else {"tags": tags}, np.arange(len(documents)))
    return TokenClassification().encoder(Source(model, max_length=max_length), ABOUT)(raw)


def test_the_first_token_of_a_word_has_its_tag(model):
    split = encoded(model, [["films", "[SEP]", "nighttime", "day"]], [[3, 0, 4, 1]])
    assert split.targets["word"][0].tolist()[1:3] == [0, -1]
    tags = split.targets["tags"][0].tolist()
    assert [tag for tag in tags if tag != UNSCORED] == [3, 0, 4, 1]
    assert [word for word in split.targets["word"][0].tolist() if word >= 0] == [0, 1, 2, 3]
    ids = split.inputs["input_ids"][0].tolist()
    assert ids.count(3) == 1, "a control token that is written in a text ends nothing"
    assert (ids[0], ids[-1], tags[0], tags[-1]) == (2, 3, UNSCORED, UNSCORED)


@pytest.mark.parametrize("length", [1, 9, 10, 11, 13, 14, 29, 64])
def test_each_word_of_a_document_is_in_one_window(model, length):
    rng = np.random.default_rng(length)
    words = rng.choice(["films", "day", "nighttime", "song"], length).tolist()
    split = encoded(model, [["day"], words], [[0], rng.integers(0, 5, length).tolist()], max_length=12)
    own = [word for row in range(1, len(split)) for word in split.targets["word"][row].tolist() if word >= 0]
    assert sorted(own) == list(range(length))
    assert max(split.lengths) <= 12
    assert TokenClassification().weights(split.targets).sum() == length + 1
    assert set(split.targets["document"][1:].tolist()) == {1}


def test_a_word_is_where_it_has_most_context(model):
    from transformers import AutoConfig, AutoTokenizer

    found = list(windows(AutoTokenizer.from_pretrained(model), AutoConfig.from_pretrained(model), ["day"] * 26, 12))
    # Ten tokens a window, beginning with tokens 0, 8 and 16: two of each are the next one's, too.
    assert [[word for word in window.words if word >= 0] for window in found] == [
        list(range(9)), list(range(9, 17)), list(range(17, 26)),
    ]  # fmt: skip


def test_words_of_a_tokenizer_of_bytes(model):
    """Where a word of some letters is some bytes, with a space before them; a control token in a text is text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import AutoConfig, PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "<pad>", "</s>"]
    made.train_from_iterator(
        ["a day"] * 9, trainers.BpeTrainer(vocab_size=262, special_tokens=special, initial_alphabet=alphabet)
    )
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True)
    given = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>"}
    tokens = PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=32, **given)
    words = ["\u200b", "day", "</s>", "日本", "x", "a"]
    for length in (32, 12):
        found = list(windows(tokens, AutoConfig.from_pretrained(model), words, length))
        own = {word: window.inputs["input_ids"][at] for window in found for at, word in enumerate(window.words)}
        assert sorted(set(own) - {-1}) == list(range(len(words)))
        pieces = [tokens.convert_ids_to_tokens(own[word]) for word in range(len(words))]
        assert pieces[1].startswith("Ġd")
        assert pieces[2] in ("Ġ", "<"), "not the end token"
        assert all(window.inputs["input_ids"].count(2) == 1 for window in found)


def test_answers_put_documents_together_again():
    task = TokenClassification()
    kept = {
        "document": np.array([7, 3, 7]),
        "words": [np.array([2]), np.array([0, 1]), np.array([0, 1])],
        "tags": [np.array([4]), np.array([0, 1]), np.array([1, 3])],
    }
    assert task.answers(kept, ABOUT) == {"tags": ["O B-person", "B-person B-place I-place"]}


def test_trivial_is_no_entity():
    task = TokenClassification()
    about = {"label_names": ["O", "B-a"], "n_outputs": 2}

    def targets(tags):
        from autopeft.tasks import Ragged

        places = [list(range(len(row))) for row in tags]
        return {"document": np.arange(len(tags)), "word": Ragged.of(places, np.int32, -1),
                "tags": Ragged.of(tags, np.int32, UNSCORED)}  # fmt: skip

    found = task.trivial(targets([[0, 0, 1], [0]]), targets([[0, 1], [1, 0]]), about, dict)
    assert (found.metrics["f1"], found.metrics["accuracy"]) == (0.0, 0.5)
    assert found.metrics["loss"] == pytest.approx(-(np.log(4 / 6) + np.log(2 / 6)) / 2)


# ── data ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read(folder, rows, **data):
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return TokenClassification().read({"train": str(folder / "train.jsonl"), "test_share": 0.2, **data}, 0)


def test_lists_and_text_are_the_same_data(tmp_path):
    import pandas as pd

    write_words(tmp_path / "train.csv", 20)
    frame = pd.read_csv(tmp_path / "train.csv")
    frame.assign(words=frame.words.str.split(), tags=frame.tags.str.split()).to_parquet(tmp_path / "train.parquet")
    task, columns = TokenClassification(), {"tokens": "words", "test_share": 0.2}
    text, lists = (task.read({"train": str(tmp_path / f"train.{end}"), **columns}, 0) for end in ("csv", "parquet"))
    assert text.about == lists.about == {"label_names": ["O", "B-time", "B-work", "I-work"], "n_outputs": 4}
    assert {name: raw.targets for name, raw in text.splits.items()} == {
        name: raw.targets for name, raw in lists.splits.items()
    }
    again = task.read({"train": str(tmp_path / "train.parquet"), **columns}, 0)
    assert lists.origin["digest"] == again.origin["digest"]


def test_codes_with_the_names_beside_them(tmp_path):
    (tmp_path / "dataset_info.json").write_text(json.dumps({"label_names": NAMES}))
    found = read(tmp_path, [{"tokens": ["a", "b"], "ner": [1, 2]}] * 10, tags="ner")
    assert found.about == ABOUT
    assert found.splits["train"].targets["tags"][0] == [1, 2]


def test_wnut17_has_the_entities_that_its_source_counts(shared):
    folder = shared / "data" / "wnut17"
    files = {split: str(folder / f"{split}.parquet") for split in ("train", "validation", "test")}
    found = TokenClassification().read({**files, "tags": "ner_tags"}, 0)
    known, entities = Tags(found.about["label_names"]), {}
    for split, raw in found.splits.items():
        documents = np.repeat(raw.rows, [len(tags) for tags in raw.targets["tags"]])
        entities[split] = len(spans(np.concatenate(raw.targets["tags"]), documents, known))
    assert entities == {"train": 1975, "validation": 836, "test": 1079}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "1 tags for 2 words in row 0"),
        ({"tokens": ["a"], "tags": ["person"]}, "tags are O, B-… and I-…; got 'person'"),
        ({"tokens": ["a"], "tags": [3]}, "Integer codes need data.label_names"),
        ({"tokens": [], "tags": []}, "with no word or an empty one: row 0"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "with no word or an empty one: row 0"),
        ({"tokens": ["a"], "tags": None}, "1 row without tags: row 0"),
    ],
)
def test_faults_of_data(tmp_path, row, expected):
    with pytest.raises(ConfigError, match=expected):
        read(tmp_path, [row, *[{"tokens": ["a", "b"], "tags": ["O", "B-person"]}] * 9])


def test_a_row_to_predict_without_a_word(model):
    with pytest.raises(UsageError, match="row 1"):
        encoded(model, ["a day", " "])
