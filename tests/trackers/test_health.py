"""What doctor says of MLflow's store: real SQLite files, and servers that answer one way or another."""

from __future__ import annotations

import socket
import sqlite3
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from autopeft.trackers import _health
from autopeft.trackers._health import findings
from autopeft.trackers.mlflow import MLflow


def the(uri):
    (found,) = findings(uri)
    return found


@pytest.fixture(scope="module")
def head():
    """The revision of this MLflow's tables."""
    from alembic.script import ScriptDirectory
    from mlflow import __file__ as mlflow

    return ScriptDirectory(str(_health.Path(mlflow).parent / "store" / "db_migrations"))


def database(path, revision):
    with closing(sqlite3.connect(path)) as book:
        book.execute("create table alembic_version (version_num text)")
        book.execute("insert into alembic_version values (?)", [revision])
        book.commit()
    return f"sqlite:///{path}"


def test_a_file_that_is_not_there_is_made_by_the_first_search(tmp_path):
    found = the(MLflow(tmp_path / "runs" / "a").uri)
    assert found.state == "ok" and "is made by the first search" in found.text
    assert not list(tmp_path.iterdir())
    assert the("sqlite:////proc/nowhere/mlflow.db").state in ("ok", "fail")  # root may write anywhere that is named


def test_tables_of_this_of_an_older_and_of_a_newer_mlflow(tmp_path, head):
    now = database(tmp_path / "now.db", head.get_current_head())
    assert the(now).state == "ok"
    older = the(database(tmp_path / "older.db", head.get_bases()[0]))
    assert (
        older.state == "fail"
        and "older MLflow" in older.text
        and f"mlflow db upgrade sqlite:///{tmp_path}" in older.todo
    )
    newer = the(database(tmp_path / "newer.db", "ffffffffffff"))
    assert newer.state == "fail" and "does not know" in newer.text


def test_a_file_that_is_locked_damaged_or_empty(tmp_path, monkeypatch, head):
    monkeypatch.setattr(_health, "ANSWER_SECONDS", 0.2)
    uri = database(tmp_path / "mlflow.db", head.get_current_head())
    with closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as writer:
        writer.execute("begin immediate")
        locked = the(uri)
    assert locked.state == "warn" and "locked" in locked.text and "nothing is lost" in locked.todo
    (tmp_path / "text.db").write_text("not a database, and more than sixteen bytes of it")
    assert the(f"sqlite:///{tmp_path / 'text.db'}").state == "fail"
    (tmp_path / "empty.db").touch()
    assert "has no tables yet" in the(f"sqlite:///{tmp_path / 'empty.db'}").text


def test_another_kind_of_store_is_not_looked_at_and_a_missing_driver_is_said():
    assert the("databricks").state == "warn"
    found = the("mysql+pymysql_of_nobody://me:hunter22@127.0.0.1:1/db")
    assert found.state == "fail" and "hunter22" not in found.text + found.todo


class Answers(BaseHTTPRequestHandler):
    health, experiments = 200, 200

    def do_GET(self):
        self._answer(self.health)

    def do_POST(self):
        self._answer(self.experiments)

    def _answer(self, code):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(code)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    ("health", "experiments", "state", "says"),
    [
        (200, 200, "ok", "can be read"),
        (200, 401, "fail", "does not let me in"),
        (200, 403, "fail", "does not let me in"),
        (403, 200, "fail", "refuses the name"),
        (404, 200, "ok", "can be read"),
    ],
)
def test_servers(health, experiments, state, says):
    handler = type("Handler", (Answers,), {"health": health, "experiments": experiments})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        *before, found = findings(f"http://me:hunter22@127.0.0.1:{server.server_address[1]}/")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert found.state == state and says in found.text
    assert [each.state for each in before] == (["warn"] if health == 404 else [])
    assert "hunter22" not in found.text


def test_a_server_that_is_down_fails_and_one_that_is_silent_is_a_warning(monkeypatch):
    monkeypatch.setattr(_health, "ANSWER_SECONDS", 0.3)
    assert the("http://127.0.0.1:9").state == "fail"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = the(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert found.state == "warn" and "is silent" in found.text
