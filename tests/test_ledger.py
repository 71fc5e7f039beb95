"""The ledger: what was appended is there, one torn last line is tolerated, one writer, a full disk says so."""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft import ledger
from autopeft.errors import EnvironmentFault, UsageError
from autopeft.ledger import Ledger

HEADER = {"event": "search", "schema": ledger.SCHEMA}


@contextmanager
def no_files_beyond(size: int) -> Iterator[None]:
    """As a full disk: what is written beyond `size` fails; a write across it comes out short."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def written(path: Path, *events: dict[str, object]) -> Path:
    book = Ledger(path)
    for event in events:
        book.append(event)
    book.close()
    return path


def test_reads_back_what_was_appended_in_order(tmp_path):
    events = [HEADER, {"event": "ask", "number": 0, "params": {"method": "head"}}, {"event": "a ☕ note", "x": 1e-300}]
    path = written(tmp_path / "ledger.jsonl", *events)
    found = ledger.read(path)
    assert [{k: v for k, v in event.items() if k != "seconds"} for event in found] == events
    assert all(line.endswith("}") for line in path.read_text().splitlines())


def test_an_appended_event_is_what_reading_it_back_gives(tmp_path):
    book = Ledger(tmp_path / "ledger.jsonl")
    event = book.append({"event": "ask", "params": {"lora.layers": (0, 1), "lora.lr": 0.1 + 0.2}})
    assert event["params"]["lora.layers"] == [0, 1]
    assert ledger.read(book.path) == [event]


def test_an_event_is_on_the_disk_before_append_returns(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (real(fd), synced.append(os.fstat(fd).st_size))[0])
    book = Ledger(tmp_path / "ledger.jsonl")
    for size in (1, 2, 3):
        book.append({"event": "note", "size": size})
        assert synced[-1] == book.path.stat().st_size
    assert len(synced) == 3


def test_search_time_stops_while_the_search_does(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    book = Ledger(tmp_path / "ledger.jsonl")
    now[0] += 5
    assert book.append(HEADER)["seconds"] == 5
    book.close()
    now[0] += 1000
    book = Ledger(tmp_path / "ledger.jsonl")
    now[0] += 2
    assert book.append({"event": "resume"})["seconds"] == 7


def test_confirming_takes_no_search_time(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(ledger.time, "monotonic", lambda: now[0])
    for is_search, expected in ((True, 5.0), (False, 5.0), (True, 10.0)):
        opened = Ledger(tmp_path / ledger.NAME, is_search=is_search)
        now[0] += 5.0
        assert opened.append({"event": "resume"})["seconds"] == expected
        opened.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(values=st.lists(JSON, min_size=1, max_size=4), is_ascii=st.booleans())
def test_an_event_is_what_json_reads(values, is_ascii, tmp_path_factory):
    """Of floats each bit, of whole numbers each digit; NaN, infinity and half of a surrogate pair, too."""
    path = tmp_path_factory.mktemp("read") / "ledger.jsonl"
    lines = [json.dumps({"event": "note", "seconds": 1, "x": value}, ensure_ascii=is_ascii) for value in values]
    path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass"))
    try:
        expected = [json.loads(line.encode("utf-8", "surrogatepass")) for line in lines]
    except UnicodeDecodeError:
        with pytest.raises(UsageError, match="is damaged"):
            ledger.read(path)
    else:
        assert repr(ledger.read(path)) == repr(expected)


@pytest.mark.parametrize(
    "line",
    [
        "1" + "0" * 400,
        "-0",
        "-0.0",
        "1e400",
        "-1e400",
        "1E5",
        "5e-324",
        '{"a": 1, "a": 2}',
        '"\\ud800"',
        "[" * 300 + "]" * 300,
    ],
    ids=lambda line: line[:12],
)
def test_an_unusual_value_is_what_json_reads(tmp_path, line):
    path = tmp_path / "ledger.jsonl"
    path.write_text(f'{{"event": "note", "seconds": 0.5, "x": {line}}}\n')
    assert repr(ledger.read(path)) == repr([json.loads(path.read_text())])


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ('{"event": "ask", "seconds": 1, "number": 3}', '{"event": "ask", "seconds": 1, "number": -3}'),
        (
            '{"event": "tell", "seconds": 1, "metrics": {"a": 1}}',
            '{"event": "tell", "seconds": 1, "metrics": {"a": "1"}}',
        ),
        (
            '{"event": "tell", "seconds": 1, "metrics": {"a": 1}}',
            '{"event": "tell", "seconds": 1, "metrics": {"a": NaN}}',
        ),
        (
            '{"event": "tell", "seconds": 1, "metrics": {"a": 1}}',
            '{"event": "tell", "seconds": 1, "metrics": {"a": 1e400}}',
        ),
        (
            '{"event": "tell", "seconds": 1, "metrics": {"a": 1}}',
            '{"event": "tell", "seconds": 1, "metrics": {"a": 1' + "0" * 400 + "}}",
        ),
        (
            '{"event": "note", "seconds": 1, "metrics": {"a": "1"}}',
            '{"event": "tell", "seconds": 1, "metrics": {"a": "1"}}',
        ),
        (
            '{"event": "ask", "seconds": 1, "params": {"method": "lora"}}',
            '{"event": "ask", "seconds": 1, "params": {"method": 1}}',
        ),
        ('{"event": "ask", "seconds": 1, "seed": 3}', '{"event": "ask", "seconds": 1, "seed": 3.5}'),
        ('{"event": "ask", "seconds": 1}', '{"event": ["ask"], "seconds": 1}'),
    ],
    ids=lambda line: line[:50],
)
def test_a_bad_value_in_an_event_like_the_good_one_before(tmp_path, good, bad):
    path = tmp_path / "ledger.jsonl"
    path.write_text(f"{good}\n{good}\n{bad}\n")
    with pytest.raises(UsageError, match="line 3 is damaged"):
        ledger.read(path)
    path.write_text(f"{good}\n{good}\n")
    assert ledger.read(path) == [json.loads(good)] * 2


@pytest.mark.parametrize("piece", [1, 7, 64, 100, 1000])
def test_lines_are_whole_wherever_a_piece_ends(tmp_path, monkeypatch, piece):
    """The same events, the same torn line, the same number of a damaged one."""
    path = written(tmp_path / "ledger.jsonl", *({"event": "note", "text": "x" * (7 * number)} for number in range(9)))
    path.write_bytes(path.read_bytes() + b'{"event": "no')
    expected = [json.loads(line) for line in path.read_bytes().splitlines()[:-1]]
    monkeypatch.setattr(ledger, "PIECE", piece)
    assert ledger.read(path) == expected
    book = Ledger(path)
    book.close()
    assert book.events == expected
    assert path.read_bytes().endswith(b"}\n"), "the torn line is gone"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:6], b"{}\n", *lines[6:]]))
    with pytest.raises(UsageError, match="line 7 is damaged"):
        ledger.read(path)


def test_reading_leaves_the_collector_as_it_was(tmp_path):
    path, damaged = written(tmp_path / "ledger.jsonl", HEADER), tmp_path / "damaged.jsonl"
    damaged.write_bytes(b"damaged\n")
    for is_on in (False, True):
        (gc.enable if is_on else gc.disable)()
        try:
            ledger.read(path)
            assert gc.isenabled() is is_on
            with pytest.raises(UsageError):
                ledger.read(damaged)
            assert gc.isenabled() is is_on
        finally:
            gc.enable()


@given(cut=st.integers(1, 60))
def test_a_torn_last_line_is_dropped_and_the_next_event_follows(cut, tmp_path_factory):
    path = written(tmp_path_factory.mktemp("torn") / "ledger.jsonl", HEADER, {"event": "note", "text": "x" * 40})
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    torn = whole[: -min(cut, last - 1)]  # without its newline the last line counts as never written
    path.write_bytes(torn)
    assert [event["event"] for event in ledger.read(path)] == ["search"]
    assert path.read_bytes() == torn, "reading changes nothing: another process may be writing"
    written(path, {"event": "after"})
    assert [event["event"] for event in ledger.read(path)] == ["search", "after"]


def test_who_opens_a_ledger_with_a_torn_line_is_told(tmp_path, capsys):
    path = written(tmp_path / "ledger.jsonl", HEADER)
    path.write_bytes(path.read_bytes() + b'{"event": "tell", "num')
    ledger.read(path)
    assert capsys.readouterr().err == "", "its writer may be at it"
    written(path, {"event": "after"})
    assert f"{path} ends with 22 bytes of an event that was not written whole" in capsys.readouterr().err
    written(path, {"event": "later"})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(b'{"event": "note", "sec\n', id="cut in the middle"),
        pytest.param(b"\n", id="empty line"),
        pytest.param(b'{"event": "note"}\n', id="no time"),
        pytest.param(b"[1, 2]\n", id="no object"),
        pytest.param(b'{"event": "note", "seconds": 1}\r{"event"\n', id="carriage return"),
        pytest.param(b"\x00\x00\x00\xff\n", id="no text"),
    ],
)
def test_damage_before_the_last_line_is_refused_and_nothing_is_changed(tmp_path, damage):
    path = written(tmp_path / "ledger.jsonl", HEADER)
    path.write_bytes(path.read_bytes() + damage + b'{"event": "note", "seconds": 2}\n')
    before = path.read_bytes()
    for action in (ledger.read, Ledger):
        with pytest.raises(UsageError, match=r"ledger\.jsonl: line 2 is damaged"):
            action(path)
    assert path.read_bytes() == before
    path.write_bytes(before.replace(damage, b""))
    Ledger(path).close()  # the refusal left no lock behind


def test_a_newer_schema_is_refused(tmp_path):
    path = written(tmp_path / "ledger.jsonl", {"event": "search", "schema": ledger.SCHEMA + 1})
    with pytest.raises(UsageError, match="upgrade autopeft"):
        ledger.read(path)


def test_a_folder_without_a_ledger_is_no_run(tmp_path):
    with pytest.raises(UsageError, match="is no run"):
        ledger.read(tmp_path / "ledger.jsonl")


def test_a_number_that_is_not_finite_is_no_json(tmp_path):
    book = Ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(ValueError):
        book.append({"event": "tell", "metrics": {"accuracy": float("nan")}})
    book.append(HEADER)
    assert len(ledger.read(book.path)) == 1


# ── one writer ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_second_writer_is_refused_until_the_first_one_closes(tmp_path):
    first = Ledger(tmp_path / "ledger.jsonl")
    first.append(HEADER)
    with pytest.raises(UsageError, match="being written by another process"):
        Ledger(first.path)
    assert len(ledger.read(first.path)) == 1, "reading needs no lock"
    first.append({"event": "note"})
    first.close()
    second = Ledger(first.path)
    assert len(second.events) == 2


def test_a_writer_in_another_process_is_refused_and_a_dead_one_holds_nothing(tmp_path):
    path = tmp_path / "ledger.jsonl"
    code = f"""
