"""Wrong configs and what is said of them: `tests/golden/NN_what.yaml` → `NN_what.txt`, word for word.

`AUTOPEFT_GOLDEN=write` writes the texts anew; read the diff before committing it. `<samplers>` in a text stands for
the names of all samplers, so that a new plugin changes no file here.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from autopeft import plugins
from autopeft.config import load
from autopeft.errors import ConfigError

FOLDER = Path(__file__).parent / "golden"
WRONG = sorted(FOLDER.glob("*.yaml"))


def test_there_are_thirty_or_more() -> None:
    assert len(WRONG) >= 30


@pytest.mark.parametrize("path", WRONG, ids=lambda path: path.stem)
def test_message(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    with pytest.raises(ConfigError) as caught:
        load(path.name)
    said = _without_names(str(caught.value) + "\n")
    golden = path.with_suffix(".txt")
    if os.environ.get("AUTOPEFT_GOLDEN") == "write":
        golden.write_text(said, encoding="utf-8")
    assert said == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", WRONG, ids=lambda path: path.stem)
def test_lines_are_where_the_fault_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault's line holds the last of its keys that the file has."""
    monkeypatch.chdir(FOLDER)
    text = path.read_text(encoding="utf-8").splitlines()
    with pytest.raises(ConfigError) as caught:
        load(path.name)
    for fault in caught.value.faults:
        if fault.line is not None and fault.path:
            line = text[fault.line - 1]
            keys = [key for key in re.split(r"\.", fault.path) if not key.isdigit()]
            assert any(key in line for key in keys) or line.lstrip().startswith("- "), (fault, line)


def _without_names(text: str) -> str:
    for kind in plugins.KINDS:
        text = text.replace(f"There are: {', '.join(plugins.names(kind))}\n", f"There are: <{kind}>\n")
    return text
