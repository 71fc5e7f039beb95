"""Rows "Ray dashboard" and "MLflow server": what listens asks for a token, or listens to this machine only."""

from __future__ import annotations

import os

import pytest

from autopeft.errors import EnvironmentFault
from autopeft.executors import _local
from autopeft.executors.ray_tune import RayTune
from autopeft.history import History
from autopeft.trackers.mlflow import MLflow
from tests.executors.test_local import FakeRay
from tests.reports import histories as h


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    for name in _local.TOKEN_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_ray_has_no_dashboard_and_its_address_is_loopback():
    """The dashboard and its jobs run any code that reaches them: ShadowRay, CVE-2023-48022, CVE-2026-27482."""
    options = RayTune()._options()
    assert options["include_dashboard"] is False
    assert options["_node_ip_address"] == "127.0.0.1"


def test_a_local_ray_has_a_token_that_stands_in_no_file(tmp_path, monkeypatch):
    """Ray's own is in ~/.ray/auth_token, which others may read. That others are refused: tests/executors/test_local.py."""
    monkeypatch.setenv("HOME", str(tmp_path))
    seen = []
    with _local.local_ray(FakeRay(0, during=lambda: seen.append(os.environ["RAY_AUTH_TOKEN"])), num_cpus=2):
        pass
    assert len(seen[0]) == 64
    assert not list(tmp_path.iterdir())


def test_a_local_ray_takes_a_token_whatever_the_environment_says(monkeypatch, capsys):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    seen = []
    with _local.local_ray(FakeRay(0, during=lambda: seen.append(os.environ["RAY_AUTH_MODE"])), num_cpus=2):
        pass
    assert seen == ["token"]
    assert "RAY_AUTH_MODE=disabled is not heeded" in capsys.readouterr().err


def test_a_cluster_without_a_token_is_refused():
    with pytest.raises(EnvironmentFault, match="talks to one by token only"):
        RayTune(address="127.0.0.1:1").check()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o600])
def test_a_token_file_that_others_may_read_is_said(tmp_path, monkeypatch, capsys, mode):
    path = tmp_path / "token"
    path.write_text("f" * 64)
    path.chmod(mode)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    with pytest.raises(EnvironmentFault, match="no Ray cluster"):
        RayTune(address="127.0.0.1:1").check()
    assert (f"`chmod 600 {path}`" in (said := capsys.readouterr().err)) is (mode != 0o600)
    assert "ffff" not in said


def test_mlflow_is_shown_on_loopback(tmp_path, monkeypatch):
    """MLflow's own host is 127.0.0.1; it refuses other Host headers and origins by itself from 3.5 on."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "run").mkdir()
    line = MLflow(tmp_path / "run").open_command(History(h.search(1)))
    assert "--host" not in line
    assert "# http://127.0.0.1:5000/" in line
