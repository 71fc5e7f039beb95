"""What is said of a node that cannot run trials."""

from __future__ import annotations

import pytest
from ray.exceptions import RuntimeEnvSetupError

from autopeft.errors import EnvironmentFault
from autopeft.executors import _nodes

NO_ROOM = "OSError: [Errno 28] No space left on device: '/tmp/ray'"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            RuntimeEnvSetupError(f"Could not create the actor.\nTraceback (most recent call last):\n  x\n{NO_ROOM}\n"),
            f"Failed to set up runtime environment: {NO_ROOM}",
        ),
        (RuntimeEnvSetupError(), "Failed to set up runtime environment."),
        (EnvironmentFault("it lacks a package\nmore of it"), "it lacks a package"),
    ],
)
def test_a_node_s_fault_is_said_in_one_line_with_the_reason(fault, said):
    assert _nodes._why(fault) == said
