"""A Ray that does not come up is tried again, then is the machine's fault; each has a token of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from autopeft.errors import EnvironmentFault
from autopeft.executors import _local
from autopeft.executors._local import TOKEN_VARIABLES, TRIES, local_ray


class FakeRay:
    """Its `init` fails so many times, and takes its time."""

    def __init__(self, fails: int, fault: BaseException | None = None, during=lambda: None) -> None:
        self.fails, self.fault, self.during = fails, fault or Exception("The current node timed out.\nMore"), during
        self.calls: list[str] = []
        self.tokens: list[str | None] = []

    def init(self, **options: object) -> None:
        assert options == {"address": "local", "num_cpus": 2}
        self.calls.append("init")
        self.tokens.append(os.environ.get("RAY_AUTH_TOKEN"))
        self.during()
        if self.calls.count("init") <= self.fails:
            raise self.fault

    def shutdown(self) -> None:
        self.calls.append("shutdown")


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    for name in TOKEN_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("fails", range(TRIES))
def test_it_is_tried_again(fails, capsys):
    ray = FakeRay(fails)
    with local_ray(ray, num_cpus=2):
        ray.calls.append("search")
    assert ray.calls == ["init", "shutdown"] * fails + ["init", "search", "shutdown"]
    assert capsys.readouterr().err == "Ray did not start (The current node timed out): trying again\n" * fails


def test_after_the_last_try_it_is_the_machine_s_fault():
    ray = FakeRay(TRIES)
    with pytest.raises(EnvironmentFault, match=r"5 tries: The current node timed out\. .*--set executor=serial"):
        local_ray(ray, num_cpus=2).__enter__()
    assert ray.calls == ["init", "shutdown"] * TRIES


def test_ctrl_c_is_not_followed_by_another_try():
    interrupts: list[int] = []
    ray = FakeRay(TRIES, during=lambda: interrupts.append(2))
    with pytest.raises(KeyboardInterrupt):
        local_ray(ray, interrupts, num_cpus=2).__enter__()
    assert ray.calls == ["init", "shutdown"]
    ray = FakeRay(1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        local_ray(ray, num_cpus=2).__enter__()
    assert ray.calls == ["init", "shutdown"]


def test_a_slow_start_is_said(capsys):
    with _local.said_when_slow("still waiting", after=0.0):
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.join(10)
    assert capsys.readouterr().err == "still waiting\n"
    with _local.said_when_slow("still waiting"):
        pass
    assert capsys.readouterr().err == ""


def test_each_local_ray_has_a_token_of_its_own():
    ray = FakeRay(0)
    for _ in range(2):
        with local_ray(ray, num_cpus=2):
            pass
    one, other = ray.tokens
    assert one != other
    assert len(one) == len(other) == 64
    assert not set(TOKEN_VARIABLES) & set(os.environ), "as it was before"


def test_a_token_that_the_user_has_set_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    ray = FakeRay(0)
    with local_ray(ray, num_cpus=2):
        assert os.environ["RAY_AUTH_TOKEN"] == "mine"
    assert ray.tokens == ["mine"]
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with local_ray(ray, num_cpus=2):
        assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "token")
    assert ray.tokens == ["mine", None]


@pytest.mark.parametrize("mode", [None, "token", "disabled"])
def test_a_local_ray_takes_a_token_always(monkeypatch, capsys, mode):
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    seen = []
    ray = FakeRay(0, during=lambda: seen.append(os.environ.get("RAY_AUTH_MODE")))
    with local_ray(ray, num_cpus=2):
        pass
    assert seen == ["token"] and len(ray.tokens[0]) == 64
    assert os.environ.get("RAY_AUTH_MODE") == mode
    assert ("RAY_AUTH_MODE=disabled is not heeded" in capsys.readouterr().err) == (mode == "disabled")


def test_a_long_temporary_folder_is_not_ray_s(monkeypatch):
    class Anywhere(FakeRay):
        def init(self, **options):
            self.calls.append(options.pop("_temp_dir", "TMPDIR"))

    for name, expected in (("short", "TMPDIR"), ("x" * 120, "/tmp/ray")):
        monkeypatch.setenv("TMPDIR", f"/tmp/{name}")
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        ray = Anywhere(0)
        with local_ray(ray, num_cpus=2):
            pass
        assert ray.calls == [expected, "shutdown"]


@pytest.mark.slow
@pytest.mark.parametrize("users", [None, "disabled"])
def test_nobody_without_the_token_reaches_a_local_ray(monkeypatch, users):
    import logging

    if users:
        monkeypatch.setenv("RAY_AUTH_MODE", users)

    import ray

    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.CRITICAL}
    for _ in range(2):  # the second time with another token, in the same process
        with local_ray(ray, num_cpus=1, _node_ip_address="127.0.0.1", object_store_memory=10**8, **options):
            address, token = ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"]
            found = [
                _answer(address, mode, key) for mode, key in [("token", token), ("token", "f" * 64), ("disabled", "")]
            ]
        assert found == ["reached", "AuthenticationError", "AuthenticationError"]


def _answer(address: str, mode: str, token: str) -> str:
    """Asks a Ray for its nodes: "reached", or the kind of its refusal. A Ray that is slow to answer is asked again."""
    code = (
        "from ray._raylet import GcsClient\n"
        f"try: GcsClient(address={address!r}).get_all_node_info(); print('reached')\n"
        "except Exception as fault: print(type(fault).__name__)"
    )
    environment = {**os.environ, "RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": token}
    while True:
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        if done.stdout.split()[-1] in ("reached", "AuthenticationError"):
            return done.stdout.split()[-1]
