"""docker/test itself, where no engine is needed: it finds a secret in a layer, and a trial that is told twice."""

import gzip
import importlib.machinery
import importlib.util
import io
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[2] / "docker" / "test"


@pytest.fixture(scope="module")
def module():
    loader = importlib.machinery.SourceFileLoader("docker_test", str(FILE))
    found = importlib.util.module_from_spec(importlib.util.spec_from_loader("docker_test", loader))
    found.__loader__.exec_module(found)
    return found


@pytest.mark.parametrize("packed", [bytes, gzip.compress], ids=["plain", "compressed"])
@pytest.mark.parametrize("before", [0, 1, 2**24 - 10, 2**24 + 1])
def test_a_secret_is_found_wherever_it_lies_in_a_layer(module, packed, before):
    layer = packed(b"x" * before + b"0123456789abcdef" + b"y" * 100)
    assert module.names_within(io.BytesIO(layer), {"own": b"0123456789abcdef", "other": b"zzz"}) == {"own"}


def ask(number):
    return {"event": "ask", "number": number}


def tell(number, **other):
    return {"event": "tell", "number": number, **other}


def test_a_trial_that_is_told_twice_is_a_fault(module):
    with pytest.raises(SystemExit, match="trial 0 is told twice"):
        module.fold([ask(0), tell(0), tell(0)])


def test_a_lost_trial_that_runs_again_counts_once(module):
    lost, again = tell(0, fault="machine"), tell(0)
    assert module.fold([ask(0), ask(1), lost, {"event": "rerun", "number": 0}, again]) == ({0, 1}, {0: again})


def test_a_half_written_line_is_not_read(module):
    assert module.parsed('{"event": "ask", "number": 0}\n{"event": "te') == [ask(0)]


def test_the_front_is_what_nothing_beats(module):
    def metrics(accuracy, size):
        return {"accuracy": accuracy, "trainable_parameters": size}

    complete = {0: metrics(0.9, 100), 1: metrics(0.8, 100), 2: metrics(0.8, 10), 3: metrics(0.9, 100)}
    assert module.front(complete) == {(-0.9, 100), (-0.8, 10)}
