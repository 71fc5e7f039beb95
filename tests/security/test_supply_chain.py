"""Row "supply chain", and the versions that the other rows need; `./dev audit` asks for known vulnerabilities."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import tomllib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.conftest import PROJECT
from tests.security import audit

# The first versions that have what the tests beside this one rely on.
FLOORS = {
    "torch": "2.6",  # CVE-2025-32434: pickles of weights ran code, weights_only or not
    "peft": "0.21",  # lists of the modules that an adapter's config may import
    "ray": "2.54",  # CVE-2026-27482; token authentication
    "mlflow": "3.10",  # CVE-2026-2614 and earlier traversals
    "jinja2": "3.1.6",
    "pillow": "11",
}


def pinned() -> dict[str, str]:
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_floors_are_where_the_vulnerabilities_end():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    lowest = {}
    for text in project["dependencies"]:
        requirement = Requirement(text)
        lowest[requirement.name] = next(Version(s.version) for s in requirement.specifier if s.operator == ">=")
    for name, floor in FLOORS.items():
        assert lowest[name] >= Version(floor), name
    assert all(Requirement(text).specifier for text in project["dependencies"]), "each has a floor"


def test_the_tested_set_is_pinned_whole():
    names = {re.sub(r"[-_.]+", "-", name).lower() for name in pinned()}
    assert names >= set(FLOORS)
    for line in (PROJECT / "constraints.txt").read_text().splitlines():
        assert not line or line.startswith("#") or re.fullmatch(r"[\w.\-]+==[\w.!+\-]+", line), line


class Advisories(BaseHTTPRequestHandler):
    """An advisory service: `known` is (name, version) → the ids of its advisories."""

    known: dict[tuple[str, str], list[str]]

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        found = [self.known.get((query["package"]["name"], query["version"]), []) for query in asked]
        data = json.dumps(
            {"results": [{"vulns": [{"id": name} for name in names]} if names else {} for names in found]}
        )
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data.encode())

    def log_message(self, *args: object) -> None:
        """Nothing."""


@contextmanager
def service(known):
    handler = type("Handler", (Advisories,), {"known": known})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/querybatch"
    finally:
        server.shutdown()
        server.server_close()


PROBE = {audit.KNOWN: ["PYSEC-1"]}


@pytest.mark.parametrize(
    ("known", "code", "said"),
    [
        (PROBE, 0, "no known vulnerability in 2 packages"),
        ({**PROBE, ("torch", "2.13.0"): ["GHSA-1"]}, 1, "torch 2.13.0: GHSA-1"),
        ({**PROBE, ("torch", "2.13.0"): ["GHSA-accepted"]}, 0, "accepted: torch 2.13.0: GHSA-accepted (not used)"),
        ({}, 0, "skipped"),
    ],
)
def test_an_audit_finds_what_is_known(known, code, said, capsys):
    with service(known) as url:
        found = audit.audit({"torch": "2.13.0+cpu", "ray": "2.60.0"}, url, {"GHSA-accepted": "not used"})
    assert found == code
    assert said in capsys.readouterr().out


def test_without_a_network_the_audit_says_that_it_was_skipped():
    done = subprocess.run(
        [sys.executable, audit.__file__, "http://127.0.0.1:1/"], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert "audit: skipped" in done.stdout
