"""A search with MLflow, from the command to the adapter that stock peft loads from the tracker."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.commands import autopeft
from tests.trackers.stores import note, runs

DEMO = [
    "demo", "--name", "d", "--set", "space=lora", "--set", "budget.trials=2", "--set", "training={steps: 3}",
    "--set", "executor=serial", "--set", "trackers=[mlflow]",
]  # fmt: skip


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("mlflow")
    done = autopeft(*DEMO, cwd=cwd)
    return cwd, done.stdout + done.stderr


def test_the_search_is_there_whole(searched):
    cwd, said = searched
    found = runs(f"sqlite:///{cwd}/runs/mlflow.db")
    assert sorted(run["tags"]["autopeft.role"] for run in found.values()) == ["search", "trial", "trial"]
    assert {run["status"] for run in found.values()} <= {"FINISHED", "KILLED"}
    (parent,) = (name for name in found if name.startswith("search-"))
    assert "00_pareto%2Fpareto.png" in note(f"sqlite:///{cwd}/runs/mlflow.db", parent)
    assert f"mlflow ui --backend-store-uri sqlite:///{cwd}/runs/mlflow.db" in said
    assert "is behind" not in said
    assert "0 runs, 0 params, 0 metrics, 0 tags, 0 artifacts" in autopeft("track", "runs/d", cwd=cwd).stdout


def test_the_first_folder_holds_the_front_in_four_forms(searched):
    cwd, _ = searched
    (folder,) = (cwd / "runs" / "mlartifacts").rglob("00_pareto")
    kinds = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert kinds.keys() == {"pareto.png", "pareto.html", "pareto.json", "pareto.csv"}
    assert kinds["pareto.png"].startswith(b"\x89PNG")
    page = kinds["pareto.html"].decode()
    assert "<script>" in page
    assert "All trials" not in page, "it is the front, not the report, which lies beside it"
    assert json.loads(kinds["pareto.json"])["verdict"] in page.replace("&#39;", "'")


def test_what_is_confirmed_is_there_too(searched):
    cwd, _ = searched
    autopeft("confirm", "runs/d", "--seeds", "1", "--pick", "best", cwd=cwd)
    found = runs(f"sqlite:///{cwd}/runs/mlflow.db")
    assert [run["tags"]["autopeft.role"] for run in found.values()].count("replicate") == 2, "and the majority class"


def test_a_front_member_s_adapter_is_a_plain_peft_folder(searched):
    from peft import PeftConfig
    from safetensors.torch import load_file

    cwd, _ = searched
    client = MlflowClient(tracking_uri=f"sqlite:///{cwd}/runs/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name.startswith("autopeft/")]
    (best,) = client.search_runs([experiment.experiment_id], "tags.`autopeft.front_rank` = '1'")
    assert {file.path for file in client.list_artifacts(best.info.run_id)} == {"adapter"}
    folder = client.download_artifacts(best.info.run_id, "adapter")
    config = PeftConfig.from_pretrained(folder)
    assert str(config.peft_type.value) == "LORA"
    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    assert sum(t.numel() for t in tensors.values()) == best.data.metrics["cost/trainable_params"]


@pytest.mark.slow
def test_a_browser_shows_the_search(searched, tmp_path):
    """MLflow's own page of the parent run, as Chromium draws it: the run's name, the note's verdict."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium")
    cwd, _ = searched
    store = f"sqlite:///{cwd}/runs/mlflow.db"
    client = MlflowClient(tracking_uri=store)
    (experiment,) = [e for e in client.search_experiments() if e.name.startswith("autopeft/")]
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`autopeft.role` = 'search'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    words = ["-m", "mlflow", "server", "--backend-store-uri", store, "--port", str(port), "--workers", "1"]
    server = subprocess.Popen([sys.executable, *words], env=environment, cwd=tmp_path, start_new_session=True)
    try:
        _until_up(f"http://127.0.0.1:{port}/health")
        page = f"http://127.0.0.1:{port}/#/experiments/{experiment.experiment_id}/runs/{parent.info.run_id}"
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/chromium"]
        shown = ""
        for seconds in (20, 60, 180):  # of the page's own clock, which stands still while it waits
            call = [chromium, *options, f"--virtual-time-budget={seconds * 1000}", "--dump-dom", page]
            shown = subprocess.run(call, capture_output=True, text=True, timeout=1200).stdout
            if parent.info.run_name in shown:
                break
        assert parent.info.run_name in shown
        assert "accuracy" in shown
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _until_up(url):
    for _ in range(600):
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(f"{url} does not come up")
