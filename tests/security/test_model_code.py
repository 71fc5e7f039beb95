"""Rows "auto_mapping.parent_library" and "trust_remote_code": code that comes with a model runs where its user says so."""

from __future__ import annotations

import json
import sys

import pytest

from autopeft.errors import AutoPEFTError, UsageError
from autopeft.training.export import NAME, load
from autopeft.training.model import load_model, meta_model
from autopeft.training.setup import ModelSpec
from tests.models import bert
from tests.security.stranger import call, module, write_rows, write_search
from tests.security.test_pickles import AUTO, adapter

KERNEL = "kernels-community/flash-attn"


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A module that Python finds, and the mark that its import would leave."""
    (tmp_path / "path").mkdir()
    module(tmp_path / "path" / "strangers_module.py", tmp_path / "mark")
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    yield tmp_path / "mark"
    assert "strangers_module" not in sys.modules


def test_an_adapter_that_names_a_module_in_auto_mapping(tmp_path, stranger):
    """peft has a list of the modules that it imports so; autopeft passes the model, and asks for none."""
    from peft import AutoPeftModel

    folder = adapter(bert(tmp_path / "base"), tmp_path / "adapter")
    mapping = {"base_model_class": "Model", "parent_library": "strangers_module"}
    edit(folder / "adapter_config.json", auto_mapping=mapping, task_type=None)
    with pytest.raises(ValueError, match="not in the import allowlist"):
        AutoPeftModel.from_pretrained(folder)
    load(folder)
    assert not stranger.exists()


def test_an_adapter_that_names_a_module_of_megatron(tmp_path, stranger):
    folder = adapter(bert(tmp_path / "base"), tmp_path / "adapter")
    edit(folder / "adapter_config.json", megatron_config={"x": 1}, megatron_core="strangers_module")
    with pytest.raises(ValueError, match="strangers_module"):
        load(folder)
    assert not stranger.exists()


@pytest.fixture
def coded(tmp_path, monkeypatch):
    """A search whose model brings code: a BERT by another name. Its import leaves the mark `ran` beside the config."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    write_rows(tmp_path / "rows.csv")
    write_search(tmp_path, budget={"trials": 1}, space={"method": ["head"], "head": {"lr": 1e-2}})
    code = module(tmp_path / "model" / "modeling_own.py", tmp_path / "ran")
    code.write_text(
        code.read_text()
        + "from transformers import BertConfig, BertForSequenceClassification\n"
        + "class OwnConfig(BertConfig):\n    model_type = 'own'\n"
        + "class Own(BertForSequenceClassification):\n    config_class = OwnConfig\n"
    )
    auto_map = {"AutoConfig": "modeling_own.OwnConfig", AUTO: "modeling_own.Own"}
    edit(tmp_path / "model" / "config.json", model_type="own", auto_map=auto_map, architectures=["Own"])
    return tmp_path


def test_code_of_a_model_runs_only_where_the_config_says_so_which_is_said_and_recorded(coded):
    ran = coded / "ran"
    for words in (("check", "my.yaml"), ("plan", "my.yaml"), ("search", "my.yaml", "--name", "untrusted")):
        code, said = call(*words, cwd=coded)
        assert code == (0 if words[0] == "check" else 2), said
        assert not ran.exists(), "off by default"
    assert "comes with code, which does not run unless you say so" in said
    code, said = call("search", "my.yaml", "--name", "trusted", "--set", "model.trust_remote_code=true", cwd=coded)
    assert (code, ran.exists()) == (0, True), said
    assert f"note: model.trust_remote_code: code that comes with {coded / 'model'} may run" in said
    ran.unlink()
    run = coded / "runs" / "trusted"
    assert (
        json.loads((run / "ledger.jsonl").read_text().splitlines()[0])["config"]["model"]["trust_remote_code"] is True
    )
    for words in (("report", run), ("front", run), ("runs",), ("leaderboard", run), ("watch", run)):
        assert call(*words, cwd=coded)[0] == 0
        assert not ran.exists(), words
    assert "trust_remote_code" in (run / "report.md").read_text()
    code, said = call("export", run, "--pick", "best", cwd=coded)
    assert (code, ran.exists()) == (2, False), said
    assert "runs code of its own: --trust-remote-code" in said
    code, said = call("export", run, "--pick", "best", "--to", "out", "--trust-remote-code", cwd=coded)
    assert code == 0, said
    assert json.loads((coded / "out" / NAME).read_text())["trust_remote_code"] is True
    ran.unlink()
    rows = ("predict", "out", "rows.csv")
    assert (call(*rows, cwd=coded)[0], ran.exists()) == (2, False)


def test_a_kernel_of_the_hub_is_no_attention(tmp_path):
    """transformers would fetch and run what an attention of such a name is."""
    with pytest.raises(UsageError, match="expected the attention eager or sdpa, got 'kernels-community/flash-attn'"):
        ModelSpec("x", attention=KERNEL)
    base = bert(tmp_path / "base")
    folder = adapter(base, tmp_path / "adapter")
    edit(folder / NAME, attention=KERNEL)
    with pytest.raises(UsageError, match="expected the attention"):
        load(folder)
    edit(tmp_path / "base" / "config.json", attn_implementation=KERNEL, _attn_implementation=KERNEL)
    for look in (meta_model, load_model):
        assert look(ModelSpec(base), AUTO, 2).config._attn_implementation in ("eager", "sdpa")


@pytest.mark.parametrize("changes", [{"auto_class": "pipeline"}, {"task": "os"}, {"schema": "x"}])
def test_an_export_that_names_another_class(tmp_path, changes):
    folder = adapter(bert(tmp_path / "base"), tmp_path / "adapter")
    edit(folder / NAME, **changes)
    with pytest.raises(AutoPEFTError):
        load(folder)
