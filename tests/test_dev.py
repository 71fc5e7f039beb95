"""`./dev`: which verb installs what, and that what came once stays. pip and the commands are fakes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
PYTHON = """#!/bin/sh
[ "$*" = "-m pip --version" ] || echo "$@" >> "$DEV_LOG"
"""


@pytest.fixture
def dev(tmp_path):
    """Runs a verb in a copy whose environment only notes what it is asked; gives what was installed."""
    for name in ("dev", "pyproject.toml", "constraints.txt"):
        shutil.copy(PROJECT / name, tmp_path / name)
    log = tmp_path / "log"
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name, text in [("python", PYTHON), *((name, "#!/bin/sh\n") for name in ("ruff", "mypy", "autopeft", "pytest"))]:
        (tmp_path / ".venv" / "bin" / name).write_text(text)
        (tmp_path / ".venv" / "bin" / name).chmod(0o755)

    def run(*words: str) -> list[str]:
        log.write_text("")
        environment = {key: value for key, value in os.environ.items() if key != "TORCH_INDEX_URL"}
        subprocess.run(["sh", "dev", *words], cwd=tmp_path, check=True, env=environment | {"DEV_LOG": str(log)})
        # The language model of benchmarks is looked for each time; its own script knows whether it is there.
        scripts = ("benchmarks/smollm2.py", "tests/security/audit.py")
        found = [line for line in log.read_text().splitlines() if line not in scripts]
        assert ("benchmarks/smollm2.py" in log.read_text()) == (words == ("setup", "bench"))
        return [line.split()[-1] for line in found]

    return run


@pytest.mark.parametrize(
    ("verb", "installed"),
    [("demo", "."), ("run true", "."), ("lint", ".[dev]"), ("types", ".[dev]"), ("setup", ".[dev]"),
     ("setup bench", ".[dev,bench]")],
)  # fmt: skip
def test_a_verb_installs_what_it_needs(dev, verb, installed):
    assert dev(*verb.split()) == [installed]
    assert dev(*verb.split()) == [], "once"


def test_what_came_once_stays(dev, tmp_path):
    steps = {"demo": ["."], "types": [".[dev]"], "run true": [], "setup bench": [".[dev,bench]"], "lint": []}
    for verb, installed in steps.items():
        assert dev(*verb.split()) == installed, verb
    (tmp_path / "constraints.txt").write_text("")  # another set: all of it anew
    assert dev("demo") == [".[dev,bench]"]
