"""Row "pickled adapter .bin": a pickle runs nothing, wherever the product loads; and nothing is restored from one."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import autopeft
from autopeft.errors import UsageError
from autopeft.model_folder import digest
from autopeft.training.export import ADAPTER, NAME, TENSORS, load
from autopeft.training.model import load_model, meta_model
from autopeft.training.setup import ModelSpec
from tests.models import bert
from tests.security.stranger import Mark, pickled

AUTO = "AutoModelForSequenceClassification"
# What may run code that a file holds, and where each stands for a reason: Ray's own exceptions, between processes of one
# run over its authenticated connection or in a folder of this user's; the functions that a config names as metrics.
CALLS = {
    "pickle.load", "pickle.loads", "torch.load", "joblib.load", "cloudpickle.load", "cloudpickle.loads", "dill.load",
    "shelve.open", "marshal.load", "marshal.loads", "eval", "exec", "__import__", "os.system", "pd.read_pickle",
}  # fmt: skip
ALLOWED = {
    ("executors/_tune.py", "pickle.load"),
    ("executors/_actor.py", "pickle.loads"),
    ("tasks/_own_metrics.py", "exec"),
}


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "mark"


@pytest.fixture
def base(tmp_path):
    return Path(bert(tmp_path / "base"))


def test_a_base_whose_weights_are_a_pickle_with_code(base, mark):
    (base / "model.safetensors").unlink()
    torch.save({"bert.embeddings.word_embeddings.weight": Mark(mark)}, base / "pytorch_model.bin")
    digest(str(base))
    for look in (load_model, meta_model):
        with pytest.raises(UsageError, match="a pickle that holds more than tensors"):
            look(ModelSpec(str(base)), AUTO, 2)
    assert not mark.exists()


def test_weights_in_safetensors_come_before_a_pickle_beside_them(base, mark):
    (base / "pytorch_model.bin").write_bytes(pickled(mark))
    load_model(ModelSpec(str(base)), AUTO, 2)
    assert not mark.exists()


def adapter(base: Path, folder: Path) -> Path:
    """An export of stock form, as `export` writes it."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load_model(ModelSpec(str(base)), AUTO, 2), LoraConfig(target_modules=["query"]))
    model.save_pretrained(folder)
    about = {
        "schema": 2, "form": "peft", "base": str(base), "revision": None, "trust_remote_code": False,
        "task": "text_classification", "options": {}, "auto_class": AUTO, "data": {"text": "text"}, "max_length": None,
        "attention": "eager", "about": {"n_outputs": 2, "label_names": ["a", "b"]}, "params": {"method": "lora"}, "seed": 0,
    }  # fmt: skip
    (folder / NAME).write_text(json.dumps(about))
    return folder


def test_an_adapter_as_a_pickle(base, tmp_path, mark):
    folder = adapter(base, tmp_path / "adapter")
    assert load(folder), "as it was written"
    (folder / ADAPTER).unlink()
    torch.save({"base_model.model.x": Mark(mark)}, folder / "adapter_model.bin")
    with pytest.raises(UsageError, match="adapters are loaded from safetensors only"):
        load(folder)
    assert not mark.exists()


@pytest.mark.parametrize("form", ["peft", "autopeft"])
def test_a_pickle_under_the_name_of_safetensors(base, tmp_path, mark, form):
    folder = adapter(base, tmp_path / "adapter")
    about = json.loads((folder / NAME).read_text())
    (folder / NAME).write_text(json.dumps({**about, "form": form}))
    for name in (ADAPTER, TENSORS):
        (folder / name).write_bytes(pickled(mark))
    with pytest.raises(UsageError, match="is no safetensors file"):
        load(folder)
    assert not mark.exists()


def test_arrays_of_a_cache_are_no_pickles(tmp_path, mark):
    """As every cache of the product is read: numpy's default, which `test_nothing_is_restored_from_a_pickle` holds."""
    np.save(tmp_path / "rows.npy", np.array([Mark(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        np.load(tmp_path / "rows.npy")
    assert not mark.exists()


def test_nothing_is_restored_from_a_pickle():
    """Every call of the product that could run what a file holds."""
    root, found = Path(autopeft.__file__).parent, set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                unsafe = any(word.arg in ("allow_pickle", "weights_only", "shell") for word in node.keywords)
                if name in CALLS or unsafe or "Tuner.restore" in name:
                    found.add((str(path.relative_to(root)), name))
    assert found == ALLOWED
