"""`autopeft doctor` and what a team shares, really started: a Ray cluster with a token, MLflow's server with users.

`./dev test-slow tests/doctor -s` prints what it says.
"""

from __future__ import annotations

import json

import pytest

from tests.commands import autopeft
from tests.executors.cluster import Cluster
from tests.security.stranger import write_rows, write_search
from tests.trackers.servers import Postgres, Server, needs_postgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

USER, PASSWORD = "searcher", "canary-Zq7Xw2-password"
WRONG = "canary-of-somebody-else-0123456789"
LOG_IN = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
RAY, AUTHENTICATION, MLFLOW = "Ray's cluster", "Ray's authentication", "MLflow"


class Shared:
    """A cluster of one node, and a server on PostgreSQL, which a config names."""

    def __init__(self, folder) -> None:
        self.folder, self.cluster, self.postgres = folder, Cluster(head_cpus=2, is_whole=False), Postgres()
        self.server = Server(folder / "server", self.postgres.uri("tracking"), self.postgres.uri("users"))
        self.server.add_user(USER, PASSWORD)
        write_rows(folder / "rows.csv")
        trackers = [{"name": "mlflow", "uri": self.server.address}]
        write_search(folder, executor={"name": "ray_tune", "address": self.cluster.address}, trackers=trackers)

    def close(self) -> None:
        self.server.kill()
        self.postgres.close()
        self.cluster.close()

    def doctor(self, **environment):
        """The exit code, and state, text and advice of each finding that is about Ray or MLflow and no `ok` of a file."""
        given = {**self.cluster.environment, **LOG_IN, "HOME": str(self.folder), **environment}
        given = {name: value for name, value in given.items() if value is not None}
        done = autopeft("doctor", "my.yaml", "--json", cwd=self.folder, env=given, check=False, timeout=900)
        assert "Traceback" not in done.stderr
        for secret in (PASSWORD, WRONG, self.cluster.environment["RAY_AUTH_TOKEN"]):
            assert secret not in done.stdout + done.stderr
        said = json.loads(done.stdout)
        found = {check["name"]: check for check in said["checks"] if check["name"] in (RAY, AUTHENTICATION, MLFLOW)}
        print(f"\n{sorted(environment)}, exit code {done.returncode}", *found.values(), sep="\n  ")
        assert (done.returncode == 5) == (said["state"] == "fail")
        return done.returncode, found


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    needs_postgres()
    shared = Shared(tmp_path_factory.mktemp("shared"))
    yield shared
    shared.close()


def test_both_are_there_and_let_in(shared):
    _, found = shared.doctor()
    assert [found[name]["state"] for name in (AUTHENTICATION, RAY, MLFLOW)] == ["ok"] * 3
    assert f"{shared.cluster.address}: 1 node with 2 CPUs" in found[RAY]["text"]
    assert found[MLFLOW]["text"] == f"{shared.server.address} answers and can be read, as {USER}"


def test_a_wrong_token_and_a_wrong_password(shared):
    code, found = shared.doctor(RAY_AUTH_TOKEN=WRONG, MLFLOW_TRACKING_PASSWORD=WRONG)
    assert code == 5
    assert found[RAY]["state"] == "fail"
    assert found[RAY]["text"] == f"{shared.cluster.address} refuses this token"
    assert "RAY_AUTH_TOKEN" in found[RAY]["todo"]
    assert found[MLFLOW]["state"] == "fail"
    assert found[MLFLOW]["text"] == f"{shared.server.address} does not let {USER} in (401)"
    assert found[MLFLOW]["todo"].startswith("mend MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")


def test_no_token_and_no_user(shared):
    nobody = dict.fromkeys(["RAY_AUTH_MODE", "RAY_AUTH_TOKEN", *LOG_IN])
    code, found = shared.doctor(**nobody)
    assert code == 5
    assert found[AUTHENTICATION]["state"] == "fail" and "RAY_AUTH_MODE=token" in found[AUTHENTICATION]["todo"]
    assert found[MLFLOW]["text"] == f"{shared.server.address} does not let anybody in without a name (401)"
    assert found[MLFLOW]["todo"].startswith("set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")


def test_both_are_gone(shared):
    shared.server.kill()
    shared.cluster.close()
    try:
        code, found = shared.doctor()
    finally:
        shared.server.start()
    assert code == 5
    for name, address in ((RAY, shared.cluster.address), (MLFLOW, shared.server.address)):
        assert found[name]["state"] == "fail"
        assert address in found[name]["text"] and found[name]["todo"]
    assert "nobody listens at" in found[RAY]["text"] and "cannot be reached" in found[MLFLOW]["text"]
