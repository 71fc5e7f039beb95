"""An encoder-decoder through the whole product: searched, killed, resumed, confirmed, exported, asked."""

from __future__ import annotations

import csv
import subprocess
import sys
import time

import yaml

from autopeft import ledger
from autopeft.ledger import NAME
from tests import commands
from tests.models import write_completions, write_translator

STOCK = """
import sys, peft, torch, transformers
folder, *prompts = sys.argv[1:]
model = peft.AutoPeftModelForSeq2SeqLM.from_pretrained(folder).eval()
tokens = transformers.AutoTokenizer.from_pretrained(folder)
config = transformers.GenerationConfig.from_pretrained(folder)
for prompt in prompts:
    ids = tokens([prompt], return_tensors="pt")["input_ids"]
    written = model.generate(input_ids=ids, generation_config=config, do_sample=False, max_new_tokens=6)
    print(tokens.decode(written[0], skip_special_tokens=True))
"""


def config(folder):
    (folder / "model").mkdir()
    return {
        "model": write_translator(folder / "model"),
        "task": {"name": "sequence_to_sequence", "generate_rows": 4, "new_tokens": 6},
        "data": {"train": str(write_completions(folder / "train.csv", 120)), "prompt": "sums : {prompt}",
                 "validation_share": 0.2, "test_share": 0.2},
        "space": {
            "method": ["lora", "norm", "prefix"],
            "lora": {"rank": {"int": [2, 8], "default": 8}, "modules": {"subset": "modules", "default": ["query", "value"]},
                     "lr": 3e-2, "layers": {"choice": ["all", "2-3"], "default": "all"}},
        },
        "training": {"steps": 30, "batch_size": 16, "precision": "fp32", "attention": "eager"},
        "sampler": "random", "stopper": "never", "budget": {"trials": 5}, "trackers": ["mlflow"], "executor": "serial",
        "keep": "all", "name": "s2s", "runs": "runs",
    }  # fmt: skip


def test_from_search_to_prediction_with_a_kill(tmp_path):
    (tmp_path / "s2s.yaml").write_text(yaml.safe_dump(config(tmp_path)))
    run = tmp_path / "runs" / "s2s"
    process = commands.start_autopeft("search", "s2s.yaml", cwd=tmp_path, output=tmp_path / "said")

    def count(event):
        return (run / NAME).read_text().count(f'"event": "{event}"') if (run / NAME).exists() else 0

    while not count("tell") and process.is_alive():
        time.sleep(0.01)
    while count("ask") <= count("tell") and process.is_alive():
        time.sleep(0.002)
    process.kill()
    process.join()
    before = count("tell")
    assert 0 < before < 5, (tmp_path / "said").read_text()
    commands.autopeft("resume", str(run), cwd=tmp_path)
    events = ledger.read(run / NAME)
    told = [event for event in events if event["event"] == "tell"]
    assert len(told) == len({event["number"] for event in told}) == 5
    assert {event["status"] for event in told} == {"COMPLETE"}
    assert all({"perplexity", "token_accuracy", "exact_match", "loss"} <= set(event["metrics"]) for event in told)
    assert told[0]["detail"]["completions"]["generated"] == 4
    assert (events[0]["model"]["n_layers"], events[0]["model"]["quantisation"]) == (4, None)
    assert "cross_query" in events[0]["model"]["kinds"]
    lora = next(e for e in events if e["event"] == "ask" and e["params"]["method"] == "lora")
    assert "cross_query" in lora["params"]["lora.modules"]
    pick = f"trial={lora['number']}"
    commands.autopeft("confirm", str(run), "--seeds", "2", cwd=tmp_path)
    assert "untouched base" in (run / "report.md").read_text()
    commands.autopeft("export", str(run), "--pick", pick, "--to", "adapter", cwd=tmp_path)
    prompts = ["good fine day", "awful song bad night", "nice good film film song"]
    (tmp_path / "new.csv").write_text("\n".join(["prompt", *prompts]) + "\n")
    said = commands.autopeft("predict", "adapter", "new.csv", cwd=tmp_path).stdout.splitlines()
    said = [cell for (cell,) in csv.reader(said)]
    assert said[0] == "completion" and len(said) == 4
    given = [f"sums : {prompt}" for prompt in prompts]
    done = subprocess.run(
        [sys.executable, "-c", STOCK, "adapter", *given], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == said[1:]
    code = (tmp_path / "adapter" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "AutoPeftModelForSeq2SeqLM" in code
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "adapter", check=True, capture_output=True)
