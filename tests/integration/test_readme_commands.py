"""Every command of the README, as it stands there, on a small job: run in a shell, in the README's order."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import WORDS, bert

PROJECT = Path(__file__).resolve().parent.parent.parent
README = (PROJECT / "README.md").read_text()

# Not run here, and what runs it.
ELSEWHERE = {
    "./dev test": "it is what runs these tests",
    "./dev cluster-test": "it makes network namespaces, as root",
    "./dev demo": "tests/integration/test_demo.py runs `autopeft demo`, on fewer trials; it takes minutes",
    "autopeft predict my-adapter --follow": "it reads what is typed; tests/integration/test_language_model.py types",
    "autopeft search reviews.yaml": "tests/guess searches by what `autopeft init` wrote",
    "docker/prepare": "tests/docker does",
    "cd docker": "of no use without what follows it",
    "docker compose up -d --wait": "docker/test does, where there is an engine",
    "docker compose run --rm driver search /files/my.yaml": "docker/test searches so, where there is an engine",
    "autopeft stop RUN": "nothing runs here by then; tests/test_steering.py gives the order",
}
# What stands for something of the user's own, and smaller budgets.
INSTEAD = {
    "path/to/a/model": "model",
    "--base FOLDER": "--base model",
    "budget: {trials: 40}": "budget: {trials: 6}\nexecutor: serial",
    "budget.trials=60": "budget.trials=7",
    "resume RUN": "resume runs/my-1",
    "watch RUN": "watch runs/my-1",
    "track RUN": "track runs/my-1",
    "add RUN": "add runs/my-1",
}


def fenced(kind):
    """The README's blocks of a language."""
    return re.findall(rf"^```{kind}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands():
    """All of them, once each, in order; comments taken off."""
    lines = [re.sub(r"\s+#.*", "", line) for block in fenced("sh") for line in block.splitlines()]
    inline = re.findall(r"`((?:\./dev |autopeft )[^`]*)`", README)
    return list(dict.fromkeys(lines + inline))


def adapted(text):
    for old, new in INSTEAD.items():
        text = text.replace(old, new)
    return text


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with `./dev`, whose environment is the one that runs the tests; a model, a CSV and my.yaml."""
    for name in ("dev", "pyproject.toml", "constraints.txt"):
        shutil.copy(PROJECT / name, tmp_path)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, words in (("autopeft", "-m autopeft"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (programs / name).chmod(0o755)
    stamp = "cat pyproject.toml constraints.txt | cksum"
    found = subprocess.run(["sh", "-c", stamp], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    (tmp_path / ".venv" / "stamp").write_text(f"{found.strip()} dev\n")
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # completion is written there
    (tmp_path / "home").mkdir()
    (tmp_path / "model").mkdir()
    bert(tmp_path / "model")
    draw = random.Random(0)
    rows = [" ".join(draw.choices(WORDS, k=5)) for _ in range(200)]
    lines = [f"{row},{'yes' if 'good' in row or 'fine' in row else 'no'}" for row in rows]
    (tmp_path / "reviews.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    (tmp_path / "new.csv").write_text("text\ngood day\nawful film\n")
    config, *_ = fenced("yaml")  # the job; others show keys
    (tmp_path / "my.yaml").write_text(adapted(config))
    return tmp_path


def run(command, folder):
    words = ["bash", "-c", f"{command}; exit $?"]  # it stays the parent: completion looks at which shell that is
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout


def test_the_exceptions_are_in_the_readme():
    assert set(ELSEWHERE) <= set(commands())
    assert all(any(old in text for text in [*commands(), README]) for old in INSTEAD)


@pytest.mark.timeout(900)
def test_every_command_and_then_the_library_block(checkout):
    said = {text: run(adapted(text), checkout) for text in commands() if text not in ELSEWHERE}
    assert len(said) >= 9, "it found them"
    predicted = [out for text, out in said.items() if " predict " in text]
    assert all(out.count("\n") >= 3 for out in predicted), "a line for each of two rows, and names"
    assert len(set(predicted)) == 1, "the same base, named or found"
    assert (checkout / "my-adapter" / "README.md").exists()
    assert (checkout / "runs/my-1/ledger.jsonl").read_text().count('"event": "tell"') == 7
    block, _ = fenced("python")  # the other one is of tests/test_estimator.py
    shutil.rmtree(checkout / "my-adapter")  # the block exports to it too
    (checkout / "block.py").write_text(adapted(block.replace("seeds=5", "seeds=1")))
    run("python block.py", checkout)
    assert (checkout / "runs/my-2/ledger.jsonl").read_text().count('"event": "tell"') == 6
