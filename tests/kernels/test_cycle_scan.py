"""The one-pass cycle-scan against the repeated scan in plain loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrsam_kernels.cycle_scan import chunked, cycle_scan, layout

NAMES = ("u", "delta", "A", "B", "C", "D", "gamma")


def make(images, length, channels, states, cycles, *, low=1e-5, high=20.0, dtype=torch.float64):
    delta = torch.empty(images, length, channels, dtype=torch.float64).uniform_(math.log(low), math.log(high)).exp()
    inputs = (
        torch.randn(images, length, channels, dtype=torch.float64),
        delta,
        -torch.empty(channels, states, dtype=torch.float64).uniform_(0.05, 4.0),
        torch.randn(images, length, states, dtype=torch.float64),
        torch.randn(images, length, states, dtype=torch.float64),
        torch.randn(channels, dtype=torch.float64),
        torch.randn(channels, cycles, dtype=torch.float64),
    )
    return [tensor.to(dtype).requires_grad_() for tensor in inputs]


def with_gradients(inputs, backend, grad=None):
    y = cycle_scan(*inputs, backend=backend)
    grad = torch.ones_like(y) if grad is None else grad.to(y.dtype)
    return y.detach(), torch.autograd.grad(y, inputs, grad)


def error(value, truth):
    """Relative root-mean-square error."""
    value, truth = value.double(), truth.double()
    return float((value - truth).norm() / truth.norm().clamp(min=1e-30))


@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(1, 3),
    length=st.integers(1, 80),
    channels=st.sampled_from([1, 5, 33, 70]),
    states=st.integers(1, 4),
    cycles=st.integers(1, 4),
    slab=st.sampled_from([1, 200, 2000, 10**6]),
    buffer=st.sampled_from([1, 3000, 10**6]),
    high=st.sampled_from([1e-3, 0.1, 20.0]),
    seed=st.integers(0, 2**31),
)
def test_outputs_and_all_gradients_equal_the_repeated_scan(
    images, length, channels, states, cycles, slab, buffer, high, seed
):
    torch.manual_seed(seed)
    inputs = make(images, length, channels, states, cycles, high=high)
    grad = torch.randn(images, length, channels, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "SLAB", slab)
        patch.setattr(layout, "BUFFER", buffer)
        y, grads = with_gradients(inputs, "chunked", grad)
    truth, true_grads = with_gradients(inputs, "reference", grad)
    assert error(y, truth) < 1e-12
    for name, got, want in zip(NAMES, grads, true_grads, strict=True):
        assert error(got, want) < 1e-10, name


@pytest.mark.parametrize("cycles", [1, 3])
def test_float32_stays_within_rounding_of_the_float64_loop(cycles):
    inputs = make(2, 300, 40, 4, cycles, low=1e-3, high=5.0)
    grad = torch.randn(2, 300, 40, dtype=torch.float64)
    truth, true_grads = with_gradients(inputs, "reference", grad)
    y, grads = with_gradients([x.detach().float().requires_grad_() for x in inputs], "chunked", grad)
    assert error(y, truth) < 1e-6
    for name, got, want in zip(NAMES, grads, true_grads, strict=True):
        assert got.dtype == torch.float32
        assert error(got, want) < 1e-5, name


def test_long_sequences_with_long_steps_neither_overflow_nor_lose_the_tail():
    inputs = make(1, 3000, 4, 3, 3, low=0.5, high=20.0)
    y, grads = with_gradients([x.detach().float().requires_grad_() for x in inputs], "chunked")
    truth, true_grads = with_gradients(inputs, "chunked")
    assert error(y, truth) < 1e-6
    assert all(error(got, want) < 1e-5 for got, want in zip(grads, true_grads, strict=True))


def test_gamma_that_sums_to_zero_needs_no_division():
    inputs = make(1, 50, 6, 3, 3)
    with torch.no_grad():
        inputs[6][:, 2] = -inputs[6][:, 0] - inputs[6][:, 1]
    y, grads = with_gradients(inputs, "chunked")
    truth, true_grads = with_gradients(inputs, "reference")
    torch.testing.assert_close(y, truth, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grads, true_grads, rtol=1e-9, atol=1e-9)


def test_a_state_that_never_decays_counts_every_cycle():
    """Constant input, no decay: in cycle r the state after t steps is r * L + t."""
    length, cycles = 10, 3
    ones = torch.ones(1, length, 1)
    y = cycle_scan(ones, ones, torch.zeros(1, 1), ones, ones, torch.zeros(1), torch.ones(1, cycles))
    steps = torch.arange(1.0, length + 1)
    torch.testing.assert_close(y[0, :, 0], sum(cycle * length + steps for cycle in range(cycles)))


def test_non_contiguous_inputs():
    inputs = make(2, 37, 40, 3, 2)
    turned = [
        x.detach().mT.contiguous().mT.requires_grad_() if x.ndim > 1 else x.detach().requires_grad_() for x in inputs
    ]
    assert not turned[0].is_contiguous()
    y, grads = with_gradients(inputs, "chunked")
    again, again_grads = with_gradients(turned, "chunked")
    torch.testing.assert_close(again, y)
    torch.testing.assert_close(again_grads, grads)


def test_autocast_and_bfloat16_inputs_are_computed_in_float32():
    inputs = make(1, 200, 36, 4, 3, low=1e-3, high=0.5)
    types = {name: torch.bfloat16 if name in "uBC" else torch.float32 for name in NAMES}
    low = [x.detach().to(types[name]).requires_grad_() for name, x in zip(NAMES, inputs, strict=True)]
    exact = [x.detach().double().requires_grad_() for x in low]
    truth, true_grads = with_gradients(exact, "reference")
    with torch.autocast("cpu", torch.bfloat16):
        y, grads = with_gradients(low, "chunked")
    assert y.dtype == torch.bfloat16
    rounding = error(truth.bfloat16(), truth)
    assert error(y, truth) < 1.05 * rounding  # nothing is lost but in the output's own type
    for name, x, got, want in zip(NAMES, low, grads, true_grads, strict=True):
        assert got.dtype == x.dtype
        assert error(got, want) < (5e-3 if x.dtype == torch.bfloat16 else 1e-5), name


def test_an_empty_allocation_is_never_read(monkeypatch):
    """Scratch memory that holds NaN changes nothing."""
    inputs = make(2, 45, 70, 3, 3, dtype=torch.float32)
    y, grads = with_gradients(inputs, "chunked")
    for memory in chunked._scratch.kept.values():
        memory.fill_(math.nan)
    again, again_grads = with_gradients(inputs, "chunked")
    torch.testing.assert_close(again, y, rtol=0, atol=0)
    torch.testing.assert_close(again_grads, grads, rtol=0, atol=0)


def test_a_second_derivative_is_refused():
    inputs = make(1, 9, 4, 2, 2)
    with pytest.raises(RuntimeError, match="CycleScan has no second derivative"):
        torch.autograd.grad(cycle_scan(*inputs).sum(), inputs[0], create_graph=True)
    torch.autograd.grad(cycle_scan(*inputs, backend="reference").sum(), inputs[0], create_graph=True)


def test_saved_memory_is_small_and_linear():
    def saved_numbers(length):
        inputs = make(1, length, 64, 16, 3, dtype=torch.float32)
        numbers = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: numbers.append(x.numel()) or x, lambda x: x):
            cycle_scan(*inputs)
        return sum(numbers)

    short, long = saved_numbers(512), saved_numbers(2048)
    assert short < 512 * 64 * 16 / 3  # a third of the states
    assert long < 4.5 * short


@pytest.mark.parametrize("wrong", ["delta", "B", "gamma"])
def test_shapes_are_checked(wrong):
    inputs = dict(zip(NAMES, make(1, 8, 4, 2, 2), strict=True))
    inputs[wrong] = inputs[wrong][..., :1, :]
    with pytest.raises(AssertionError):
        cycle_scan(**inputs)
