"""A list of configurations from the config or a file, and what may be wrong with one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autopeft.errors import ConfigError, UsageError
from autopeft.samplers.fixed import FixedSampler
from autopeft.testing import OBJECTIVES, example_sizes, example_space

SPACE = example_space()
MEMBERS = SPACE.defaults()


@pytest.mark.parametrize("lines", [False, True])
def test_a_file_is_a_json_list_or_a_line_each(tmp_path: Path, lines: bool) -> None:
    file = tmp_path / "front.json"
    file.write_text("\n".join(map(json.dumps, MEMBERS)) + "\n\n" if lines else json.dumps(MEMBERS, indent=1))
    sampler = FixedSampler(SPACE, OBJECTIVES, example_sizes, file=str(file))
    assert [sampler.ask(number, 0) for number in range(len(MEMBERS) + 1)] == [*MEMBERS, None]


def test_all_faults_of_a_list_at_once() -> None:
    listed = [MEMBERS[0], {"method": "lroa"}, 7, {"method": "head"}]
    with pytest.raises(ConfigError) as fault:
        FixedSampler(SPACE, OBJECTIVES, example_sizes, params=listed)  # type: ignore[list-item]
    assert [(one.path, one.message) for one in fault.value.faults] == [
        ("1", "method 'lroa' is none of head, lora, lora+bias"),
        ("2", "7 is no mapping"),
        ("3", "head.lr is missing"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "an empty list"),
        ('{"method": "head"', "is neither a JSON list nor JSON Lines"),
        (None, "cannot read the configurations of the sampler 'fixed': .*No such file"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "front.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError, match=message):
        FixedSampler(SPACE, OBJECTIVES, example_sizes, file=str(file))


def test_a_list_or_a_file_and_not_both() -> None:
    for options in ({}, {"params": MEMBERS, "file": "front.json"}):
        with pytest.raises(UsageError, match="give one of them"):
            FixedSampler(SPACE, OBJECTIVES, example_sizes, **options)  # type: ignore[arg-type]
