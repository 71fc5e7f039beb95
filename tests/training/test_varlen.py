"""Flash attention by boundaries is used where it computes what plain attention does, forward and backward."""

import pytest
import torch

from autopeft.training import varlen
from autopeft.training.varlen import LENGTHS, _plain, agrees, attention

CPU = torch.device("cpu")
WINDOWS = [(-1, -1), (-1, 0), (2, 0), (2, 2)]


def right(query, key, value, bounds, _, longest, __, window_size):
    """What torch's kernel should do: (n, heads, width) each."""
    assert bounds.dtype == torch.int32 and longest == max(LENGTHS)
    states = (each.transpose(0, 1).float() for each in (query, key, value))
    return _plain(*states, window_size).to(query.dtype)


WRONG = {
    "rows see each other": lambda q, k, v, *_, **__: torch.nn.functional.scaled_dot_product_attention(
        *(each.transpose(0, 1) for each in (q, k, v))
    ).transpose(0, 1),
    "another window": lambda *given, window_size: right(*given, window_size=(1, 1)),
    "no gradient of the keys": lambda q, k, *given, **more: right(q, k.detach() + 0 * k, *given, **more),
    "not scaled": lambda q, *given, **more: right(q * q.shape[-1] ** 0.5, *given, **more),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", WINDOWS)
def test_a_kernel_that_is_right_agrees(window, dtype):
    assert agrees(right, CPU, dtype, 32, window)


@pytest.mark.parametrize("kernel", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("window", WINDOWS)
def test_one_that_is_wrong_does_not(window, kernel):
    assert not agrees(kernel, CPU, torch.bfloat16, 32, window)


@pytest.mark.parametrize(
    ("kernel", "is_used", "said"),
    [
        (right, True, ""),
        (WRONG["another window"], False, "computes otherwise"),
        (lambda *given, is_causal=False: None, False, "unexpected keyword argument 'window_size'"),
    ],
)
def test_it_is_asked_once(monkeypatch, caplog, kernel, is_used, said):
    """A kernel that takes no windows, as torch 2.10 has it, is none."""
    calls = []
    monkeypatch.setattr(varlen, "_kernel", lambda: calls.append(kernel) or kernel)
    varlen._is_right_here.cache_clear()
    with caplog.at_level("INFO"):
        for _ in range(2):
            assert varlen._is_right_here(CPU, torch.bfloat16, 16, (-1, 0)) is is_used
    assert said in caplog.text and len(calls) == 1
    varlen._is_right_here.cache_clear()


def test_a_torch_without_it_goes_by_padded_rows(monkeypatch, caplog):
    def missing():
        raise ImportError("No module named 'torch.nn.attention.varlen'")

    monkeypatch.setattr(varlen, "_kernel", missing)
    varlen._is_right_here.cache_clear()
    with caplog.at_level("INFO"):
        assert not varlen._is_right_here(CPU, torch.bfloat16, 16, (-1, 0))
    assert "not to be had: No module" in caplog.text
    varlen._is_right_here.cache_clear()


def test_asking_draws_nothing():
    before = torch.random.get_rng_state()
    agrees(right, CPU, torch.bfloat16, 8, (-1, -1))
    assert torch.equal(before, torch.random.get_rng_state())


def test_groups_of_heads_share_keys_and_scores_have_the_models_scale():
    torch.manual_seed(0)
    n = sum(LENGTHS)
    query, key, value = torch.randn(4, n, 8), torch.randn(2, n, 8), torch.randn(2, n, 8)
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    found = attention(query, key, value, bounds, max(LENGTHS), (-1, 0), scaling=0.2, kernel=right)
    wide = [states.repeat_interleave(2, 0) for states in (key, value)]
    assert torch.allclose(found, _plain(query * 0.2 * 8**0.5, *wide, (-1, 0)), atol=1e-6)
