"""What a number carries: versions, commit, machine; nothing of the environment."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import autopeft
from autopeft import provenance as module
from autopeft.provenance import provenance


def test_it_is_json_and_names_what_ran():
    found = json.loads(json.dumps(provenance("cpu")))
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["numpy"] == np.__version__
    assert found["versions"]["autopeft"] == autopeft.__version__
    assert found["cores"] == os.cpu_count()
    assert found["device"] == "cpu"
    assert found["processor"]
    assert found["system"] == platform.platform()


def test_nothing_of_the_environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_Canary7Xw2Zq")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:Canary7Xw2Zq@host")
    assert "Canary7Xw2Zq" not in json.dumps(provenance("cpu"))


def test_it_loads_no_torch():
    code = """
import sys
from autopeft.provenance import provenance
print(provenance("cuda")["device"])
sys.exit("torch" in sys.modules)
"""
    project = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=project)
    assert (done.returncode, done.stdout.strip()) == (0, "cuda"), done.stderr


def test_a_gpu_has_a_name(monkeypatch):
    properties = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30)
    cuda = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 2, get_device_properties=lambda device: properties
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, device=str))
    assert provenance("cuda:1")["device"] == "cuda:1: NVIDIA H100, 80 GiB, one of 2"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A working copy of a package, as module.__file__ sees it, and its git."""
    package = tmp_path / "autopeft"
    package.mkdir()
    (package / "provenance.py").write_text("x = 1\n")
    monkeypatch.setattr(module, "__file__", str(package / "provenance.py"))
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)

    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        done = subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    return package, git


def test_the_commit_and_whether_the_package_was_changed(checkout):
    package, git = checkout
    assert provenance("cpu")["commit"] is None, "an installed package has none"
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    assert provenance("cpu")["commit"] == {"id": commit, "is_dirty": False}
    (package.parent / "notes.txt").write_text("beside the package\n")
    assert provenance("cpu")["commit"] == {"id": commit, "is_dirty": False}
    (package / "provenance.py").write_text("x = 2\n")
    assert provenance("cpu")["commit"] == {"id": commit, "is_dirty": True}


def test_no_git_is_no_commit(checkout, monkeypatch):
    _, git = checkout
    git("init", "-q")
    monkeypatch.setenv("PATH", "")
    assert provenance("cpu")["commit"] is None
