"""What doctor says of Ray: tokens and their files, clusters that are there or not, folders that are too long."""

from __future__ import annotations

import os
import socket
import subprocess
from types import SimpleNamespace

import pytest

from autopeft.executors import _health
from autopeft.executors._health import AUTHENTICATION, CLUSTER, findings
from autopeft.executors._local import TOKEN_VARIABLES, longest_socket, temporary_folder

STORE = 2**20


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in (*TOKEN_VARIABLES, "RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


@pytest.fixture
def closed():
    """A port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def opened():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def by_name(found):
    return {finding.name: finding for finding in found}


def test_a_local_ray_needs_nothing(environment):
    (found,) = findings(None, STORE)
    assert (found.name, found.state) == (AUTHENTICATION, "ok")
    environment.setenv("RAY_AUTH_MODE", "disabled")
    (found,) = findings(None, STORE)
    assert "RAY_AUTH_MODE=disabled is not heeded" in found.text


def test_a_cluster_of_the_environment_that_is_not_used_is_said(environment, closed, opened):
    for address, says in (
        (closed, "nobody listens"),
        (f"http://{closed}", "nobody listens"),
        (opened, "somebody answers"),
    ):
        environment.setenv("RAY_ADDRESS", address)
        found = by_name(findings(None, STORE))[CLUSTER]
        assert found.state == "warn" and says in found.text and "not used" in found.text


@pytest.mark.parametrize(
    ("mode", "content", "state"),
    [(0o600, "abc", "ok"), (0o644, "abc", "warn"), (0o600, "", "fail"), (None, "", "fail")],
)
def test_the_file_of_a_cluster_s_token(environment, closed, tmp_path, mode, content, state):
    path = tmp_path / "token"
    if mode is not None:
        path.write_text(content)
        path.chmod(mode)
    environment.setenv("RAY_AUTH_MODE", "token")
    environment.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    first, second, *_ = findings(closed, STORE)
    assert first.state == "ok" and second.state == state and str(path) in second.text
    assert "abc" not in second.text


@pytest.mark.parametrize("mode", [None, "disabled"])
def test_a_cluster_without_token_mode_fails(environment, closed, mode):
    if mode:
        environment.setenv("RAY_AUTH_MODE", mode)
    found = by_name(findings(closed, STORE))
    assert found[AUTHENTICATION].state == "fail" and "RAY_AUTH_MODE=token" in found[AUTHENTICATION].todo
    assert found[CLUSTER].state == "fail" and closed in found[CLUSTER].text


def test_auto_is_the_environment_s_or_the_last_one_that_was_started_here(environment, tmp_path):
    environment.setenv("RAY_TMPDIR", str(tmp_path))
    assert _health.current_cluster() is None
    assert by_name(findings("auto", STORE))[CLUSTER].state == "warn"
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379")
    assert _health.current_cluster() == "10.0.0.1:6379"
    environment.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert _health.current_cluster() == "10.0.0.2:6379"


@pytest.mark.parametrize(
    ("answer", "state", "says"),
    [
        ({"returncode": 0, "stdout": '{"nodes": 3, "CPU": 8, "GPU": 2}\n'}, "ok", "3 nodes with 8 CPUs and 2 GPUs"),
        ({"returncode": 1, "stderr": "Traceback\nRpcError: InvalidAuthToken"}, "fail", "InvalidAuthToken"),
        ({"returncode": 3, "stdout": "", "stderr": "RpcError"}, "fail", "refuses this token"),
        (subprocess.TimeoutExpired("python", 60), "warn", "says nothing"),
    ],
)
def test_who_answers_is_asked_for_nodes(environment, opened, answer, state, says):
    def run(words, **_):
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(**{"stdout": "", "stderr": "", **answer})

    environment.setattr(subprocess, "run", run)
    environment.setenv("RAY_AUTH_MODE", "token")
    environment.setenv("RAY_AUTH_TOKEN", "f" * 32)
    found = by_name(findings(opened, STORE))[CLUSTER]
    assert found.state == state and says in found.text


def test_a_silent_network_is_a_warning(environment):
    def silent(address, timeout):
        raise TimeoutError

    environment.setattr(socket, "create_connection", silent)
    assert _health.knock("10.0.0.1:6379").state == "warn"


def test_a_temporary_folder_that_is_too_long_for_sockets_is_said(environment, tmp_path):
    long = tmp_path / ("x" * 120)
    long.mkdir()
    environment.setenv("TMPDIR", str(long))
    assert temporary_folder() == long / "ray" and longest_socket(temporary_folder()) > 0
    found = by_name(findings(None, STORE))["Ray's folder"]
    assert found.state == "warn" and "/tmp/ray" in found.text


def test_too_little_shared_memory_is_said(environment):
    if not os.path.isdir("/dev/shm"):
        pytest.skip("this system has no /dev/shm")
    found = by_name(findings(None, 2**60))["Ray's folder"]
    assert found.state == "warn" and "--shm-size" in found.todo
