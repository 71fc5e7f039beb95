"""`autopeft doctor`: what each check finds on machines that are one way or another, and that none of them hangs."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import threading
from collections import namedtuple
from types import SimpleNamespace

import pytest

from autopeft import app, doctor
from autopeft.doctor import bounded, cgroups, folders, machine
from autopeft.errors import EnvironmentFault
from autopeft.finding import Finding, worst
from tests.commands import autopeft

GIB = 2**30


def states(findings):
    return [finding.state for finding in findings]


# ── findings ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_finding_that_is_not_ok_says_what_to_do():
    Finding("memory", "ok", "enough")
    for state, todo in (("warn", ""), ("fail", ""), ("bad", "x")):
        with pytest.raises(ValueError):
            Finding("memory", state, "little", todo)


def test_the_worst_state_counts():
    ok, warn, fail = (Finding("x", state, "x", "x") for state in ("ok", "warn", "fail"))
    assert [worst(found) for found in ([], [ok], [ok, warn], [fail, warn])] == ["ok", "ok", "warn", "fail"]


def test_a_check_that_hangs_is_a_warning_and_what_it_found_before_stays():
    end = threading.Event()

    def check():
        yield Finding("disk", "ok", "room")
        end.wait()

    found = bounded("disk", check, seconds=0.5)
    end.set()
    assert states(found) == ["ok", "warn"] and "no answer in 0.5 s" in found[1].text


def test_a_check_that_cannot_look_is_a_warning_and_a_fault_of_the_machine_fails():
    def broken():
        raise PermissionError("no")

    def missing():
        raise EnvironmentFault("no such cluster: start it")

    (found,) = bounded("memory", broken)
    assert found.state == "warn" and "PermissionError: no" in found.text
    (found,) = bounded("executor", missing)
    assert found.state == "fail" and found.text == "no such cluster: start it"


def test_passwords_are_masked(monkeypatch):
    said = Finding("MLflow", "fail", "postgresql://me:hunter22@host/db: password=hunter22", "look")
    monkeypatch.setattr(doctor, "_executor", lambda config, gpus: [said])
    monkeypatch.setattr(doctor, "_trackers", lambda config, runs: [])
    monkeypatch.setattr(machine, "devices", lambda wanted, gpus: [])
    assert "hunter22" not in str(list(doctor.examine()))


# ── packages and devices ────────────────────────────────────────────────────────────────────────────────────────────


def test_missing_and_old_packages_fail(monkeypatch):
    needed = ["numpy>=2.0", "torch>=999", "a-package-that-nobody-has>=1", "ruff>=999; extra == 'dev'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: needed)
    found = list(machine.versions())
    assert states(found) == ["fail", "fail"]
    assert "torch is" in found[0].text and found[0].todo == "pip install 'torch>=999'"
    assert "a-package-that-nobody-has is missing" in found[1].text


def torch_says(monkeypatch, found=None, **done):
    text = json.dumps({"gpus": [], "build": None, "version": "2.13.0", **(found or {})})
    answer = SimpleNamespace(**{"returncode": 0, "stdout": text, "stderr": "", **done})
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)


CARD = ["H100", 70 * GIB, 80 * GIB]


@pytest.mark.parametrize(
    ("wanted", "gpus", "expected", "says"),
    [
        ("auto", [], ["ok"], "no GPU"),
        ("cuda", [], ["fail"], "training.device is cuda"),
        ("cuda:1", [CARD], ["fail", "ok"], "training.device is cuda:1"),
        ("cuda:0", [CARD], ["ok", "ok"], "1 GPUs"),
        ("auto", [["H100", 10 * GIB, 80 * GIB]], ["ok", "warn"], "10.0 of 80.0 GiB free"),
    ],
)
def test_devices(monkeypatch, wanted, gpus, expected, says):
    monkeypatch.setattr(machine, "_has_card", lambda: False)
    torch_says(monkeypatch, {"gpus": gpus})
    found, seen = list(machine.devices(wanted, noted := machine.Gpus())), [card[0] for card in gpus]
    assert states(found) == expected and any(says in each.text for each in found)
    assert noted.names == seen


def test_a_card_that_torch_does_not_see_a_torch_that_is_broken_and_one_that_hangs(monkeypatch):
    monkeypatch.setattr(machine, "_has_card", lambda: True)
    torch_says(monkeypatch)
    (found,) = machine.devices("auto", machine.Gpus())
    assert found.state == "warn" and "built for the CPU only" in found.todo
    torch_says(monkeypatch, returncode=1, stderr="Traceback\nImportError: libcudart.so.13")
    (found,) = machine.devices("auto", machine.Gpus())
    assert found.state == "fail" and "libcudart" in found.text

    def hangs(words, timeout, **_):
        raise subprocess.TimeoutExpired(words, timeout)

    monkeypatch.setattr(subprocess, "run", hangs)
    assert states(machine.devices("auto", machine.Gpus())) == ["warn"]


# ── processors and memory, with the limits of a container ───────────────────────────────────────────────────────────


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Makes a tree of control groups: files by path, and the lines of /proc/self/cgroup."""

    def make(lines, files):
        for path, content in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(content)
        (tmp_path / "own").write_text("\n".join(lines) + "\n")
        monkeypatch.setattr(cgroups, "ROOT", tmp_path)
        monkeypatch.setattr(cgroups, "OWN", tmp_path / "own")

    return make


