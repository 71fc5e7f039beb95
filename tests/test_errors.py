"""The tree of errors: exit codes as documented, messages that help, and errors that cross a process."""

from __future__ import annotations

import pickle
import re

import pytest

from autopeft import errors
from autopeft.errors import AutoPEFTError, ConfigError, Fault, Refused, UnknownName, did_you_mean


def test_each_error_is_in_the_tree_with_its_exit_code() -> None:
    drawn = dict(re.findall(r"(\w+) +([0-9–])  ", errors.__doc__ or ""))
    kinds = {
        name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)
    }
    assert set(drawn) == set(kinds)
    for name, code in drawn.items():
        assert code == "–" or kinds[name].exit_code == int(code), name
        assert issubclass(kinds[name], AutoPEFTError)


@pytest.mark.parametrize(
    "error",
    [
        ConfigError([Fault("training.epochs", "expected above 0, got 0", 3), Fault("", "is empty")], "my.yaml"),
        UnknownName("sampler", "tpee", ["tpe", "random"]),
        Refused("over the budget", {"trainable_parameters": 7.0}),
    ],
)
def test_errors_survive_the_way_from_a_worker(error: AutoPEFTError) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  (our own bytes)
    assert type(again) is type(error)
    assert str(again) == str(error)


def test_faults_name_line_and_path() -> None:
    text = str(ConfigError([Fault("a.b", "is missing", 3), Fault("c", "is empty")], "my.yaml"))
    assert text == "my.yaml: 2 faults\n  line 3: a.b: is missing\n  c: is empty"


@pytest.mark.parametrize(("name", "expected"), [("tpee", " Did you mean 'tpe'?"), ("zzz", ""), (3, ""), (None, "")])
def test_the_nearest_name_is_offered_where_one_is_near(name: object, expected: str) -> None:
    assert did_you_mean(name, ["tpe", "random"]) == expected
