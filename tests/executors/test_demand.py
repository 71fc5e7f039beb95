"""What a worker asks of a node: how many fit, and what is said if none does."""

from __future__ import annotations

import pytest

from autopeft.errors import UsageError
from autopeft.executors._demand import Demand


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "expected"),
    [
        ({"CPU": 4.0}, 1, 0, 4),
        ({"CPU": 4.0}, 1.5, 0, 2),
        ({"CPU": 0.3}, 0.1, 0, 3),
        ({"CPU": 4.0}, 1, 1, 0),
        ({"CPU": 4.0, "GPU": 2.0}, 1, 1, 2),
        ({"CPU": 16.0, "GPU": 2.0}, 1, 0.5, 4),
        ({"CPU": 16.0, "GPU": 2.0}, 1, 0.4, 4),  # two on each GPU: none lies on both
        ({"CPU": 16.0, "GPU": 3.0}, 1, 2, 1),
        ({"CPU": 3.0, "GPU": 8.0}, 1, 0.1, 3),
        ({"memory": 1.0}, 1, 0, 0),
    ],
)
def test_room_of_a_node(resources, cpus, gpus, expected):
    assert Demand(cpus, gpus).room(resources) == expected


@pytest.mark.parametrize(
    ("others", "expected"), [({"licence": 1}, 2), ({"licence": 0.5}, 4), ({"memory": 3e9}, 3), ({"tpu": 1}, 0)]
)
def test_room_by_other_resources(others, expected):
    node = {"CPU": 8.0, "licence": 2.0, "memory": 1e10}
    assert Demand(1, 0, others).room(node) == expected


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"GPU": 1}, "GPU is executor.gpus_per_trial"),
        ({"cpu": 1}, "cpu is executor.cpus_per_trial"),
        ({"licence": 0}, "licence is a number above 0, not 0"),
        ({"licence": "1"}, "licence is a number above 0, not '1'"),
        ({"licence": True}, "licence is a number above 0, not True"),
        ({"licence": float("inf")}, "licence is a number above 0, not inf"),
    ],
)
def test_other_resources_that_make_no_sense(others, message):
    with pytest.raises(UsageError, match=message):
        Demand(1, 0, others)


def node(address, alive=True, **resources):
    return {"NodeManagerAddress": address, "Alive": alive, "Resources": resources}


def test_what_does_not_fit_is_said_with_what_each_node_has():
    nodes = [node("10.0.0.1", CPU=2.0), *(node(f"10.0.1.{n}", CPU=8.0, GPU=1.0, tpu=4.0) for n in range(9))]
    said = Demand(1, 0.5, {"tpu": 5, "memory": 1e9}).why_no_room(nodes)
    assert said == (
        "a trial asks for 1 CPU, 0.5 GPU, 5 tpu, 1000000000 memory, but no node of Ray has room for it (10.0.0.1: 2 "
        "CPU, 0 GPU, 0 tpu, 0 memory; 10.0.1.0, 10.0.1.1, 10.0.1.2, 10.0.1.3, 10.0.1.4, 10.0.1.5 and 3 more: 8 CPU, 1 "
        "GPU, 4 tpu, 0 memory). Ask for less (executor.cpus_per_trial, executor.gpus_per_trial, "
        "executor.resources_per_trial), or start a node that has it: `ray start --num-cpus=1 --num-gpus=1 "
        "--memory=1000000000 --resources='{\"tpu\": 5}'`"
    )


def test_nodes_that_ended_are_named_and_those_that_came_back_are_not():
    nodes = [node("10.0.0.1", CPU=0.0), node("10.0.0.2", alive=False), node("10.0.0.3", alive=False)]
    said = Demand(1).why_no_room([*nodes, node("10.0.0.3", CPU=0.5), node("10.0.0.2", alive=False)])
    assert "(10.0.0.1: 0 CPU; 10.0.0.3: 0.5 CPU; 10.0.0.2: ended)" in said
