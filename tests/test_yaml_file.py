"""A YAML file as plain data, with lines; each kind of damage is one message that names the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopeft import yaml_file
from autopeft.errors import ConfigError


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "my.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_values_are_yaml_1_2s(tmp_path: Path) -> None:
    document = yaml_file.read(written(tmp_path, "a: 1e-4\nb: off\nc: 2026-11-26\nd: {e: [1, yes]}\n"))
    assert document.content == {"a": 1e-4, "b": "off", "c": "2026-11-26", "d": {"e": [1, "yes"]}}


def test_each_key_and_entry_has_its_line(tmp_path: Path) -> None:
    document = yaml_file.read(written(tmp_path, "a:\n  b: 1\n\n  c:\n  - x\n  - d: 2\n"))
    assert document.lines == {"a": 1, "a.b": 2, "a.c": 4, "a.c.0": 5, "a.c.1": 6, "a.c.1.d": 6}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2\n", r"my\.yaml: 1 fault\n  line 2: is no YAML"),
        ("a: 1\na: 2\n", r"line 2: is no YAML: found duplicate key"),
        ("", "expected a mapping of sections .* got nothing"),
        ("- a\n", "expected a mapping of sections .* got a list"),
        (b"a: 1\nb: \xff\n", "line 2: is not UTF-8 text"),
        ("a: &x\n  b: *x\n", "holds an alias of something that holds it"),
        ("a: !!python/object/apply:os.system ['true']\n", "is no YAML"),
    ],
)
def test_damage_is_one_fault_with_its_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        yaml_file.read(written(tmp_path, text), "my.yaml")


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    written(tmp_path, "a: 1\n")
    with pytest.raises(ConfigError, match=r"there is no such file\. Did you mean 'my\.yaml'\?"):
        yaml_file.read(tmp_path / "mi.yaml")
    with pytest.raises(ConfigError, match="is a folder; expected a YAML file"):
        yaml_file.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "value"), [("60", 60), ("1e-4", 1e-4), ("[a, 1]", ["a", 1]), ("{b: null}", {"b": None}), ("", None)]
)
def test_a_value_is_what_stands_after_a_colon(text: str, value: object) -> None:
    assert yaml_file.value(text) == value


def test_a_value_that_is_no_yaml() -> None:
    with pytest.raises(ValueError, match="is no YAML"):
        yaml_file.value("[1")