def test_limits_of_version_2_count_in_all_groups_around(groups):
    files = {
        "job/cpu.max": "50000 100000\n", "job/step/cpu.max": "max 100000\n", "job/memory.max": f"{4 * GIB}\n",
        "job/memory.current": f"{3 * GIB}\n", "job/memory.stat": f"anon 5\ninactive_file {GIB}\n",
        "job/step/memory.max": "max\n", "job/step/memory.current": "1\n",
    }  # fmt: skip
    groups(["0::/job/step"], files)
    assert cgroups.cpus() == 0.5
    assert cgroups.memory() == (4 * GIB, 2 * GIB), "cached files are dropped before memory runs out"


def test_limits_as_a_container_sees_them(groups):
    groups(["0::/../../docker/abc"], {"cpu.max": "150000 100000", "memory.max": f"{GIB}", "memory.current": "0"})
    assert (cgroups.cpus(), cgroups.memory()) == (1.5, (GIB, GIB))


def test_limits_of_version_1(groups):
    files = {
        "cpu/docker/x/cpu.cfs_quota_us": "200000", "cpu/docker/x/cpu.cfs_period_us": "100000",
        "memory/docker/x/memory.limit_in_bytes": f"{2 * GIB}", "memory/docker/x/memory.usage_in_bytes": f"{GIB}",
        "memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "5",
    }  # fmt: skip
    groups(["5:cpu,cpuacct:/docker/x", "4:memory:/docker/x", "3:pids:/"], files)
    assert (cgroups.cpus(), cgroups.memory()) == (2.0, (2 * GIB, GIB))


def test_no_limits(groups):
    groups(["0::/"], {"cpu.max": "max 100000", "cgroup.procs": ""})
    assert cgroups.cpus() is None and cgroups.memory() is None


@pytest.mark.parametrize(
    ("free", "limit", "state"),
    [
        (8, None, "ok"),
        (1, None, "warn"),
        (0.2, None, "fail"),
        (8, (4, 1.5), "warn"),
        (8, (1, 0.1), "fail"),
        (3, (16, 9), "ok"),
    ],
)
def test_memory(monkeypatch, free, limit, state):
    monkeypatch.setattr(machine, "_memory", lambda: (16 * GIB, int(free * GIB)))
    scaled = None if limit is None else (int(limit[0] * GIB), int(limit[1] * GIB))
    monkeypatch.setattr(cgroups, "memory", lambda: scaled)
    (found,) = machine.memory()
    assert found.state == state, found
    assert ("cgroup" in found.text) == (limit is not None and limit[0] < 16)


