"""PostgreSQL and an MLflow server with users, really started, and a proxy in front that counts, delays and fails.

All listen on loopback only, at ports that the kernel chose. PostgreSQL refuses to run as root: then `nobody` runs it.
"""

from __future__ import annotations

import base64
import contextlib
import glob
import http.client
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 300.0  # seconds; a loaded machine takes minutes for what takes seconds
ADMIN, ADMIN_PASSWORD = "admin", "Adm1n-long-enough"
DATABASE_PASSWORD = "Database-long-enough"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(what: str, is_there: Callable[[], bool]) -> None:
    """Asks until it is there; errors of the network count as no."""
    until = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if is_there():
                return
        assert time.monotonic() < until, f"{what}: not within {PATIENCE:.0f} s"
        time.sleep(0.2)


class Postgres:
    """A database cluster in a folder of its own under the temporary folder, which `nobody` can reach.

    Args:
        home: Where the data lies; a new folder by default.
    """

    def __init__(self, home: Path | None = None) -> None:
        self.programs = _postgres_programs()
        self.owned = home is None
        self.home = home or Path(tempfile.mkdtemp(prefix="autopeft-pg-"))
        self.port = free_port()
        self.log = open(self.home / "postgres.log", "ab")  # noqa: SIM115  (the processes have it)
        (self.home / "password").write_text(DATABASE_PASSWORD)
        self.as_user: list[str] = []
        if os.geteuid() == 0:
            self.as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
            nobody = pwd.getpwnam("nobody")
            for path in (self.home, self.home / "password"):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
        # Segments of 1 MB: the cluster fits on a small disk.
        self._run("initdb", "-D", str(self.data), "-U", "mlflow", "--auth=scram-sha-256", "--no-sync",
                  "--wal-segsize=1", f"--pwfile={self.home / 'password'}")  # fmt: skip
        self.start()
        for name in ("tracking", "users"):
            self._execute(f"CREATE DATABASE {name}")

    @property
    def data(self) -> Path:
        return self.home / "data"

    def uri(self, name: str) -> str:
        """Without the password, which the process list would show: it is in PGPASSWORD."""
        return f"postgresql+psycopg://mlflow@127.0.0.1:{self.port}/{name}"

    def start(self) -> None:
        """Starts the server, and waits until it answers. What was killed a moment ago may still be ending."""

        def answers() -> bool:
            if self.process is None or self.process.poll() is not None:
                self.process = subprocess.Popen(
                    [*self.as_user, str(self.programs / "postgres"), "-D", str(self.data), "-p", str(self.port),
                     "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.home}",
                     "-c", "fsync=off", "-c", "max_wal_size=8MB", "-c", "min_wal_size=2MB"],
                    cwd=self.home, stdout=self.log, stderr=self.log, start_new_session=True,
                )  # fmt: skip
            return self._answers()

        self.process: subprocess.Popen[bytes] | None = None
        wait_for("PostgreSQL", answers)

    def kill(self) -> None:
        """As `kill -9` of the postmaster: its other processes end by themselves."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def dump(self) -> str:
        """All of the content, as SQL."""
        words = ["pg_dumpall", "-h", "127.0.0.1", "-p", str(self.port), "-U", "mlflow", "--no-role-passwords"]
        return self._run(*words, PGPASSWORD=DATABASE_PASSWORD)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # a fast shutdown
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
            self.process.kill()
            self.process.wait()
        self.log.close()
        if self.owned:
            shutil.rmtree(self.home, ignore_errors=True)

    def _answers(self) -> bool:
        import psycopg

        try:
            self._execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _execute(self, statement: str) -> None:
        import psycopg

        words = {"host": "127.0.0.1", "port": self.port, "user": "mlflow", "password": DATABASE_PASSWORD}
        with psycopg.connect(dbname="postgres", autocommit=True, connect_timeout=10, **words) as connection:
            connection.execute(statement.encode())

    def _run(self, program: str, *words: str, **environment: str) -> str:
        done = subprocess.run(
            [*self.as_user, str(self.programs / program), *words], cwd=self.home, check=False, text=True,
            capture_output=True, env={**os.environ, **environment},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


class Server:
    """`mlflow server` with one worker, in a process group of its own.

    Args:
        folder: For artifacts, users and the log.
        store: URI of the backend store; by default a SQLite file in the folder.
        users: URI of the users' database; None: without authentication.
    """

    def __init__(self, folder: Path, store: str | None = None, users: str | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, free_port()
        self.store = store or f"sqlite:///{folder / 'mlflow.db'}"
        # Without what would point it, or its log-in, elsewhere.
        others = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        self.environment = {
            **others,
            "PGPASSWORD": DATABASE_PASSWORD,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        self.words: list[str] = []
        if users is not None:
            self.words = ["--app-name", "basic-auth"]
            (folder / "auth.ini").write_text(
                "[mlflow]\ndefault_permission = NO_PERMISSIONS\nadmin_username = admin\n"
                f"database_uri = {users}\nauth_cache_ttl_seconds = 60\n"
                "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            )
            self.environment |= {
                "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
                "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN_PASSWORD,
                "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-the-tests",
            }
        self.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it, at the same port as before, and waits until it answers."""
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.store, *self.words,
                 "--artifacts-destination", str(self.folder / "served"), "--port", str(self.port), "--workers", "1"],
                cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

        def answers() -> bool:
            assert self.process.poll() is None, (self.folder / "server.log").read_text()[-3000:]
            with urllib.request.urlopen(f"{self.address}/health", timeout=5):
                return True

        wait_for("MLflow's server", answers)

    def kill(self) -> None:
        """As `kill -9` of all of its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def add_user(self, name: str, password: str) -> None:
        body = json.dumps({"username": name, "password": password}).encode()
        login = base64.b64encode(f"{ADMIN}:{ADMIN_PASSWORD}".encode()).decode()
        headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.address}/api/2.0/mlflow/users/create", body, headers)
        with urllib.request.urlopen(request, timeout=PATIENCE):
            pass


class Proxy(ThreadingHTTPServer):
    """Passes requests on, and counts them. `go_down` and `come_up` are a server's death and return.

    Args:
        port: The server's; 0 if there is none, and all is refused.

    Attributes:
        seen: `POST runs/create` → number of such requests.
        delay: Seconds that each request waits before it is passed on.
        refusal: Status that each request gets instead of an answer; None: it is passed on.
        refused_with: The text of such an answer.
        losing: Number of answers about new runs that are lost from now on: the server has made the run by then.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.target, self.seen = port, Counter[str]()
        self.delay: float = 0.0
        self.refusal: int | None = None
        self.refused_with = b"no space left on device"
        self.losing = 0
        self._counting = threading.Lock()
        self._serve()

    def _serve(self) -> None:
        self.is_up = True
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def go_down(self) -> None:
        """From now on nobody listens there, and connections that are open end without an answer."""
        self.is_up = False
        self.shutdown()
        self.socket.close()

    def come_up(self) -> None:
        """Listens again, at the same port."""
        self.socket = socket.socket(self.address_family, self.socket_type)
        self.server_bind()
        self.server_activate()
        self._serve()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def count(self, method: str, path: str) -> None:
        with self._counting:
            self.seen[f"{method} {path.partition('?')[0].removeprefix('/api/2.0/mlflow/')}"] += 1

    def close(self) -> None:
        if self.is_up:
            self.go_down()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: clients that give up are what it is for."""


class _Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.server.is_up:
            self.close_connection = True
            return
        self.server.count(self.command, self.path)
        time.sleep(self.server.delay)
        if self.server.refusal is not None:
            self._answer(self.server.refusal, {}, self.server.refused_with)
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=PATIENCE)
        try:
            headers = {key: value for key, value in self.headers.items() if key.lower() != "connection"}
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            content = answer.read()
        except OSError:
            self.close_connection = True  # what the client would see of a server that is down
            return
        finally:
            connection.close()
        if self.path.endswith("/runs/create") and self.server.losing:
            self.server.losing -= 1
            self.close_connection = True
            return
        self._answer(answer.status, dict(answer.getheaders()), content)

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for key, value in headers.items():
            if key.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _pass_on

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps quiet."""


def needs_postgres() -> None:
    """Skips the test, with the reason, where PostgreSQL or what MLflow needs for it and for users is absent."""
    try:
        _postgres_programs()
    except FileNotFoundError as fault:
        pytest.skip(str(fault))
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("needs setpriv (util-linux): PostgreSQL does not run as root")
    for module, package in (("psycopg", "psycopg[binary]"), ("flask_wtf", "Flask-WTF")):
        if find_spec(module) is None:
            pytest.skip(f"needs the [server] extra: {package}")


def _postgres_programs() -> Path:
    """The folder of PostgreSQL's programs, the newest. Debian keeps them off the PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += [Path(name) for name in sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)]
    for folder in folders:
        if all((folder / name).exists() for name in ("initdb", "postgres", "pg_dumpall")):
            return folder
    raise FileNotFoundError("needs PostgreSQL's initdb: apt-get install --no-install-recommends postgresql")
