"""Teacher maps on the student's grid, and the loss on them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrsam_lit.geometry import Frame
from hrsam_lit.losses.features import feature_mse, on_student_grid


def ramp(frame, grid):
    """A map whose value at each cell is the (x, y) of its centre in the image, 0..1."""
    y = (torch.arange(grid[0]) + 0.5) / grid[0] * frame.canvas_hw[0] / frame.resized_hw[0]
    x = (torch.arange(grid[1]) + 0.5) / grid[1] * frame.canvas_hw[1] / frame.resized_hw[1]
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))[None]


@settings(max_examples=40, deadline=None)
@given(
    image_hw=st.tuples(st.integers(60, 900), st.integers(60, 900)),
    squash=st.booleans(),
    side=st.sampled_from([256, 512, 1024]),
    upsample=st.sampled_from([1, 2]),
)
def test_a_cell_gets_the_teachers_value_at_its_place_in_the_image(image_hw, squash, side, upsample):
    teacher = (Frame.squash if squash else Frame.pad)(image_hw, 1024)
    student = Frame.pad(image_hw, side)
    grid = (side // 16 * upsample,) * 2
    target, valid = on_student_grid(ramp(teacher, (64, 64)), [teacher], [student], grid)
    expected = ramp(student, grid)
    # Cells within one teacher cell of the image's edge are clamped; inside, bilinear is exact on a ramp.
    margin_x, margin_y = (16 / teacher.resized_hw[axis] for axis in (1, 0))
    inside = valid[0, 0] & (expected[0, 0] < 1 - margin_x) & (expected[0, 0] > margin_x)
    inside &= (expected[0, 1] < 1 - margin_y) & (expected[0, 1] > margin_y)
    error = (target - expected)[0][:, inside]
    assert error.numel() == 0 or error.abs().max() < 1e-4


def test_the_same_view_is_the_identity_on_valid_cells():
    frame = Frame.pad((300, 400), 1024)
    teacher = torch.randn(1, 8, 64, 64)
    target, valid = on_student_grid(teacher, [frame], [frame], (64, 64))
    assert valid.sum() == 48 * 64
    assert torch.equal(target[:, :, :48], teacher[:, :, :48])
    assert target[:, :, 48:].abs().sum() == 0


def test_each_image_of_a_batch_is_resampled_in_its_own_frame():
    frames = [Frame.pad((300, 400), 1024), Frame.pad((400, 200), 1024)]
    seen = [Frame.pad((300, 400), 512), Frame.pad((400, 200), 512)]
    maps = torch.randn(2, 4, 64, 64)
    together, valid = on_student_grid(maps, frames, seen, (32, 32))
    for index in range(2):
        alone, mask = on_student_grid(
            maps[index : index + 1], frames[index : index + 1], seen[index : index + 1], (32, 32)
        )
        assert torch.equal(alone[0], together[index]) and torch.equal(mask[0], valid[index])


def test_an_extreme_panorama_keeps_a_row():
    frame = Frame.pad((50, 30000), 512)
    _, valid = on_student_grid(torch.randn(1, 4, 64, 64), [Frame.pad((50, 30000), 1024)], [frame], (32, 32))
    assert valid[0, 0].any(dim=1).tolist() == [True] + [False] * 31


@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradient_equal_a_direct_formula(weighted):
    student = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    valid = torch.rand(2, 1, 4, 5) > 0.4
    std = torch.tensor([0.5, 1.0, 2.0]) if weighted else None
    loss = feature_mse(student, target, valid, std)
    for index in range(2):
        cells = valid[index, 0]
        error = (student[index] - target[index])[:, cells]
        if std is not None:
            error = error / std.double()[:, None]
        torch.testing.assert_close(loss[index].double(), error.square().mean(), rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert gradient[~valid.expand_as(gradient)].abs().sum() == 0
    assert (gradient[valid.expand_as(gradient)] != 0).all()
