"""`autopeft init`: what it guesses from data of every shape, and that the search of what it wrote runs without an edit."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from models import bert, tone, vit, write_texts, write_tones, yamnet
from typer.testing import CliRunner

from autopeft import app, start
from autopeft.cli import cli
from autopeft.config import load
from autopeft.errors import ConfigError, EnvironmentFault, UsageError
from autopeft.guess import guess
from autopeft.guess.tasks import Guess
from autopeft.guess.text import written

N = 120
WORDS = ["good", "bad", "fine", "awful", "day", "night", "film", "song", "nice", "dull"]
RNG = np.random.default_rng(0)
TEXTS = [f"{' '.join(RNG.choice(WORDS, 6))} {row}" for row in range(N)]
OTHERS = [f"{' '.join(RNG.choice(WORDS, 12))} {row}" for row in range(N)]


def png(value):
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def cells(*values):
    return [values[row % len(values)] for row in range(N)]


TABLES = {
    "reviews": ({"id": range(N), "text": TEXTS, "label": cells("neg", "pos", "mixed")},
                {"task": "text_classification", "text": "text", "label": "label"}),
    "other names": ({"review_id": range(N), "what they said": TEXTS, "verdict": cells("a", "b")},
                    {"task": "text_classification", "text": "what they said", "label": "verdict"}),
    "stars": ({"body": TEXTS, "stars": cells(1, 2, 3, 4, 5)},
              {"task": "text_classification", "text": "body", "label": "stars"}),
    "pairs": ({"premise": TEXTS, "hypothesis": OTHERS, "label": cells(0, 1)},
              {"task": "text_classification", "text": ["premise", "hypothesis"], "label": "label"}),
    "numbers": ({"text": TEXTS, "price": RNG.normal(size=N).round(3)},
                {"task": "regression", "text": "text", "label": "price"}),
    "completions": ({"question": TEXTS, "answer": OTHERS},
                    {"task": "causal_language_modelling", "prompt": "question", "completion": "answer"}),
    "a text alone": ({"text": TEXTS}, {"task": "causal_language_modelling", "text": "text"}),
    "intents": ({"text": TEXTS, "intent": cells("pay", "call", "oos")},
                {"task": "intent_classification", "text": "text", "label": "intent"}),
    "users": ({"user": cells(*range(20)), "text": TEXTS, "label": cells("a", "b", "a", "a", "b")},
              {"task": "text_classification", "text": "text", "label": "label", "group": "user"}),
}  # fmt: skip


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("name", TABLES)
def test_the_task_and_the_columns_of_a_table(tmp_path, name, ending):
    table, expected = TABLES[name]
    file, frame = tmp_path / f"rows{ending}", pd.DataFrame(table)
    if ending == ".csv":
        frame.to_csv(file, index=False)
    elif ending == ".jsonl":
        frame.to_json(file, orient="records", lines=True)
    else:
        frame.to_parquet(file)
    found = guess(str(file)).config
    assert found["task"].pop("name") == expected["task"]
    wanted = {key: value for key, value in expected.items() if key != "task"}
    columns = {key: found["data"][key] for key in found["data"] if not key.endswith("share") and key != "train"}
    assert columns == wanted
    assert found["data"]["test_share"] == found["data"]["validation_share"] == 0.2


def test_words_lists_of_labels_and_conversations(tmp_path):
    words = [text.split() for text in TEXTS]
    tags = [["B-x" if word == "film" else "O" for word in row] for row in words]
    said = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
    for name, table, task, keys in (
        ("words", {"tokens": words, "ner_tags": tags}, "token_classification", {"tokens": "tokens", "tags": "ner_tags"}),
        ("spaced", {"w": [" ".join(row) for row in words], "t": [" ".join(row) for row in tags]}, "token_classification",
         {"tokens": "w", "tags": "t"}),
        ("sets", {"text": TEXTS, "topics": cells(["a", "b"], ["b"], ["c"])}, "multilabel_classification",
         {"text": "text", "labels": "topics"}),
        ("chat", {"messages": [said] * N}, "causal_language_modelling", {"messages": "messages"}),
    ):  # fmt: skip
        pd.DataFrame(table).to_json(tmp_path / f"{name}.jsonl", orient="records", lines=True)
        found = guess(str(tmp_path / f"{name}.jsonl")).config
        assert found["task"]["name"] == task
        assert keys.items() <= found["data"].items()


@pytest.mark.parametrize(("config", "space"), [(None, "small_heads"), ({"is_encoder_decoder": True}, "small")])
def test_the_head_is_searched_where_there_is_a_choice(tmp_path, config, space):
    """An encoder-decoder's head is its own."""
    pd.DataFrame({"text": [f"a fine day {n}" for n in range(40)], "label": ["good", "bad"] * 20}).to_csv(
        tmp_path / "t.csv"
    )
    if config is not None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    found = guess(str(tmp_path / "t.csv"), None if config is None else str(tmp_path / "model"))
    assert found.config["space"] == space


