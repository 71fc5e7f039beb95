"""The ledger file: append, read back, torn lines, a second writer, a full disk."""

import json
import os
import resource
import subprocess
import sys
import textwrap

import pytest

from autopeft import ledger as ledgers
from autopeft.errors import EnvironmentFault, UsageError
from autopeft.ledger import Ledger

HEADER = {"event": "search", "schema": 1}


@pytest.fixture
def path(tmp_path):
    return tmp_path / ledgers.NAME


def write(path, *events):
    ledger = Ledger(path)
    for event in events:
        ledger.append(event)
    ledger.close()


def test_what_is_appended_is_read_back_with_its_time(path):
    write(path, HEADER, {"event": "ask", "number": 0})
    events = ledgers.read(path)
    assert [event["event"] for event in events] == ["search", "ask"]
    assert all(event["seconds"] >= 0 for event in events)
    assert path.read_text().endswith("}\n")


def test_search_time_goes_on_where_it_stood(path):
    write(path, HEADER)
    lines = [{**json.loads(path.read_text()), "seconds": 100.0}]
    path.write_text(json.dumps(lines[0]) + "\n")
    ledger = Ledger(path)
    assert 100.0 <= ledger.seconds < 110.0
    assert ledger.append({"event": "ask"})["seconds"] >= 100.0


@pytest.mark.parametrize("torn", ['{"event": "tel', '{"event": "tell", "number": 3, "seconds": 1.0}', "\x00\x00", "{"])
def test_one_torn_last_line_is_dropped(path, torn):
    write(path, HEADER, {"event": "ask", "number": 0})
    with open(path, "a") as file:
        file.write(torn)
    assert len(ledgers.read(path)) == 2
    ledger = Ledger(path)
    ledger.append({"event": "ask", "number": 1})
    assert [event.get("number") for event in ledgers.read(path)] == [None, 0, 1]


def test_a_damaged_line_before_the_last_is_said(path):
    write(path, HEADER)
    with open(path, "a") as file:
        file.write("garbage\n" + '{"event": "ask", "seconds": 1}\n')
    with pytest.raises(UsageError, match="line 2 is damaged"):
        ledgers.read(path)


def test_a_newer_schema_is_refused(path):
    write(path, {"event": "search", "schema": ledgers.SCHEMA + 1})
    with pytest.raises(UsageError, match="upgrade autopeft"):
        ledgers.read(path)


def test_a_folder_without_a_ledger_is_no_run(tmp_path):
    with pytest.raises(UsageError, match="is no run"):
        ledgers.read(tmp_path / ledgers.NAME)


def test_a_second_writer_is_told(path):
    first = Ledger(path)
    with pytest.raises(UsageError, match="another process"):
        Ledger(path)
    first.close()
    Ledger(path).close()


def test_numbers_that_are_none_of_json_are_refused(path):
    with pytest.raises(ValueError, match="JSON"):
        Ledger(path).append({"event": "tell", "metrics": {"loss": float("nan")}})


def test_a_full_disk_is_said_and_what_was_written_stays(path):
    """A process whose files may not grow beyond some bytes: the write fails as on a full disk."""
    script = textwrap.dedent(
        f"""
        import resource, signal, sys
        from pathlib import Path
        from autopeft.errors import EnvironmentFault
        from autopeft.ledger import Ledger
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        ledger = Ledger(Path({str(path)!r}))
        ledger.append({HEADER!r})
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
        try:
            for number in range(100):
                ledger.append({{"event": "ask", "number": number}})
        except EnvironmentFault as fault:
            print(fault)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            ledger.append({{"event": "ask", "number": number}})  # room was made
            sys.exit(fault.exit_code)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == EnvironmentFault.exit_code, done.stderr
    assert "cannot write" in done.stdout
    assert "then resume" in done.stdout
    numbers = [event["number"] for event in ledgers.read(path)[1:]]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 2
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_each_line_is_on_the_disk_before_append_returns(path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(path.read_bytes().count(b"\n")))
    write(path, HEADER, {"event": "ask"})
    assert synced == [1, 2]
