"""What `autopeft doctor` says of a store of MLflow: whether it is there, lets this user in, and has this MLflow's tables.

Nothing is written: no table is made, no schema upgraded.
"""

from __future__ import annotations

import os
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from autopeft.finding import Finding
from autopeft.trackers._store import SERVERS, SQLITE, import_mlflow, sqlite_path, without_chatter

NAME = "MLflow"
ANSWER_SECONDS = 10.0
LATER = "; or search now, and `autopeft track RUN` once it is there: nothing is lost"
DATABASES = ("postgresql", "mysql", "mssql")


def findings(uri: str) -> Iterator[Finding]:
    """Looks at the store of a tracking URI (`_store.tracking_uri`)."""
    if uri.startswith(SERVERS):
        yield from _server(uri)
    elif uri.startswith(SQLITE):
        yield from _sqlite(sqlite_path(uri))
    elif uri.split("+")[0].split(":")[0] in DATABASES:
        yield from _database(uri)
    else:
        text = f"{uri} is neither a server nor a database, so it was not looked at"
        yield Finding(
            NAME, "warn", text, "trackers: [{name: mlflow, uri: sqlite:////ABSOLUTE/mlflow.db}], or a server's"
        )


# ── a server ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _server(uri: str) -> Iterator[Finding]:
    split = urlsplit(uri)
    shown = f"{split.scheme}://{split.netloc.rpartition('@')[2]}{split.path.rstrip('/')}"
    try:
        with urllib.request.urlopen(f"{shown}/health", timeout=ANSWER_SECONDS) as answer:
            answer.read(100)
    except urllib.error.HTTPError as fault:
        if fault.code == 403:  # a Host header that it does not know
            todo = f"start it with --allowed-hosts {split.hostname}:{split.port or ''}"
            yield Finding(NAME, "fail", f"{shown} refuses the name {split.hostname} (403)", todo + LATER)
            return
        yield Finding(NAME, "warn", f"{shown}/health answers {fault.code}", "is it MLflow?" + LATER)
    except OSError as fault:
        reason = getattr(fault, "reason", fault)
        if isinstance(reason, TimeoutError) or isinstance(fault, TimeoutError):
            text = f"{shown} is silent for {ANSWER_SECONDS:g} s"
            yield Finding(NAME, "warn", text, "it may be busy: try again" + LATER)
            return
        yield Finding(NAME, "fail", f"{shown} cannot be reached: {reason}", "start it, or mend the URI" + LATER)
        return
    yield _let_in(uri, shown)


def _let_in(uri: str, shown: str) -> Finding:
    """Asks for one experiment, with the tracker's credentials."""
    import_mlflow(uri)
    from mlflow.utils import credentials, rest_utils

    creds_of: Any = credentials.get_default_host_creds
    request: Any = rest_utils.http_request
    bounds = {"timeout": ANSWER_SECONDS, "max_retries": 0, "raise_on_status": False, "json": {"max_results": 1}}
    try:
        with without_chatter():
            answer = request(creds_of(uri), "/api/2.0/mlflow/experiments/search", "POST", **bounds)
    except Exception as fault:  # MLflow's and its HTTP client's
        why = " ".join(str(fault).split())[:200]
        if "timed out" in why.lower():
            return Finding(NAME, "warn", f"{shown} answers slowly: {why}", "it may be busy: try again" + LATER)
        return Finding(NAME, "fail", f"{shown} answers, and cannot be read: {why}", "look at the server's log" + LATER)
    given = creds_of(uri)
    who = given.username or urlsplit(uri).username or ("this token" if given.token else "")
    if answer.status_code in (401, 403) and not who:
        todo = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN" + LATER
        text = f"{shown} does not let anybody in without a name ({answer.status_code})"
        return Finding(NAME, "fail", text, todo)
    if answer.status_code in (401, 403):
        todo = "mend MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN" + LATER
        return Finding(NAME, "fail", f"{shown} does not let {who} in ({answer.status_code})", todo)
    if answer.status_code != 200:
        text = f"{shown} answers {answer.status_code} when it is asked for an experiment"
        return Finding(NAME, "fail", text, "is it MLflow? Look at its log" + LATER)
    return Finding(NAME, "ok", f"{shown} answers and can be read" + (f", as {who}" if who else ""))


