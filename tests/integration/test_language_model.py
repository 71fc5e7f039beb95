"""A language model through the whole product: searched, killed, resumed, confirmed, exported, asked."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import time

import pytest
import yaml

from autopeft import app, ledger
from autopeft.config import load
from autopeft.ledger import NAME
from tests import commands
from tests.executors.conversations import events
from tests.models import write_completions, writer

STOCK = """
import sys, peft, torch, transformers
folder, *prompts = sys.argv[1:]
model = peft.AutoPeftModelForCausalLM.from_pretrained(folder).eval()
tokens = transformers.AutoTokenizer.from_pretrained(folder)
for prompt in prompts:
    ids = tokens([prompt], return_tensors="pt")["input_ids"]
    written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6)
    print(tokens.decode(written[0, ids.shape[1]:], skip_special_tokens=True))
"""


def config(folder, **options):
    (folder / "model").mkdir()
    return {
        "model": writer(folder / "model"),
        "task": {"name": "causal_language_modelling", "generate_rows": 8, "new_tokens": 6},
        "data": {"train": str(write_completions(folder / "train.csv", 160)), "validation_share": 0.2, "test_share": 0.2},
        "space": {
            "method": ["lora", "bias", "full"],
            "lora": {
                "rank": {"int": [2, 8], "default": 8}, "modules": "all", "alpha": 64,
                "lr": {"float": [1e-3, 1e-1], "log": True, "default": 3e-2},
            },
        },
        "objectives": [{"metric": "perplexity", "scale": "log10"}, "trainable_parameters"],
        "training": {"steps": 60, "batch_size": 16, "precision": "fp32", "attention": "eager"},
        "sampler": "random", "stopper": "never", "budget": {"trials": 6}, "trackers": ["mlflow"], "executor": "serial",
        "keep": "all", **options,
    }  # fmt: skip


def test_from_search_to_prediction_with_a_kill(tmp_path):
    (tmp_path / "lm.yaml").write_text(yaml.safe_dump(config(tmp_path, name="lm", runs="runs")))
    run = tmp_path / "runs" / "lm"
    process = commands.start_autopeft("search", "lm.yaml", cwd=tmp_path, output=tmp_path / "said")

    def count(event):
        return (run / NAME).read_text().count(f'"event": "{event}"') if (run / NAME).exists() else 0

    while not count("tell") and process.is_alive():
        time.sleep(0.01)
    while count("ask") <= count("tell") and process.is_alive():
        time.sleep(0.002)
    process.kill()
    process.join()
    before = count("tell")
    assert 0 < before < 6
    commands.autopeft("resume", str(run), cwd=tmp_path)
    told = [event for event in ledger.read(run / NAME) if event["event"] == "tell"]
    assert len(told) == len({event["number"] for event in told}) == 6
    assert all({"perplexity", "token_accuracy", "exact_match", "loss"} <= set(event["metrics"]) for event in told)
    assert told[0]["detail"]["completions"]["generated"] == 8
    commands.autopeft("confirm", str(run), "--seeds", "2", cwd=tmp_path)
    report = (run / "report.md").read_text()
    assert "untouched base" in report and "majority" not in report
    # LoRA: stock peft writes the same in a fresh process
    lora = next(e["number"] for e in ledger.read(run / NAME) if e["event"] == "ask" and e["params"]["method"] == "lora")
    commands.autopeft("export", str(run), "--pick", f"trial={lora}", "--to", "adapter", cwd=tmp_path)
    prompts = ["good fine day", "awful song bad night", "nice good film film song"]
    (tmp_path / "new.csv").write_text("\n".join(["prompt", *prompts]) + "\n")
    said = commands.autopeft("predict", "adapter", "new.csv", cwd=tmp_path).stdout.splitlines()
    said = [cell for (cell,) in csv.reader(said)]
    assert said[0] == "completion" and len(said) == 4
    done = subprocess.run(
        [sys.executable, "-c", STOCK, "adapter", *prompts], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == said[1:]
    assert json.loads((tmp_path / "adapter" / "autopeft.json").read_text())["form"] == "peft"
    words = [sys.executable, "-m", "autopeft", "predict", "adapter", "--follow"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=tmp_path, **pipes) as following:
        for prompt, completion in zip(prompts, said[1:], strict=True):  # each is answered before the next is sent
            following.stdin.write(prompt + "\n")
            following.stdin.flush()
            assert json.loads(following.stdout.readline()) == {"completion": completion}
        following.stdin.close()
        assert following.wait() == 0
    card = (tmp_path / "adapter" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    assert "generate" in code and "head" not in code
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "adapter", check=True, capture_output=True)
    # merged: the same completions, from a folder that needs no base
    commands.autopeft("export", str(run), "--pick", f"trial={lora}", "--to", "merged", "--merged", cwd=tmp_path)
    shutil.rmtree(tmp_path / "model")
    again = commands.autopeft("predict", "merged", "new.csv", cwd=tmp_path).stdout.splitlines()
    assert [cell for (cell,) in csv.reader(again)] == said
    assert "AutoModelForCausalLM.from_pretrained" in (tmp_path / "merged" / "README.md").read_text()


def test_ray_tune_writes_the_ledger_that_serial_writes(tmp_path, ray_up):
    given = config(tmp_path, budget={"trials": 4}, trackers=[])
    for name, options in {"serial": {}, "ray_tune": {"slots": 1}}.items():
        app.search(load({**given, "executor": {"name": name, **options}}), tmp_path / name, quiet=True)
    assert events(tmp_path / "ray_tune")[1:] == events(tmp_path / "serial")[1:]


def test_packed_has_serials_trials(tmp_path):
    """LoRA trials share passes, and each writes by its own model: scores are those of serial but for rounding."""
    given = config(tmp_path, budget={"trials": 4}, trackers=[])
    given["space"]["lora"]["lr"] = 1e-3  # at larger rates a rounding error grows within these steps
    for name, options in {"serial": {}, "packed": {"slots": 3}}.items():
        app.search(load({**given, "executor": {"name": name, **options}}), tmp_path / name, quiet=True)
    told = {
        name: sorted((e for e in events(tmp_path / name) if e["event"] == "tell"), key=lambda e: e["number"])
        for name in ("packed", "serial")
    }
    assert len(told["serial"]) == len(told["packed"]) == 4
    for packed, serial in zip(told["packed"], told["serial"], strict=True):
        assert packed["status"] == serial["status"] and packed["metrics"] == pytest.approx(serial["metrics"], rel=1e-5)
