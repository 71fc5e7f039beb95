"""Weight decay is decoupled from the gradient, in both optimisers."""

import pytest
import torch

from autopeft.training.optimizer import SGDW


def test_sgds_decay_is_no_part_of_its_momentum():
    """Two steps against the formula: p ← p (1 − lr · decay) − lr · m, m ← 0.9 m + g."""
    parameter = torch.nn.Parameter(torch.tensor([2.0, -1.0]))
    optimizer = SGDW([{"params": [parameter], "lr": 0.1, "weight_decay": 0.0, "decay": 0.5}], 0.9)
    expected, momentum = parameter.detach().clone(), torch.zeros(2)
    for gradient in (torch.tensor([1.0, 3.0]), torch.tensor([-2.0, 0.5])):
        parameter.grad = gradient.clone()
        optimizer.step()
        momentum = 0.9 * momentum + gradient
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * momentum
        assert torch.allclose(parameter.detach(), expected)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_without_decay_it_is_sgd(decay):
    ours, theirs = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = SGDW([{"params": [ours], "lr": 0.1, "weight_decay": 0.0, "decay": decay}], 0.9)
    plain = torch.optim.SGD([theirs], lr=0.1, momentum=0.9)
    for parameter, each in ((ours, optimizer), (theirs, plain)):
        parameter.grad = torch.full((3,), 0.5)
        each.step()
    assert torch.allclose(ours, theirs) == (decay == 0.0)
