"""Clusters for tests: each test here is marked `cluster`, and skipped, with the reason, where there can be none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.namespaces import Cluster, why_not

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def possible() -> None:
    """Skips what needs network namespaces where they cannot be made."""
    reason = why_not()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def make_cluster(possible: None) -> Iterator[Callable[..., Cluster]]:
    """Makes clusters that are ended with the module's tests."""
    made: list[Cluster] = []

    def make(**options: object) -> Cluster:
        made.append(Cluster(**options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()
