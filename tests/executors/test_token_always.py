"""Ray listens on all addresses, and runs any code that it gets: nothing in this repository starts one without a token."""

from __future__ import annotations

import re

from tests.conftest import PROJECT

STARTS = re.compile(r"ray\.init\(|\bray start\b|\"start\", \"--block\"")
TOKEN = re.compile(r"RAY_AUTH_MODE|own_token")
# They name a start in a text, or start by what another file gives them.
WITHOUT = {
    "autopeft/executors/_demand.py": "names it in a message",
    "docker/bin/ray-node": "gets mode and token from docker/compose.yaml, which tests/docker looks at",
    "tests/cluster/test_faults.py": "names it in a message; starts by tests/cluster/namespaces.py",
    "tests/cluster/test_nodes.py": "names it in a message; starts by tests/cluster/namespaces.py",
    "tests/executors/test_demand.py": "names it in a message",
}


def test_each_file_that_starts_a_ray_sets_token_mode():
    found = {}
    for top in ("autopeft", "benchmarks", "docker", "tests", "dev"):
        paths = [PROJECT / top] if (PROJECT / top).is_file() else (PROJECT / top).rglob("*")
        for path in paths:
            if path.is_file() and path.suffix in ("", ".py", ".sh", ".yaml") and "__pycache__" not in path.parts:
                text = path.read_text(encoding="utf-8")
                if STARTS.search(text):
                    found[str(path.relative_to(PROJECT))] = bool(TOKEN.search(text))
    assert {"autopeft/executors/_local.py", "tests/conftest.py", "benchmarks/engine/plain.py"} <= set(found)
    assert {name for name, has_token in found.items() if not has_token} <= set(WITHOUT)