def test_splits_of_a_folder_and_the_names_that_came_with_it(tmp_path):
    for name, rows in (("train.csv", 80), ("dev.csv", 20), ("test.csv", 20)):
        pd.DataFrame({"text": TEXTS[:rows], "label": cells(0, 1)[:rows]}).to_csv(tmp_path / name, index=False)
    (tmp_path / "dataset_info.json").write_text(json.dumps({"label_names": ["neg", "pos"]}))
    found = guess(str(tmp_path))
    data = found.config["data"]
    files = {split: data[split].rpartition("/")[2] for split in ("train", "validation", "test")}
    assert files == {"train": "train.csv", "validation": "dev.csv", "test": "test.csv"}
    assert "validation_share" not in found.config["data"]
    assert "'neg', 'pos'" in next(entry.why for entry in found.guesses if entry.key == "data.label")
    (tmp_path / "test.csv").unlink()
    whys = {entry.key: entry.why for entry in guess(str(tmp_path)).guesses}
    assert "it becomes the test" in whys["data.validation"]


def test_how_a_file_is_written(tmp_path):
    rows = [f'"{text}' if row in (3, 9) else text for row, text in enumerate(TEXTS)]
    lines = [f"{text};{label}" for text, label in zip(rows, cells("schön", "mäßig"), strict=True)]
    (tmp_path / "rows.csv").write_bytes("\n".join(["text;label", *lines, ""]).encode("cp1252"))
    found = guess(str(tmp_path / "rows.csv"))
    data = found.config["data"]
    assert (data["separator"], data["encoding"], data["quoting"]) == (";", "cp1252", "none")
    assert load({**found.config, "model": "m", "budget": {"trials": 1}}).data.quoting == "none"


def test_faulty_rows_are_left_out_and_rare_classes_scored_by_class(tmp_path):
    labels = ["rare" if row % 12 == 0 else "often" for row in range(N)]
    labels[5], texts = None, [*TEXTS[:-1], " "]
    pd.DataFrame({"text": texts, "label": labels}).to_csv(tmp_path / "rows.csv", index=False)
    found = guess(str(tmp_path / "rows.csv"))
    assert found.config["data"]["on_fault"] == "skip"
    assert found.config["objectives"] == ["macro_f1", "trainable_parameters"]
    why = next(entry.why for entry in found.guesses if entry.key == "data.on_fault")
    assert why == "train has 1 row without a label: row 5; train has 1 row with an empty 'text': row 119"


def test_pictures_in_class_folders_with_and_without_splits(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(12):
                value = index + 20 * (name == "dog") + 40 * (split == "val")
                (tmp_path / split / name / f"{index}.png").write_bytes(png(value))
    found = guess(str(tmp_path / "train")).config
    assert found["task"]["name"] == "image_classification"
    assert found["data"]["train"] == str(tmp_path / "train")
    both = guess(str(tmp_path)).config["data"]
    assert (both["train"], both["validation"]) == (str(tmp_path / "train"), str(tmp_path / "val"))


def write_sounds(folder, rows):
    """Class folders `low` and `high` of tones, as WAV files at 8 kHz."""
    import soundfile

    for index in range(rows):
        file = folder / ("low", "high")[index % 2] / f"{index}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, tone((200, 1_200)[index % 2], 0.2, seed=index), 8_000)


def test_sounds_in_class_folders_in_a_table_of_paths_and_as_bytes(tmp_path):
    """A model without a feature extractor reads what YAMNet reads; one with an extractor reads by that."""
    pytest.importorskip("soundfile", reason="sounds need the extra audio")
    write_sounds(tmp_path / "sounds_of_classes", 24)
    table = pd.read_csv(write_tones(tmp_path / "paths.csv", 24))
    cells = [{"bytes": (tmp_path / name).read_bytes(), "path": None} for name in table["audio"]]
    table.assign(audio=cells, speaker=[row % 6 for row in range(24)]).to_parquet(tmp_path / "bytes.parquet")
    for model, file in (("patches", None), ("old", "preprocessor_config.json"), ("new", "processor_config.json")):
        (tmp_path / model).mkdir()
        if file:
            (tmp_path / model / file).write_text("{}")
        for source in ("sounds_of_classes", "paths.csv", "bytes.parquet"):
            found = guess(str(tmp_path / source), str(tmp_path / model)).config
            expected = {"name": "audio_classification"} | ({} if file else {"features": "yamnet"})
            assert found["task"] == expected, (source, model)
            assert found["data"].get("group") == ("speaker" if source == "bytes.parquet" else None)
    assert guess(str(tmp_path / "paths.csv")).config["task"] == {"name": "audio_classification"}


def test_completions_for_an_encoder_decoder(tmp_path):
    (tmp_path / "config.json").write_text('{"is_encoder_decoder": true}')
    pd.DataFrame({"question": TEXTS, "answer": OTHERS}).to_csv(tmp_path / "rows.csv", index=False)
    found = guess(str(tmp_path / "rows.csv"), str(tmp_path)).config
    assert found["task"]["name"] == "sequence_to_sequence"
    assert {"prompt": "question", "completion": "answer"}.items() <= found["data"].items()


def test_a_data_set_on_disk(tmp_path):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    table = datasets.Dataset.from_dict({"text": TEXTS, "label": cells(0, 1)}, features=features)
    datasets.DatasetDict(train=table, test=table).save_to_disk(tmp_path / "set")
    found = guess(str(tmp_path / "set"))
    assert found.config["data"]["hub"] == str(tmp_path / "set")
    assert "'no', 'yes'" in next(entry.why for entry in found.guesses if entry.key == "data.label")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n3,4\n", r"no task shows in the columns a \(label\), b \(label\)"),
        ("text,label\n", "no task shows in the columns"),
        (None, "there is no file or folder"),
    ],
)
def test_what_shows_no_task(tmp_path, content, message):
    if content is not None:
        (tmp_path / "rows.csv").write_text(content)
    with pytest.raises((UsageError, ConfigError), match=message):
        guess(str(tmp_path / "rows.csv"))


