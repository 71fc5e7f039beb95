"""A fault of a node's machine, such as a full disk, is said with the node's name; a fault of another kind as it came."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest

from autopeft.errors import EnvironmentFault, UsageError
from autopeft.executors._actor import pack, placed, unpack
from autopeft.executors._nodes import Luggage

LUGGAGE = Luggage(None, "token", {})


@pytest.fixture
def node(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "0123456789abcdef"))
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.7")


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), "No space left on device (/tmp/x)"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (EnvironmentFault("no room for 3 MiB: make room"), "no room for 3 MiB: make room"),
        (
            Exception("I/O error: No space left on device (os error 28)"),
            "I/O error: No space left on device (os error 28)",
        ),
    ],
)
def test_a_fault_of_the_machine_names_its_node(node, fault, text):
    found = unpack(pack(placed(fault, LUGGAGE)))
    assert type(found) is EnvironmentFault
    assert str(found) == f"node 10.0.0.7 (01234567): {text}"
    assert type(fault).__name__ in found.__notes__[0], "where it came from"


def test_other_faults_and_those_of_this_machine_stay_as_they_are(node):
    for fault, luggage in ((UsageError("x"), LUGGAGE), (OSError(errno.ENOSPC, "full"), None)):
        assert placed(fault, luggage) is fault
