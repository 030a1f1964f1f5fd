"""Frames: where pixels go on the canvas, and back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hrsam_lit.geometry import Frame

sizes = st.tuples(st.integers(8, 3000), st.integers(8, 3000))


@settings(max_examples=50, deadline=None)
@given(image_hw=sizes, side=st.sampled_from([256, 512, 1024, 2048]))
def test_padded_frame_keeps_the_aspect_and_fits(image_hw, side):
    frame = Frame.pad(image_hw, side)
    assert max(frame.resized_hw) == side and frame.canvas_hw == (side, side)
    exact = min(image_hw) * side / max(image_hw)
    assert abs(min(frame.resized_hw) - max(exact, 1)) <= 0.5
    tight = Frame.pad(image_hw, side, multiple=16)
    assert all(c % 16 == 0 and r <= c < r + 16 for c, r in zip(tight.canvas_hw, tight.resized_hw, strict=True))


@settings(max_examples=50, deadline=None)
@given(image_hw=sizes, x=st.floats(0, 1), y=st.floats(0, 1), squash=st.booleans())
def test_points_come_back(image_hw, x, y, squash):
    frame = (Frame.squash if squash else Frame.pad)(image_hw, 1024)
    point = torch.tensor([[x * (image_hw[1] - 1), y * (image_hw[0] - 1)]], dtype=torch.float64)
    on_canvas = frame.points_to_canvas(point)
    assert (on_canvas[0] <= torch.tensor([frame.resized_hw[1], frame.resized_hw[0]])).all()
    torch.testing.assert_close(frame.points_to_image(on_canvas), point)


def test_boxes_map_corner_by_corner():
    frame = Frame.pad((100, 200), 400)
    box = torch.tensor([[10.0, 20.0, 30.0, 40.0]])
    assert frame.boxes_to_canvas(box).tolist() == [[20.0, 40.0, 60.0, 80.0]]


@pytest.mark.parametrize("image_hw", [(50, 30000), (480, 640), (8, 8)])
def test_image_lies_at_the_top_left_and_padding_is_zero(image_hw):
    frame = Frame.pad(image_hw, 512)
    canvas = frame.place_image(np.full((*image_hw, 3), 200, np.uint8))
    h, w = frame.resized_hw
    assert (canvas[:, :h, :w] == 200).all()
    assert canvas[:, h:].sum() == 0 and canvas[:, :, w:].sum() == 0


def test_shrinking_is_pillows_antialiased_bilinear():
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    ours = Frame.pad((300, 400), 128).place_image(image)[:, :96].permute(1, 2, 0).numpy()
    pillow = np.asarray(Image.fromarray(image).resize((128, 96), Image.Resampling.BILINEAR))
    assert np.abs(ours.astype(int) - pillow).max() <= 1


@settings(max_examples=20, deadline=None)
@given(image_hw=st.tuples(st.integers(40, 300), st.integers(40, 300)))
def test_a_mask_placed_and_restored_is_the_mask_but_for_its_edge(image_hw):
    frame = Frame.pad(image_hw, 512)
    mask = np.zeros(image_hw, bool)
    mask[10:30, 12:35] = True
    logits = frame.place_mask(mask).float() * 2 - 1
    restored = (frame.restore(logits[None])[0] > 0).numpy()
    inner = np.zeros(image_hw, bool)
    inner[12:28, 14:33] = True
    outer = np.zeros(image_hw, bool)
    outer[8:32, 10:37] = True
    assert (restored | ~inner).all() and (~restored | outer).all()


def test_restore_ignores_what_lies_in_the_padding():
    frame = Frame.pad((64, 128), 128)
    logits = torch.full((32, 32), 5.0)
    logits[16:] = -100  # rows of padding alone
    assert (frame.restore(logits)[:60] > 0).all()
    assert frame.valid_cells(16) == (4, 8)
