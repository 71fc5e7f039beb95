"""An exported adapter is the trained model: in our form, in stock peft's, and in a fresh process."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from architectures import TEXT
from models import bert, write_texts, write_tokenizer
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from autopeft import testing
from autopeft.errors import AutoPEFTError, UsageError
from autopeft.history import History
from autopeft.reports.card import model_card
from autopeft.tasks import Raw
from autopeft.training.batches import collate
from autopeft.training.export import NAME, TENSORS, export, load, verify
from autopeft.training.loop import Worker
from autopeft.training.model import load_model, view
from autopeft.training.recipe import attach, trained_state
from autopeft.training.setup import ModelSpec, Setup
from autopeft.trial import Result, Status, Trial
from tests.reports import histories as h

LABELS = ["bad", "good", "so-so"]
ABOUT = {"label_names": LABELS, "n_outputs": len(LABELS)}
SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fine", "film", "bad", "dull"]
PEFT = [
    {"method": "lora"},
    {"method": "lora", "lora.modules": ["query", "down"], "lora.rank.down": 3, "lora.rslora": True, "lora.layers": [1]},
    {"method": "lora", "lora.dora": True},
    {"method": "ia3"},
    {"method": "vera", "vera.rank": 8},
    {
        "method": "lora",
        "lora.rank.1": 3,
        "lora.rank.query.1": 2,
        "lora.rank.value.0": 0,
        "lora.modules": ["query", "value"],
    },
    {"method": "lora@a+lora@b", "lora@a.rank": 0},
]
OURS = [
    {"method": "head"},
    {"method": "bias"},
    {"method": "norm"},
    {"method": "last_layers"},
    {"method": "full"},
    {"method": "serial_adapter"},
    {"method": "parallel_adapter"},
    {"method": "prefix"},
    {"method": "pissa"},
    {"method": "olora"},
    {"method": "tokens", "tokens.size": 4},
    {"method": "lora+bias"},
    {"method": "lora+ia3"},
    {"method": "lora@a+lora@b", "lora@b.modules": ["query", "down"], "lora@b.rank": 3},
    {"method": "serial_adapter@a+serial_adapter@b", "serial_adapter@b.size.1": 3},
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of tiny pretrained models: a BERT with its tokenizer, a DistilBERT, a BERT without a pooler, and more."""
    torch.manual_seed(0)
    folders = {}

    def save(name, model):
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folders[name])

    text = {"vocab_size": len(WORDS), "max_position_embeddings": 8, "initializer_range": 0.2}
    save("bert", transformers.BertModel(transformers.BertConfig(**text, **SIZE)))
    save("masked", transformers.BertForMaskedLM(transformers.BertConfig(**text, **SIZE)))
    distilbert = transformers.DistilBertConfig(
        dim=16, n_layers=2, n_heads=2, hidden_dim=24, vocab_size=len(WORDS), max_position_embeddings=8
    )
    save("distilbert", transformers.DistilBertModel(distilbert))
    mobilenet = transformers.MobileNetV2Config(image_size=32, depth_multiplier=0.25, num_labels=7)
    save("mobilenet", transformers.MobileNetV2ForImageClassification(mobilenet))
    vit = transformers.ViTConfig(image_size=32, patch_size=16, num_labels=7, **SIZE)
    save("vit", transformers.ViTForImageClassification(vit))
    (folders["bert"] / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(vocab=str(folders["bert"] / "vocab.txt")).save_pretrained(folders["bert"])
    return folders


def trained(base, params, task="text_classification", attention="eager"):
    """(setup, the trained clone, its inputs) of a trial whose every trained tensor has moved."""
    setup = Setup.of(model=str(base), task=task, data={"text": "text"}, folder="", cache="", attention=attention)
    images = task == "image_classification"
    auto_class = "AutoModelForImageClassification" if images else "AutoModelForSequenceClassification"
    model = load_model(ModelSpec(str(base), attention=attention), auto_class, len(LABELS))
    recipe = attach(model, view(model), params, seed=1)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in recipe.model.named_parameters():
            if name in recipe.trained:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    if images:
        return setup, recipe, {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator)}
    return setup, recipe, {
        "input_ids": torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    }  # fmt: skip


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits.numpy()


def exported(setup, recipe, params, to, tmp_path):
    save_file(trained_state(recipe), tmp_path / "trained.safetensors")
    return export(
        setup=setup, params=params, seed=1, tensors=tmp_path / "trained.safetensors", about=ABOUT, to=to,
        card=lambda about: f"# {about['form']}\n", facts={"trial": 17},
    )  # fmt: skip