def test_a_quota_of_processors_and_a_load_are_warnings(monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.0, 0.1, 0.0))
    monkeypatch.setattr(cgroups, "cpus", lambda: 1.5)
    (found,) = machine.processors()
    assert found.state == "warn" and "slots: 1" in found.todo
    monkeypatch.setattr(cgroups, "cpus", lambda: None)
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.0, 20.0, 0.0))
    assert states(machine.processors()) == ["ok", "warn"]


# ── folders ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_folders_are_written_to_and_left_as_they_were(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    found = {each.name: each for each in folders.findings(tmp_path / "my" / "runs")}
    assert found["runs"].state == "ok" and f"made in {tmp_path}" in found["runs"].text
    assert found["temporary folder"].text == f"{tmp_path / 'tmp'} is writable"
    assert {path.name for path in tmp_path.iterdir()} == {"tmp"} and not list((tmp_path / "tmp").iterdir())


def test_a_folder_that_cannot_be_written_fails():
    found = next(folders.findings(folders.Path("/proc/self/runs")))
    assert found.state == "fail" and "cannot be written" in found.text and "`runs: FOLDER`" in found.todo


Usage, Files = namedtuple("Usage", "total used free"), namedtuple("Files", "f_files f_favail")


@pytest.mark.parametrize(
    ("free", "files", "state"),
    [(90, 10**6, "ok"), (2, 10**6, "warn"), (0.1, 10**6, "fail"), (90, 7, "fail"), (90, 0, "ok")],
)
def test_room_on_a_disk(monkeypatch, tmp_path, free, files, state):
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda _: Usage(100 * GIB, 0, int(free * GIB)))
    monkeypatch.setattr(folders.os, "statvfs", lambda _: Files(files and 10**7, files))
    assert folders.disk(tmp_path).state == state


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_default_search_can_be_looked_at(monkeypatch, tmp_path):
    """Everything in one go, on the machine as it is: each check has an answer, and nothing is made."""
    monkeypatch.chdir(tmp_path)
    torch_says(monkeypatch)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    names = [finding.name for finding in app.doctor()]
    expected = {
        "devices",
        "processors",
        "memory",
        "runs",
        "cache",
        "disk",
        "Ray's authentication",
        "listening",
        "MLflow",
    }
    assert expected <= set(names)
    assert not list(tmp_path.iterdir())


def test_a_config_names_what_is_looked_at(monkeypatch, tmp_path):
    torch_says(monkeypatch)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    runs = tmp_path / "elsewhere"
    overrides = ["executor={name: ray_tune, address: '127.0.0.1:1'}", f"runs={runs}", "trackers=[console]"]
    found = {finding.name: finding for finding in app.doctor(app.DEMO, overrides)}
    assert str(runs) in found["runs"].text and "MLflow" not in found
    assert found["Ray's authentication"].state == "fail" and found["Ray's cluster"].state == "fail"


def test_doctor_exits_with_5_where_something_fails(tmp_path):
    """With the machine's fault that a command can make: a tracker that is down."""
    overrides = ["--set", "executor=serial", "--set", "trackers=[{name: mlflow, uri: 'http://127.0.0.1:9'}]"]
    done = autopeft("doctor", str(app.DEMO), *overrides, "--json", cwd=tmp_path, check=False)
    said = json.loads(done.stdout)
    assert (done.returncode, said["schema"], said["state"]) == (5, 1, "fail"), done.stderr
    (fault,) = [check for check in said["checks"] if check["state"] == "fail"]
    assert fault["name"] == "MLflow" and "http://127.0.0.1:9 cannot be reached" in fault["text"] and fault["todo"]
    assert said["torch"] and said["cores"] and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir()), sys.path
