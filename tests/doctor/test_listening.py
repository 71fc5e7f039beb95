"""Who listens, and where: real processes that go by the names of Ray's and MLflow's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from autopeft.doctor import listening

pytestmark = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")
CODE = """
import socket, sys
made = socket.create_server((sys.argv[1], 0), family=socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
print(made.getsockname()[1], flush=True)
sys.stdin.read()
"""


def listen(name, host, environment=None):
    words = [name, "-c", CODE, host]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, executable=sys.executable, env=environment or {}, **pipes)
    return process, int(process.stdout.readline())


@pytest.mark.parametrize(
    ("name", "host", "environment", "state", "says"),
    [
        ("raylet", "0.0.0.0", {"RAY_AUTH_MODE": "token"}, "ok", "by token only"),
        ("raylet", "0.0.0.0", {"RAY_AUTH_MODE": "disabled"}, "fail", "all addresses"),
        ("gcs_server", "::", {}, "fail", "without a token"),
        ("raylet", "127.0.0.1", {}, "ok", "127.0.0.1: "),
        ("mlflow", "0.0.0.0", {}, "warn", "all addresses"),
        ("mlflow", "::1", {}, "ok", "::1: "),
    ],
)
def test_who_listens(name, host, environment, state, says):
    try:
        process, port = listen(name, host, environment)
    except ValueError:
        pytest.skip(f"this machine has no {host}")
    try:
        (found,) = [each for each in listening.listeners() if each.process == process.pid]
        assert found.name == name and port in next(iter(found.ports.values()))
        finding = listening._finding(found)
        assert finding.state == state and says in finding.text, finding
    finally:
        process.communicate()


def test_others_are_not_looked_at():
    process, _ = listen("sleeper", "127.0.0.1")
    try:
        assert process.pid not in [each.process for each in listening.listeners()]
    finally:
        process.communicate()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0100007F:1F90", ("127.0.0.1", 8080)),
        ("00000000:0016", ("all addresses", 22)),
        ("00000000000000000000000000000000:18EB", ("all addresses", 6379)),
        ("00000000000000000000000001000000:0001", ("::1", 1)),
        ("0000000000000000FFFF00000100007F:0001", ("127.0.0.1", 1)),
    ],
)
def test_the_kernel_s_addresses(text, expected):
    assert listening._address(text) == expected


@pytest.mark.parametrize(
    ("words", "program"),
    [
        (["/x/ray/core/src/ray/raylet/raylet", "--a"], "Ray"),
        (["ray::IDLE"], "Ray"),
        (["/usr/bin/python3", "-u", "/x/site-packages/ray/dashboard/agent.py"], "Ray"),
        (["/x/bin/python", "/x/bin/mlflow", "ui"], "MLflow"),
        (["/x/bin/python", "-m", "uvicorn", "mlflow.server.fastapi_app:app"], "MLflow"),
        (["/x/bin/python", "crayon.py"], None),
        (["vim", "notes"], None),
    ],
)
def test_whose_process_it_is(words, program):
    assert listening._program(words) == program
