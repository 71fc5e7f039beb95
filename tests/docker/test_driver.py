"""docker/bin/driver, with programs of our own in place of Ray and autopeft."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).resolve().parents[2] / "docker" / "bin" / "driver"
NODE = """#!/bin/sh
trap 'echo left >> "$LOG"; exit 0' TERM
echo "node $*" >> "$LOG"
while true; do sleep 0.1; done
"""
AUTOPEFT = """#!/bin/sh
echo "autopeft $*, password $MLFLOW_TRACKING_PASSWORD" >> "$LOG"
exit "${CODE:-0}"
"""
ADDED = " --set executor.name=ray_tune --set executor.address=ray-head:6379"

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="setsid is Linux's")


@pytest.fixture
def drive(tmp_path):
    (tmp_path / "mlflow_admin_password").write_text("planted")
    programs = {"ray-node": NODE, "autopeft": AUTOPEFT, "healthy": '#!/bin/sh\ngrep -q ^node "$LOG"\n'}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    log.touch()

    def drive(*words, **environment):
        own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log), "SECRETS": str(tmp_path), **environment}
        done = subprocess.run([DRIVER, *words], env={**os.environ, **own}, capture_output=True, text=True, timeout=300)
        return done.returncode, log.read_text().splitlines()

    return drive


@pytest.mark.parametrize(
    ("words", "added"),
    [
        (["search", "/files/my.yaml"], ADDED),
        (["demo"], ADDED),
        (["search", "/files/my.yaml", "--set", "executor=serial"], ""),
        (["search", "/files/my.yaml", "--set=executor.address=auto"], ""),
        (["resume", "runs/my-1"], ""),
        (["confirm", "runs/my-1"], ""),
    ],
)
def test_a_command_that_trains_runs_on_a_node_which_leaves(drive, words, added):
    code, lines = drive(*words)
    assert code == 0
    assert lines == ["node driver", f"autopeft {' '.join(words)}{added}, password planted", "left"]


def test_its_exit_code_is_that_of_autopeft(drive):
    assert drive("search", "/files/my.yaml", CODE="4")[0] == 4


def test_a_command_that_reads_needs_no_node(drive):
    assert drive("report", "runs/my-1") == (0, ["autopeft report runs/my-1, password planted"])
