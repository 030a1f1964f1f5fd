"""Drawn objects: the mask is what was composited, thin objects are thin, and no two are alike."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrsam_prep.drawing import SUPER, Drawing, line, turned
from hrsam_prep.shapes import FAMILIES, FULL, THIN


@pytest.mark.parametrize("family", FAMILIES)
@given(seed=st.integers(0, 2**31), size=st.integers(120, 420))
@settings(max_examples=5, deadline=None)
def test_an_object_fits_its_size_and_is_one_piece(family, seed, size):
    shape = FAMILIES[family](np.random.default_rng(seed), size)
    h, w = shape.alpha.shape
    assert shape.rgb.shape == (h, w, 3)
    assert (shape.alpha.dtype, shape.rgb.dtype, shape.mask.dtype) == (np.float32, np.uint8, bool)
    assert size - 8 <= max(h, w) <= size + 1
    assert shape.alpha.min() >= 0
    assert shape.alpha.max() == 1
    rim = np.concatenate([shape.alpha[0], shape.alpha[-1], shape.alpha[:, 0], shape.alpha[:, -1]])
    assert not rim.any(), "the object is cut off by its own box"
    assert 0.01 < shape.mask.mean() < 0.9
    pieces = cv2.connectedComponentsWithStats(shape.mask.astype(np.uint8))[2][1:, cv2.CC_STAT_AREA]
    assert pieces.max() > 0.98 * pieces.sum(), "an object falls apart"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_generator_draws_the_same_object(family):
    first, again, other = (FAMILIES[family](np.random.default_rng(seed), 200) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.alpha, again.alpha)
    np.testing.assert_array_equal(first.rgb, again.rgb)
    assert first.alpha.shape != other.alpha.shape or (first.alpha != other.alpha).mean() > 0.02


def near_the_edge(family: str, pixels: float) -> float:
    """Share of the objects' pixels within `pixels` of their own boundary, over six objects."""
    near = total = 0
    for seed in range(6):
        mask = FAMILIES[family](np.random.default_rng(seed), 300).mask
        depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        near, total = near + int(((depth > 0) & (depth <= pixels)).sum()), total + int(mask.sum())
    return near / total


def test_thin_objects_are_thin_and_full_ones_are_not():
    thin = {family: near_the_edge(family, 3) for family in THIN}
    full = {family: near_the_edge(family, 3) for family in FULL}
    assert min(thin.values()) > 0.38, thin
    assert np.mean([*thin.values()]) > 0.55, thin
    assert max(full.values()) < 0.35, full
    assert min(near_the_edge(family, 3) for family in ("ladder", "branch", "umbel")) > 0.6


def test_coverage_is_the_exact_share_of_subpixels():
    """A bar's coverage sums to its area, and the mask's area to the same within its outline."""
    drawing = Drawing(np.random.default_rng(0))
    drawing.bar(line((-1, 0), (1, 0)), 9.0)
    shape = drawing.paint(200, [(120, 120, 120)], turn=0.0)
    length = shape.alpha.shape[1] - 2 * 2 - 9.0
    expected = length * 9.0 + np.pi * 4.5**2  # a round cap at each end
    assert shape.alpha.sum() == pytest.approx(expected, rel=0.03)
    assert shape.mask.sum() == pytest.approx(expected, rel=0.05)
    assert set(np.unique(shape.alpha * SUPER**2)) <= set(range(SUPER**2 + 1))


def test_colours_do_not_bleed_into_the_edge():
    """A pixel that is hardly covered still has its object's colour, not black mixed in."""
    drawing = Drawing(np.random.default_rng(1))
    drawing.patch(np.array([(-1, -0.8), (1, -1), (0.7, 1), (-0.9, 0.9)]), rim=0.1)
    shape = drawing.paint(150, [(200, 100, 50)], turn=0.3)
    faint = (shape.alpha > 0) & (shape.alpha < 0.4)
    assert faint.sum() > 50
    ratio = shape.rgb[faint][:, 0].astype(float) / np.maximum(shape.rgb[faint][:, 2], 1)
    assert np.median(ratio) == pytest.approx(4, rel=0.1)
    assert shape.rgb[faint].mean() > 50


def test_a_hole_shows_the_background():
    drawing = Drawing(np.random.default_rng(2))
    square = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    drawing.patch(square)
    drawing.hole(0.5 * square)
    shape = drawing.paint(100, [(90, 90, 90)], turn=0.0)
    middle = shape.alpha.shape[0] // 2
    assert shape.alpha[middle, middle] == 0
    assert shape.mask[middle, 8]
    assert shape.mask.mean() == pytest.approx(0.75 * 0.94, abs=0.05)


@given(angle=st.floats(-7, 7))
@settings(max_examples=30, deadline=None)
def test_turning_back_restores_points(angle):
    points = np.array([(1.0, 2.0), (-3.0, 0.5)])
    np.testing.assert_allclose(turned(turned(points, angle), -angle), points, atol=1e-12)
    np.testing.assert_allclose(turned(np.array([[1.0, 0.0]]), np.pi / 2), [[0.0, 1.0]], atol=1e-12)
