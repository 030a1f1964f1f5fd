from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrsam_lit.losses import bce_loss, dice_loss, normalized_focal_loss

LOSSES = [normalized_focal_loss, dice_loss, bce_loss]


def scene(seed: int = 0, scale: float = 3.0, n: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, 7, 9, generator=generator)
    targets = torch.rand(n, 7, 9, generator=generator) > 0.6
    valid = torch.rand(n, 7, 9, generator=generator) > 0.3
    return logits, targets, valid


def focal_by_hand(z, y, v, alpha: float, gamma: float, scale=None) -> float:
    """The formula for one mask, float64 arrays; `scale` stands for the detached normaliser."""
    eps = np.finfo(np.float32).eps
    p = 1 / (1 + np.exp(-z))
    p_t = np.where(v, 1 - np.abs(y - p), 1)
    beta = (1 - p_t) ** gamma
    if scale is None:
        scale = v.sum() / (beta.sum() + eps)
    alpha_t = np.where(y == 1, alpha, 1 - alpha)
    return float((-alpha_t * scale * beta * np.log(np.minimum(p_t + eps, 1)) * v).sum() / v.sum())


weightings = st.sampled_from([(0.5, 2.0), (0.25, 2.0), (0.5, 1.0)])


@given(st.integers(0, 10**6), st.sampled_from([0.5, 3.0, 8.0]), weightings)
@settings(max_examples=30, deadline=None)
def test_focal_loss_equals_the_formula_in_float64(seed: int, scale: float, weights) -> None:
    logits, targets, valid = scene(seed, scale)
    loss = normalized_focal_loss(logits, targets, valid, *weights)
    assert loss.dtype == torch.float32
    for i in range(len(logits)):
        arrays = (logits[i].double().numpy(), targets[i].numpy().astype(float), valid[i].numpy())
        assert loss[i].item() == pytest.approx(focal_by_hand(*arrays, *weights), rel=2e-5)


@pytest.mark.parametrize("scale", [0.5, 3.0, 6.0])
def test_focal_gradient_equals_differences_of_the_formula_with_a_fixed_normaliser(scale: float) -> None:
    logits, targets, valid = scene(1, scale, 1)
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(normalized_focal_loss(leaf, targets, valid).sum(), leaf)
    z, y, v = logits[0].double().numpy(), targets[0].numpy().astype(float), valid[0].numpy()
    beta = np.where(v, np.abs(y - 1 / (1 + np.exp(-z))), 0) ** 2
    fixed = v.sum() / (beta.sum() + np.finfo(np.float32).eps)
    step = 1e-5
    expected = np.zeros_like(z)
    for i in np.ndindex(z.shape):
        bump = np.zeros_like(z)
        bump[i] = step
        up, down = (focal_by_hand(z + s * bump, y, v, 0.5, 2.0, fixed) for s in (1, -1))
        expected[i] = (up - down) / (2 * step)
    tolerance = 2e-6 * np.abs(expected).max() + 1e-9
    np.testing.assert_allclose(gradient[0].numpy(), expected, atol=tolerance, rtol=2e-4)
    assert (gradient[~valid] == 0).all()


def test_focal_loss_is_alpha_times_cross_entropy_where_all_pixels_are_equally_right() -> None:
    targets = torch.zeros(1, 8, 8, dtype=torch.bool)
    for logit in (0.0, -2.0, -5.0):
        logits = torch.full((1, 8, 8), logit, requires_grad=True)
        loss = normalized_focal_loss(logits, targets)
        assert loss.item() == pytest.approx(0.5 * F.softplus(torch.tensor(logit)).item(), rel=1e-3)


def test_saturated_logits_stay_finite() -> None:
    targets = torch.zeros(4, 5, 5, dtype=torch.bool)
    targets[:2] = True
    for loss in LOSSES:
        logits = torch.full((4, 5, 5), 1e4)
        logits[1::2] = -1e4
        logits.requires_grad_()
        value = loss(logits, targets)
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert value.isfinite().all()
        assert gradient.isfinite().all()
        assert value[0] < 1e-3  # a right one
        assert value[1] > 0.5  # and a wrong one


@pytest.mark.parametrize("loss", LOSSES)
def test_a_mask_counts_alone_and_only_where_valid(loss) -> None:
    logits, targets, valid = scene(2)
    value = loss(logits, targets, valid)
    other, flipped = logits.clone(), targets.clone()
    other[~valid] = 40.0
    flipped[~valid] ^= True
    assert torch.equal(loss(other, flipped, valid), value)
    for i in range(3):
        torch.testing.assert_close(loss(logits[i : i + 1], targets[i : i + 1], valid[i : i + 1])[0], value[i])
    torch.testing.assert_close(loss(logits, targets.float(), valid), value)
    torch.testing.assert_close(loss(logits, targets), loss(logits, targets, torch.ones_like(valid)))
    assert loss(logits[:0], targets[:0]).shape == (0,)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_valid_pixel_means_no_loss_and_no_gradient(loss) -> None:
    logits, targets, valid = scene(3)
    valid[1] = False
    logits.requires_grad_()
    value = loss(logits, targets, valid)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value[1] == 0
    assert (gradient[1] == 0).all()
    assert gradient.isfinite().all()
    assert (value[[0, 2]] > 0).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_inside_autocast_and_for_half_logits(loss, dtype: torch.dtype) -> None:
    logits, targets, valid = scene(4)
    logits = logits.to(dtype)
    expected = loss(logits.float(), targets, valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(logits, targets, valid)
        assert value.dtype == torch.float32
    assert torch.equal(value, expected)


def test_plain_losses_by_hand() -> None:
    logits, targets, valid = scene(5)
    for i in range(3):
        bce = F.binary_cross_entropy_with_logits(logits[i][valid[i]], targets[i][valid[i]].float())
        torch.testing.assert_close(bce_loss(logits, targets, valid)[i], bce)
        p, y = logits[i].sigmoid()[valid[i]], targets[i][valid[i]]
        value = 1 - (2 * p[y].sum() + 1) / (p.sum() + y.sum() + 1)
        torch.testing.assert_close(dice_loss(logits, targets, valid)[i], value)
