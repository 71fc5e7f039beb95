"""Every sampler and every stopper keeps its family's contract by existing."""

import pytest

from autopeft import plugins, testing

# A fixed list has no draws to check: it is given them.
OPTIONS = {"fixed": lambda space: {"params": space.defaults()}}


@pytest.mark.parametrize("name", [name for name in plugins.names("samplers") if name not in OPTIONS])
def test_samplers(name):
    testing.check_sampler(plugins.load("samplers", name))


@pytest.mark.parametrize("name", plugins.names("stoppers"))
def test_stoppers(name):
    testing.check_stopper(plugins.load("stoppers", name))


def test_a_fixed_list_is_asked_in_order_and_ends():
    space = testing.example_space()
    members = space.defaults()
    sampler = plugins.load("samplers", "fixed")(space, testing.OBJECTIVES, testing.example_sizes, params=members)
    asked = [sampler.ask(number, 0) for number in range(len(members) + 1)]
    assert [dict(params) for params in asked[:-1]] == members
    assert asked[-1] is None