import time
from pathlib import Path
from autopeft.ledger import Ledger
Ledger(Path({str(path)!r})).append({{"event": "search", "schema": 1}})
book = Ledger(Path({str(path)!r}))
print("open", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "open\n"
        with pytest.raises(UsageError, match="being written by another process"):
            Ledger(path)
        writer.kill()
        writer.wait()
    assert len(Ledger(path).events) == 1


def test_a_file_system_without_locks_is_said_to_be_one(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(EnvironmentFault, match=r"cannot lock .*: No locks available"):
        Ledger(tmp_path / "ledger.jsonl")


def test_a_folder_that_is_not_there_is_an_environment_fault(tmp_path):
    with pytest.raises(EnvironmentFault, match=r"cannot open .*No such file"):
        Ledger(tmp_path / "nowhere" / "ledger.jsonl")


@pytest.mark.parametrize("how", ["deleted", "moved", "another in its place"])
def test_a_ledger_that_is_gone_is_said_at_once(tmp_path, how):
    """The system would take what is written to a deleted file, and nobody would ever read it."""
    run = tmp_path / "run"
    run.mkdir()
    book = Ledger(run / "ledger.jsonl")
    book.append(HEADER)
    run.rename(tmp_path / "moved")
    if how == "deleted":
        shutil.rmtree(tmp_path / "moved")
    if how == "another in its place":
        run.mkdir()
        book.path.touch()
    with pytest.raises(EnvironmentFault, match="deleted or moved"):
        book.append({"event": "note"})


# ── a full disk ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("room", [0, 1, 20])
def test_a_full_disk_is_said_and_what_was_written_stays_readable(tmp_path, room):
    book = Ledger(tmp_path / "ledger.jsonl")
    book.append(HEADER)
    before = book.path.read_bytes()
    with no_files_beyond(len(before) + room):
        with pytest.raises(EnvironmentFault, match=r"cannot write .*Nothing told so far is lost"):
            book.append({"event": "note", "text": "x" * 100})
        assert book.path.read_bytes() == before, "a part of the line stayed"
    book.append({"event": "note", "text": "there is room again"})
    assert [event["event"] for event in ledger.read(book.path)] == ["search", "note"]


def test_no_event_follows_a_part_of_one(tmp_path, monkeypatch):
    """Where not even cutting off the torn line works, the ledger takes no more: a part in the middle is damage."""
    book = Ledger(tmp_path / "ledger.jsonl")
    book.append(HEADER)

    class Broken:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            return self.file.write(data[:10])

        def truncate(self, size):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        def __getattr__(self, name):
            return getattr(self.file, name)

    book._file = Broken(book._file)
    with pytest.raises(EnvironmentFault):
        book.append({"event": "note"})
    with pytest.raises(ValueError):
        book.append({"event": "note"})
    assert ledger.read(book.path)[0]["event"] == "search"
    assert json.loads(book.path.read_bytes().splitlines()[0])["event"] == "search"
    assert len(Ledger(book.path).events) == 1
