"""The benchmark that the default stopper was chosen by: its main row stays where it is, on the recorded curves."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from tests.conftest import PROJECT, shared_path


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """benchmarks/stopping/run.py, as a module."""
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location("stopping_benchmark", PROJECT / "benchmarks" / "stopping" / "run.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def test_the_default_keeps_the_front_at_a_fraction_of_the_compute(benchmark: ModuleType) -> None:
    """DESIGN and LOG.md: .99 of the hypervolume, worst order .97, at 2.7×, by the product's own stopper."""
    curves = benchmark.read_curves(shared_path("data", "peft_metamathqa_curves"))
    assert len(curves) == 63
    made, rungs = benchmark.STOPPERS["dominated by 2"], benchmark.RUNGS["250, 750, 2,000"]
    found = benchmark.outcome(curves, made, rungs, "train_loss", orders=20)
    assert found.kept == pytest.approx(0.99, abs=0.005)
    assert found.worst > 0.96
    assert found.saving == pytest.approx(2.7, abs=0.15)


def test_nothing_stopped_is_nothing_lost_and_nothing_saved(benchmark: ModuleType) -> None:
    from autopeft.stoppers.never import NeverStopper

    curves = benchmark.read_curves(shared_path("data", "peft_metamathqa_curves"))
    found = benchmark.outcome(curves, NeverStopper, benchmark.RUNGS["500"], "accuracy", orders=2)
    assert (found.kept, found.worst, found.saving) == (1.0, 1.0, 1.0)
    assert found.saving_seconds == pytest.approx(1.0)