# ── a database ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _sqlite(path: Path) -> Iterator[Finding]:
    if not path.exists():
        above = next((folder for folder in path.absolute().parents if folder.exists()), Path("/"))
        if os.access(above, os.W_OK):
            yield Finding(NAME, "ok", f"{path} is made by the first search")
        else:
            todo = "trackers: [{name: mlflow, uri: sqlite:////ELSEWHERE/mlflow.db}]" + LATER
            yield Finding(NAME, "fail", f"{path} cannot be made: {above} is not writable", todo)
        return
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", timeout=ANSWER_SECONDS, uri=True)) as book:
            tables = {row[0] for row in book.execute("select name from sqlite_master where type = 'table'")}
            query = "select version_num from alembic_version"
            revisions = [row[0] for row in book.execute(query)] if "alembic_version" in tables else []
            book.execute("begin immediate")  # takes the lock of a writer, and writes nothing
            book.rollback()
    except sqlite3.OperationalError as fault:
        if "locked" in str(fault):
            text = f"{path} was locked for {ANSWER_SECONDS:g} s"
            yield Finding(NAME, "warn", text, "another program writes to it: try again" + LATER)
            return
        yield Finding(NAME, "fail", f"{path} cannot be written: {fault}", "mend its mode and owner" + LATER)
        return
    except sqlite3.DatabaseError as fault:
        yield Finding(
            NAME, "fail", f"{path} is damaged, or no database: {fault}", "move it away, or name another" + LATER
        )
        return
    yield _schema(f"{path}", f"sqlite:///{path}", revisions[0] if revisions else None)


def _database(uri: str) -> Iterator[Finding]:
    import_mlflow(uri)
    import sqlalchemy
    from alembic.migration import MigrationContext

    try:
        url = sqlalchemy.engine.make_url(uri)
        shown = url.render_as_string(hide_password=True)
        timeout = {} if url.get_backend_name() == "mssql" else {"connect_timeout": int(ANSWER_SECONDS)}
        with sqlalchemy.create_engine(url, connect_args=timeout).connect() as connection:
            revision = MigrationContext.configure(connection).get_current_revision()
    except ImportError as fault:
        todo = "`pip install psycopg2-binary`, and write postgresql+psycopg2://…; or another driver" + LATER
        yield Finding(NAME, "fail", f"the database's driver is missing: {fault}", todo)
        return
    except sqlalchemy.exc.SQLAlchemyError as fault:
        why = " ".join(str(fault).split("\n(Background")[0].split())[:300]
        state, todo = (
            ("warn", "it may be busy: try again")
            if "timeout" in why
            else ("fail", "is it up, are user and name right?")
        )
        yield Finding(NAME, state, f"{shown} cannot be opened: {why}", todo + LATER)  # type: ignore[arg-type]
        return
    yield _schema(shown, shown, revision)


def _schema(what: str, uri: str, revision: str | None) -> Finding:
    """Compares the tables of a database with those of this MLflow."""
    if revision is None:
        return Finding(NAME, "ok", f"{what} has no tables yet: the first search makes them")
    import_mlflow(uri)
    import mlflow
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    if revision in scripts.get_heads():
        return Finding(NAME, "ok", f"{what} is writable, and has the tables of MLflow {mlflow.__version__}")
    if any(script.revision == revision for script in scripts.walk_revisions()):
        text = f"{what} has the tables of an older MLflow ({revision})"
        return Finding(NAME, "fail", text, f"copy it, then `mlflow db upgrade {uri}`" + LATER)
    text = f"{what} has tables that MLflow {mlflow.__version__} does not know ({revision})"
    return Finding(
        NAME, "fail", text, "a newer MLflow made them: upgrade mlflow here, or name another database" + LATER
    )