def test_the_hub_out_of_reach():
    with pytest.raises(EnvironmentFault, match="cannot be had"):
        guess("nobody/nothing")


def test_values_that_yaml_would_read_otherwise_are_quoted(tmp_path):
    from autopeft import yaml_file

    values = ["text", "yes", "007", "1e3", "a: b", "x # y", "émoi 😀", "[a]", "null", "a/b", ""]
    guesses = tuple(Guess(f"data.k{at}", value, "a reason # with: signs\nin lines") for at, value in enumerate(values))
    (tmp_path / "a.yaml").write_text(written(guesses, tmp_path))
    assert list(yaml_file.read(tmp_path / "a.yaml").content["data"].values()) == values


@pytest.mark.parametrize("kind", ["texts", "pictures", "sounds"])
def test_the_search_of_what_it_wrote_runs_without_an_edit(tmp_path, monkeypatch, kind):
    """From a folder of one's own, with paths relative to the config; nothing is asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(start, "PLANNED_DRAWS", 2)  # each method is measured, few of them twice
    (tmp_path / "model").mkdir()
    if kind == "texts":
        bert(tmp_path / "model")
        write_texts(tmp_path / "data.csv", 80)
    elif kind == "sounds":
        pytest.importorskip("soundfile", reason="sounds need the extra audio")
        yamnet(tmp_path / "model")
        write_sounds(tmp_path / "data", 40)
    else:
        vit(tmp_path / "model")
        for index in range(40):
            folder = tmp_path / "data" / ("cat", "dog")[index % 2]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{index}.png").write_bytes(png(5 * index))
    source = "data.csv" if kind == "texts" else "data"
    done = CliRunner().invoke(cli, ["init", source, "--model", "model"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "data.yaml").read_text()
    assert text in done.output
    assert "model: ./model " in text
    assert "costs    about" in done.output
    assert "`autopeft search data.yaml`" in done.output
    run = app.search(load("data.yaml", ["budget.trials=1", "executor=serial", "trackers=[]"]), quiet=True)
    assert len(run.history.trials) == 1
    with pytest.raises(UsageError, match=r"data\.yaml exists: name another file, --to data-2\.yaml"):
        app.init(source, "model")


def test_as_json_and_without_a_model_that_can_be_had(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "data.csv", 80)
    done = CliRunner().invoke(cli, ["init", "data.csv", "--to", "my.yaml", "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert found["file"] == "my.yaml"
    assert found["plan"] is None
    assert {"key": "data.text", "value": "text"}.items() <= next(
        g for g in found["guesses"] if g["key"] == "data.text"
    ).items()
    assert load("my.yaml").model.path == "microsoft/MiniLM-L12-H384-uncased"


@pytest.mark.parametrize(
    ("is_terminal", "model"), [(True, "nobody/said"), (False, "microsoft/MiniLM-L12-H384-uncased")]
)
def test_a_model_is_asked_for_in_a_terminal_alone(tmp_path, monkeypatch, is_terminal, model):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("autopeft.cli._is_asked", lambda: is_terminal)
    write_texts(tmp_path / "data.csv", 80)
    done = CliRunner().invoke(cli, ["init", "data.csv"], input="nobody/said\n", catch_exceptions=False)
    assert load("data.yaml").model.path == model
    assert "costs    not known: " in done.output


def test_the_budget_fits_the_machine(tmp_path):
    from types import SimpleNamespace

    def affordable(trial_seconds, rows):
        plan = SimpleNamespace(work_seconds=40 * trial_seconds, trials=40, slots=1)
        return {entry.key: entry.value for entry in start._affordable(plan, rows)}

    assert affordable(10, 5_000) == {"budget.trials": 40}
    assert affordable(100, 5_000) == {"budget.trials": 18}
    assert affordable(600, 5_000) == {"budget.trials": 12, "data.train_rows": 1_250}
    assert affordable(6_000, 5_000) == {"budget.trials": 12, "data.train_rows": 500}
    assert affordable(6_000, 400) == {"budget.trials": 12}