@pytest.mark.parametrize("params", PEFT + OURS, ids=str)
def test_loaded_logits_are_the_trained_ones(params, bases, tmp_path):
    setup, recipe, inputs = trained(bases["bert"], params)
    folder = exported(setup, recipe, params, tmp_path / "to", tmp_path)
    form = "peft" if params in PEFT else "autopeft"
    assert json.loads((folder / NAME).read_text())["form"] == form
    assert (folder / "README.md").read_text() == f"# {form}\n"
    found = load(folder)
    assert found.about["about"]["label_names"] == LABELS
    assert found.about["trial"] == 17
    assert np.array_equal(logits(found.model, inputs), logits(recipe.model, inputs))


@pytest.mark.parametrize("params", PEFT, ids=str)
@pytest.mark.parametrize("base", ["bert", "distilbert", "masked"])
def test_stock_peft_loads_what_it_can_hold(params, base, bases, tmp_path):
    """With nothing of autopeft's: the base with a head of the right size, and the folder."""
    import peft

    setup, recipe, inputs = trained(bases[base], params)
    folder = exported(setup, recipe, params, tmp_path / "to", tmp_path)
    torch.manual_seed(99)  # of the head that stock transformers draws, and peft replaces
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(
        bases[base], num_labels=3, attn_implementation="eager"
    )
    (folder / NAME).unlink()
    model = peft.PeftModel.from_pretrained(stock, folder).eval()
    assert np.array_equal(logits(model, inputs), logits(recipe.model, inputs))
    config = peft.PeftConfig.from_pretrained(folder)
    assert config.base_model_name_or_path == str(bases[base])
    assert config.inference_mode


