"""Dense, grouped windows with padded keys against explicit loops over a padded map."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrsam_kernels.window_attention import dense, plan, window_attention

side = st.integers(1, 9)


def make(images, maps, heads, head_dim=4, dtype=torch.float64):
    tokens, width = sum(h * w for h, w in maps), heads * head_dim
    qkv = torch.randn(images, tokens, 3 * width, dtype=dtype, requires_grad=True)
    return qkv, torch.randn(2 * width, dtype=dtype, requires_grad=True)


def compare(qkv, pad, **layout):
    truth = window_attention(qkv, pad, backend="reference", **layout)
    got = window_attention(qkv, pad, backend="dense", **layout)
    torch.testing.assert_close(got, truth, rtol=0, atol=1e-12)
    grad = torch.randn_like(truth)
    true_grads = torch.autograd.grad(truth, (qkv, pad), grad, materialize_grads=True, allow_unused=True)
    for have, want in zip(torch.autograd.grad(got, (qkv, pad), grad), true_grads, strict=True):
        torch.testing.assert_close(have, want, rtol=0, atol=1e-11)


@settings(max_examples=30, deadline=None)
@given(
    images=st.integers(1, 3),
    maps=st.lists(st.tuples(side, side), min_size=1, max_size=2),
    heads=st.integers(1, 3),
    window=st.sampled_from([2, 4, 6]),
    shifted=st.lists(st.booleans(), min_size=2, max_size=2),
    seed=st.integers(0, 2**31),
)
def test_outputs_and_gradients_equal_the_loops(images, maps, heads, window, shifted, seed):
    torch.manual_seed(seed)
    qkv, pad = make(images, maps, heads, head_dim=8)
    shifts = [window // 2 if moved else 0 for moved in shifted[: len(maps)]]
    compare(qkv, pad, maps=maps, heads=heads, window=window, shifts=shifts)


@pytest.mark.parametrize(
    ("maps", "shifts"),
    [
        (((5, 7),), (2,)),
        (((1, 1),), (0,)),
        (((1, 1),), (2,)),
        (((3, 2),), (2,)),
        (((8, 8), (4, 4)), (2, 2)),
        (((8, 8), (4, 4)), (2, 0)),
        (((9, 1), (2, 3)), (1, 3)),
    ],
    ids=str,
)
def test_odd_maps(maps, shifts):
    qkv, pad = make(2, maps, 2, head_dim=8)
    compare(qkv, pad, maps=maps, heads=2, window=4, shifts=shifts)


def test_every_image_of_a_batch_is_by_itself():
    maps, layout = ((5, 7), (3, 3)), {"heads": 2, "window": 4, "shifts": (2, 2)}
    qkv, pad = make(8, maps, 2)
    together = window_attention(qkv, pad, maps=maps, **layout)
    for image in range(8):
        alone = window_attention(qkv[image : image + 1], pad, maps=maps, **layout)
        torch.testing.assert_close(together[image : image + 1], alone)


def test_scales_never_mix():
    maps = ((4, 6), (3, 3))
    qkv, pad = make(1, maps, 1, dtype=torch.float32)
    layout = {"heads": 1, "window": 4, "shifts": (2, 2)}
    both = window_attention(qkv, pad, maps=maps, **layout)
    first = window_attention(qkv[:, :24], pad, maps=maps[:1], heads=1, window=4, shifts=(2,))
    torch.testing.assert_close(both[:, :24], first)


def test_padding_is_a_key_and_a_value_but_no_query():
    """One token in a window of 16: with a zero query every key weighs the same."""
    qkv = torch.zeros(1, 1, 24)
    qkv[..., 16:] = 16.0
    pad = torch.cat((torch.randn(8), torch.full((8,), 32.0)))
    out = window_attention(qkv, pad, maps=((1, 1),), heads=1, window=4, shifts=(0,))
    torch.testing.assert_close(out, torch.full((1, 1, 8), (16 + 15 * 32) / 16))


@pytest.mark.parametrize(
    ("map_", "shift", "windows", "queries"),
    [
        ((64, 64), 8, 25, {64: 4, 128: 12, 256: 9}),
        ((128, 128), 8, 81, {64: 4, 128: 28, 256: 49}),
        ((32, 32), 8, 9, {64: 4, 128: 4, 256: 1}),
        ((64, 64), 0, 16, {256: 16}),
    ],
)
def test_window_counts_of_the_paper(map_, shift, windows, queries):
    made = plan.window_plan((map_,), 16, (shift,), 1, torch.device("cpu"))
    assert {held: count for count, held in made.groups} == queries
    assert len(made.keys) == windows * 256
    assert len(made.queries) == map_[0] * map_[1]


def test_plans_are_made_once_for_each_layout_and_device():
    layout = (((4, 4),), 4, (2,), 1)
    assert plan.window_plan(*layout, torch.device("cpu")) is plan.window_plan(*layout, torch.device("cpu"))
    assert plan.window_plan(*layout, torch.device("meta")).keys.device.type == "meta"


def test_rotation_turns_by_minus_the_angle_and_keeps_offsets():
    table = plan.rotary_table(4, 8, 0.5, torch.complex128, torch.device("cpu"))
    x = torch.zeros(16, 8, dtype=torch.float64)
    x[:, 0] = 1.0  # first pair of the row half
    turned = dense._turn(x, table)
    angle = torch.tensor(0.5, dtype=torch.float64)
    torch.testing.assert_close(turned[4, :2], torch.stack((angle.cos(), -angle.sin())))  # row 1, column 0
    q, k = torch.randn(2, 8, dtype=torch.float64)
    dots = dense._turn(q.expand(16, 8), table) @ dense._turn(k.expand(16, 8), table).T
    torch.testing.assert_close(dots[0, 5], dots[10, 15])  # both one row and one column apart


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_err_no_more_than_the_plain_product(dtype):
    maps, layout = ((20, 24),), {"heads": 2, "window": 8, "shifts": (4,)}
    qkv, pad = make(2, maps, 2, head_dim=16)
    grad = torch.randn(2, 480, 32, dtype=torch.float64)

    def run(kind, q, p):
        out = window_attention(q, p, maps=maps, backend=kind, **layout)
        return [out.detach(), *torch.autograd.grad(out, (q, p), grad.to(out.dtype))]

    truth = run("reference", qkv, pad)
    low = [x.detach().to(dtype).requires_grad_() for x in (qkv, pad)]
    plain, ours = run("reference", *low), run("dense", *low)
    for name, want, floor, have in zip(("out", "dqkv", "dpad"), truth, plain, ours, strict=True):
        assert have.dtype == dtype
        allowed = 2 * (floor.double() - want).norm() + 1e-6
        assert (have.double() - want).norm() < allowed, name


def test_an_unpadded_layout_gives_the_padding_vector_a_zero_gradient():
    qkv, pad = make(1, ((4, 4),), 1)
    window_attention(qkv, pad, maps=((4, 4),), heads=1, window=4, shifts=(0,)).sum().backward()
    assert pad.grad.abs().max() == 0


def test_a_second_derivative_is_refused():
    qkv, pad = make(1, ((4, 4),), 1)
    out = window_attention(qkv, pad, maps=((4, 4),), heads=1, window=4, shifts=(2,))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(out.sum(), qkv, create_graph=True)