@pytest.mark.parametrize("name", sorted(TEXT))
def test_stock_peft_has_the_logits_of_every_architecture(name, tmp_path):
    """Of a batch, on a base in shards, in a folder with spaces and accents."""
    base = tmp_path / "the base, à côté"
    TEXT[name]().save_pretrained(base, max_shard_size="2KB")
    write_tokenizer(base, template=name not in ("gpt2", "llama", "qwen2", "opt", "gpt_neox"))
    kinds = [kind for kind in ("query", "qkv", "up", "down") if kind in view(TEXT[name]()).kinds]
    params = {"method": "lora", "lora.modules": kinds}
    setup, recipe, _ = trained(base, params)
    folder = exported(setup, recipe, params, tmp_path / "to ü", tmp_path)
    split = setup.task.make().encoder(setup.source, {})(Raw({"text": ["a b c d e", "b"]}, {}, np.arange(2)))
    inputs = collate(split, np.arange(2))
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=len(LABELS), attn_implementation="eager"
    )
    pad = json.loads((folder / NAME).read_text())["pad_token_id"]
    if pad is not None:
        stock.config.pad_token_id = pad
    expected = logits(recipe.model, inputs)
    for found in (PeftModel.from_pretrained(stock, str(folder)).eval(), load(folder).model):
        assert np.abs(logits(found, inputs) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_decoder_without_a_padding_token_in_stock_peft(tmp_path, monkeypatch, capsys):
    """A batch has the logits that were trained, in a fresh process and by the code of its card."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=12, n_embd=16, n_layer=2, n_head=2, n_positions=8, bos_token_id=11, eos_token_id=11,
        initializer_range=0.3,
    )  # fmt: skip
    transformers.GPT2Model(config).save_pretrained(tmp_path / "gpt2")
    vocab = {word: index for index, word in enumerate([*WORDS, "the", "</s>"])}
    made = Tokenizer(WordLevel(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = WhitespaceSplit()
    bare = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", padding_side="left")
    bare.save_pretrained(tmp_path / "gpt2")
    setup, recipe, _ = trained(tmp_path / "gpt2", {"method": "lora"})
    history, texts = History(h.search(20)), ["a fine film", "dull"]
    save_file(trained_state(recipe), tmp_path / "trained.safetensors")
    folder = export(
        setup=setup, params={"method": "lora"}, seed=1, tensors=tmp_path / "trained.safetensors", about=ABOUT,
        to=tmp_path / "to", card=card_of(history.front()[0], history), facts={},
    )  # fmt: skip
    split = setup.task.make().encoder(setup.source, ABOUT)(Raw({"text": texts}, {}, np.arange(2)))
    alone = np.concatenate([logits(recipe.model, collate(split, np.array([row]))) for row in (0, 1)])
    assert verify(folder, alone, collate(split, np.arange(2))) <= 1e-5
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[0]
    monkeypatch.chdir(folder)
    space = {}
    exec(compile(code.replace('["a text"]', repr(texts)), "README.md", "exec"), space)  # noqa: S102
    np.testing.assert_allclose(logits(space["model"], space["inputs"]), alone, atol=1e-5)
    capsys.readouterr()


@pytest.mark.parametrize(("base", "form"), [("vit", "peft"), ("mobilenet", "autopeft")])
def test_images(base, form, bases, tmp_path):
    """Stock peft cannot run an adapter on MobileNet's padded convolutions: that one is ours."""
    params = {"method": "lora"}
    setup, recipe, inputs = trained(bases[base], params, "image_classification")
    folder = exported(setup, recipe, params, tmp_path / "to", tmp_path)
    assert load(folder).about["form"] == form
    assert np.array_equal(logits(load(folder).model, inputs), logits(recipe.model, inputs))


@pytest.mark.parametrize(
    ("params", "attention"),
    [
        ({"method": "lora"}, "sdpa"),
        ({"method": "prefix+bias"}, "eager"),
        ({"method": "adalora"}, "eager"),
        ({"method": "pissa"}, "eager"),
    ],
)
def test_verified_in_a_fresh_process(params, attention, bases, tmp_path):
    setup, recipe, inputs = trained(bases["bert"], params, attention=attention)
    folder = exported(setup, recipe, params, tmp_path / "to", tmp_path)
    assert verify(folder, logits(recipe.model, inputs), inputs) == 0.0
    if params["method"] == "lora":
        with pytest.raises(AutoPEFTError, match="gives other logits"):
            verify(folder, logits(recipe.model, inputs) + 0.01, inputs)
        (folder / "adapter_model.safetensors").unlink()
        with pytest.raises(AutoPEFTError, match="does not load in a fresh process"):
            verify(folder, logits(recipe.model, inputs), inputs)


def test_the_processor_travels_along(bases, tmp_path):
    setup, recipe, _ = trained(bases["bert"], {"method": "lora"})
    folder = exported(setup, recipe, {"method": "lora"}, tmp_path / "to", tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("a fine film")["input_ids"] == [2, 5, 6, 7, 3]


def test_the_image_processor_makes_the_pixels_that_were_trained_on(bases, tmp_path):
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(bases["vit"])
    params = {"method": "lora"}
    setup, recipe, _ = trained(bases["vit"], params, "image_classification")
    setup = setup.but(data={"image": "image", "image_size": 16})
    folder = exported(setup, recipe, params, tmp_path / "to", tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = processor([np.zeros((40, 50, 3), dtype=np.uint8)], return_tensors="np")["pixel_values"]
    assert pixels.shape == (1, 3, 16, 16)


# ── the model card's own code ───────────────────────────────────────────────────────────────────────────────────────


def card_of(record, history):
    return lambda about: model_card(history, record, h.describe, "autopeft export runs/a --pick best", about)


@pytest.mark.parametrize(
    ("params", "text"),
    [({"method": "lora"}, "text"), ({"method": "lora"}, ["one", "two"]), ({"method": "bias"}, ["one", "two"])],
    ids=str,
)
def test_code_of_the_model_card_for_texts(params, text, bases, tmp_path, monkeypatch, capsys):
    history = History(h.search(20))
    setup, recipe, _ = trained(bases["bert"], params)
    setup = setup.but(data={"text": text}, max_length=6)
    save_file(trained_state(recipe), tmp_path / "trained.safetensors")
    folder = export(
        setup=setup, params=params, seed=1, tensors=tmp_path / "trained.safetensors", about=ABOUT,
        to=tmp_path / "to", card=card_of(history.front()[0], history), facts={},
    )  # fmt: skip
    card = (folder / "README.md").read_text()
    codes = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(codes) == (2 if params["method"] == "lora" else 1)
    columns = [text] if isinstance(text, str) else text
    expected = load(folder).predict({name: ["a text"] for name in columns})["label"][0]
    monkeypatch.chdir(folder)
    for code in codes:
        assert str(bases["bert"]) not in code  # a card is published, the folders of this machine are not
        exec(compile(code, "README.md", "exec"), {})  # noqa: S102  (our own card)
        assert expected in capsys.readouterr().out


def test_code_of_the_model_card_for_pictures(bases, tmp_path, monkeypatch, capsys):
    history = History(h.search(20))
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(bases["vit"])
    params = {"method": "lora"}
    setup, recipe, _ = trained(bases["vit"], params, "image_classification")
    save_file(trained_state(recipe), tmp_path / "trained.safetensors")
    folder = export(
        setup=setup.but(data={"image": None}), params=params, seed=1, tensors=tmp_path / "trained.safetensors",
        about=ABOUT, to=tmp_path / "to", card=card_of(history.front()[0], history), facts={},
    )  # fmt: skip
    monkeypatch.chdir(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("picture.png")
    for code in re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL):
        exec(compile(code, "README.md", "exec"), {})  # noqa: S102  (our own card)
        assert load(folder).predict({"image": ["picture.png"]})["label"][0] in capsys.readouterr().out
    (tmp_path / "to" / "more").mkdir()
    for name in ("b.png", "a.png"):
        Image.fromarray(pixels).save(tmp_path / "to" / "more" / name)
    frame = load(folder).predict_file("more")
    (tmp_path / "to" / "none").mkdir()
    with pytest.raises(UsageError, match=r"none: 1 fault\n  holds no picture: expected \.png"):
        load(folder).predict_file("none")
    assert frame["file"].tolist() == ["a.png", "b.png"]
    assert list(frame)[1:] == list(load(folder).predict({"image": ["picture.png"]}))


def test_only_safetensors_and_text_are_written(bases, tmp_path):
    setup, recipe, _ = trained(bases["bert"], {"method": "lora+bias"})
    folder = exported(setup, recipe, {"method": "lora+bias"}, tmp_path / "to", tmp_path)
    assert {path.suffix for path in folder.iterdir()} <= {".safetensors", ".json", ".md", ".txt"}


def test_predict(bases, tmp_path):
    setup, recipe, inputs = trained(bases["bert"], {"method": "lora"})
    folder = exported(setup, recipe, {"method": "lora"}, tmp_path / "to", tmp_path)
    frame = load(folder).predict({"text": ["a fine film", "bad"]})
    assert isinstance(frame, pd.DataFrame)
    assert list(frame) == ["label", "p(bad)", "p(good)", "p(so-so)"]
    expected = torch.from_numpy(logits(recipe.model, inputs)).softmax(-1).numpy()
    assert np.allclose(frame.iloc[:, 1:].to_numpy(float), expected, atol=1e-6)
    assert list(frame["label"]) == [LABELS[index] for index in expected.argmax(axis=1)]
    (tmp_path / "rows.csv").write_text("text\na fine film\nbad\n")
    pd.testing.assert_frame_equal(load(folder).predict_file(tmp_path / "rows.csv"), frame)
    (tmp_path / "none.csv").write_text("text\n")
    with pytest.raises(UsageError, match="expected a row or more to predict, as many of each column; got 0 of text"):
        load(folder).predict_file(tmp_path / "none.csv")


def test_columns_go_by_name(bases, tmp_path):
    """By position, an export trained on pairs answered for the pair the wrong way round, and for columns of any name."""
    setup, recipe, _ = trained(bases["bert"], {"method": "lora"})
    setup = setup.but(data={"text": ["question", "answer"]})
    adapter = load(exported(setup, recipe, {"method": "lora"}, tmp_path / "to", tmp_path))
    rows = {"question": ["a fine film", "bad"], "answer": ["so dull", "night"]}
    frame = adapter.predict(rows)
    pd.testing.assert_frame_equal(adapter.predict(dict(reversed(rows.items()))), frame)
    swapped = adapter.predict({"question": rows["answer"], "answer": rows["question"]})
    assert not np.allclose(swapped.iloc[:, 1:].to_numpy(float), frame.iloc[:, 1:].to_numpy(float), atol=1e-6)
    for wrong, message in (
        ({"question": ["a"]}, "expected the columns question, answer; got no column 'answer'"),
        ({**rows, "label": ["x", "y"]}, "got unknown columns 'label'"),
        ({"question": ["a", "b"], "answer": ["c"]}, "got 2 of question, 1 of answer"),
        ({"question": ["a", None], "answer": ["c", "d"]}, "1 row without 'question': row 1"),
        ({"question": ["a", ["x"]], "answer": ["c", "d"]}, "expected a text, got a list in row 1"),
    ):
        with pytest.raises(UsageError, match=message):
            adapter.predict(wrong)


def test_a_file_has_as_many_answers_as_rows_in_their_order(bases, tmp_path):
    """An empty line of a file of one column is a row: it is said, not skipped."""
    setup, recipe, _ = trained(bases["bert"], {"method": "head"})
    adapter = load(exported(setup, recipe, {"method": "head"}, tmp_path / "to", tmp_path))
    (tmp_path / "rows.csv").write_text("text\nbad\n\ngood\n")
    with pytest.raises(UsageError, match="1 row without 'text': row 1"):
        adapter.predict_file(tmp_path / "rows.csv")
    (tmp_path / "two.csv").write_text("text,n\nbad,1\n\ngood,2\n")
    assert len(adapter.predict_file(tmp_path / "two.csv")) == 2


def test_load_says_what_is_wrong(bases, tmp_path):
    with pytest.raises(UsageError, match=r"no exported adapter: it has no autopeft\.json"):
        load(tmp_path)
    setup, recipe, _ = trained(bases["bert"], {"method": "head"})
    folder = exported(setup, recipe, {"method": "head"}, tmp_path / "to", tmp_path)
    newer = tmp_path / "newer"
    shutil.copytree(folder, newer)
    (newer / NAME).write_text(json.dumps({**json.loads((folder / NAME).read_text()), "schema": 99}))
    with pytest.raises(UsageError, match="upgrade autopeft"):
        load(newer)
    save_file({"strange": torch.zeros(1)}, newer / TENSORS)
    (newer / NAME).write_text((folder / NAME).read_text())
    with pytest.raises(UsageError, match="another recipe"):
        load(newer)


def test_code_of_the_base_runs_only_where_the_caller_says_so(bases, tmp_path):
    setup, recipe, _ = trained(bases["bert"], {"method": "head"})
    folder = exported(setup, recipe, {"method": "head"}, tmp_path / "to", tmp_path)
    (folder / NAME).write_text(json.dumps({**json.loads((folder / NAME).read_text()), "trust_remote_code": True}))
    with pytest.raises(UsageError, match="runs code of its own"):
        load(folder)
    assert load(folder, trust_remote_code=True)


def test_the_base_may_have_moved(bases, tmp_path, monkeypatch):
    setup, recipe, inputs = trained(bases["bert"], {"method": "bias"})
    folder = exported(setup, recipe, {"method": "bias"}, tmp_path / "to", tmp_path)
    moved = tmp_path / "moved"
    shutil.copytree(bases["bert"], moved)
    assert np.array_equal(logits(load(folder, base=str(moved)).model, inputs), logits(recipe.model, inputs))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert np.array_equal(logits(load(folder, base="~/moved").model, inputs), logits(recipe.model, inputs))
    with pytest.raises(UsageError, match=r"the base model is not at .*base=.*--base"):
        load(folder, base=str(tmp_path / "nowhere"))


def test_an_export_of_the_first_schema_is_still_read(bases, tmp_path):
    """It knew classifications only: label names where the description of the data is now, and no options of a task."""
    setup, recipe, inputs = trained(bases["bert"], {"method": "bias"})
    folder = exported(setup, recipe, {"method": "bias"}, tmp_path / "to", tmp_path)
    about = json.loads((folder / "autopeft.json").read_text())
    old = {key: value for key, value in about.items() if key not in ("options", "about")}
    old |= {"schema": 1, "label_names": about["about"]["label_names"]}
    (folder / "autopeft.json").write_text(json.dumps(old))
    found = load(folder)
    assert np.array_equal(logits(found.model, inputs), logits(recipe.model, inputs))
    assert set(found.predict({"text": ["a good day"]})["label"]) <= set(about["about"]["label_names"])


def test_the_base_is_not_changed_by_exporting(bases, tmp_path):
    before = testing.checksum(load_model(ModelSpec(str(bases["bert"])), "AutoModelForSequenceClassification", 3))
    setup, recipe, _ = trained(bases["bert"], {"method": "full"})
    exported(setup, recipe, {"method": "full"}, tmp_path / "to", tmp_path)
    assert (
        testing.checksum(load_model(ModelSpec(str(bases["bert"])), "AutoModelForSequenceClassification", 3)) == before
    )


# ── of trials that a worker trained ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    (folder / "model").mkdir()
    data = {"train": str(write_texts(folder / "train.csv", 160)), "text": "text", "label": "label",
            "validation_share": 0.25, "test_share": 0.25}  # fmt: skip
    setup = Setup.of(
        model=bert(folder / "model"), task="text_classification", data=data, folder=str(folder / "run"),
        cache=str(folder / "cache"), epochs=4, batch_size=16, keep="all", prefix_cache_bytes=0, rungs=(),
    )  # fmt: skip
    return Worker(setup)


def of_worker(worker, method, number, to):
    """(the largest difference in a fresh process, the trial, its tensors), of a trial trained now."""
    trial = Trial(number, {"method": method, f"{method.split('+')[0]}.lr": 5e-3, "head.lr": 1e-2}, 5)
    (result,) = list(worker.evaluate(trial))
    assert isinstance(result, Result)
    assert result.status is Status.COMPLETE, result.error
    tensors = f"{worker.setup.folder}/trials/{number:05d}/{TENSORS}"
    export(
        setup=worker.setup, params=trial.params, seed=trial.seed, tensors=tensors, to=to, card=lambda about: "x",
        about=worker.data.about, facts={"trial": number},
    )  # fmt: skip
    return verify(to, *worker.sample(trial, tensors)), trial, tensors


def test_a_trained_adapter_in_stock_peft(worker, tmp_path):
    assert of_worker(worker, "lora", 1, tmp_path / "out")[0] <= 1e-6
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", NAME, "tokenizer_config.json"} <= names
    (tmp_path / "new.csv").write_text("texts\nfine\n")
    with pytest.raises(UsageError, match=r"no such column.*Did you mean 'texts'"):
        load(tmp_path / "out").predict_file(tmp_path / "new.csv")


def test_a_trained_composition_in_our_form(worker, tmp_path):
    difference, trial, tensors = of_worker(worker, "serial_adapter+prefix", 2, tmp_path / "out")
    assert difference <= 1e-6
    state = load_file(tmp_path / "out" / TENSORS)
    save_file({name: tensor + 0.5 for name, tensor in state.items()}, tmp_path / "out" / TENSORS)
    with pytest.raises(AutoPEFTError, match="other logits"):
        verify(tmp_path / "out", *worker.sample(trial, tensors))


def test_a_trained_model_predicts_rows_and_files(worker, tmp_path):
    of_worker(worker, "full", 3, tmp_path / "out")
    found = load(tmp_path / "out")
    assert found.predict({"text": ["good nice day", "bad dull film"]})["label"].tolist() == ["positive", "negative"]
    (tmp_path / "new.csv").write_text("text\nfine nice song\n")
    assert found.predict_file(tmp_path / "new.csv")["label"].tolist() == ["positive"]


def test_a_chosen_head_cannot_be_merged(bases, tmp_path):
    params = {"method": "lora", "head.pooling": "mean"}
    setup, recipe, _ = trained(bases["bert"], params)
    save_file(trained_state(recipe), tmp_path / "trained.safetensors")
    given = {"setup": setup, "seed": 1, "tensors": tmp_path / "trained.safetensors", "about": ABOUT,
             "card": lambda about: "", "facts": {}}  # fmt: skip
    with pytest.raises(UsageError, match="none of the architecture's"):
        export(params=params, to=tmp_path / "merged", merged=True, **given)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(("base", "task"), [("bert", "text_classification"), ("vit", "image_classification")])
def test_a_merged_classifier_is_a_stock_one(base, task, bases, tmp_path):
    """With the names of its labels, and nothing of autopeft's."""
    params = {"method": "lora+bias", "lora.modules": "all"}
    setup, recipe, inputs = trained(bases[base], params, task)
    save_file(trained_state(recipe), tmp_path / "trained.safetensors")
    folder = export(
        setup=setup, params=params, seed=1, tensors=tmp_path / "trained.safetensors", about=ABOUT, card=lambda _: "",
        facts={}, to=tmp_path / "merged", merged=True,
    )  # fmt: skip
    auto = "AutoModelForImageClassification" if base == "vit" else "AutoModelForSequenceClassification"
    expected = logits(recipe.model, inputs)
    (folder / NAME).rename(tmp_path / NAME)
    stock = getattr(transformers, auto).from_pretrained(folder, attn_implementation="eager").eval()
    assert np.abs(logits(stock, inputs) - expected).max() <= 1e-5 * np.abs(expected).max()
    assert list(stock.config.id2label.values()) == LABELS
    (tmp_path / NAME).rename(folder / NAME)
    assert np.abs(logits(load(folder).model, inputs) - expected).max() <= 1e-5 * np.abs(expected).max()
