"""Normalisation against numpy, and padding that is zero whatever lies there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrsam_lit.errors import UserError
from hrsam_lit.models.normalize import Normalize

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def test_every_pixel_is_mean_free_and_scaled():
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (MEAN, STD))
    expected = (images.numpy().astype(np.float32) - mean) / std
    result = Normalize(MEAN, STD)(images)
    assert result.dtype == torch.float32
    np.testing.assert_array_equal(result.numpy(), expected)
    assert torch.equal(Normalize(MEAN, STD)(images.float()), result)
    assert torch.equal(Normalize(MEAN, STD)(images.half()), result)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), min_size=1, max_size=4))
def test_outside_the_valid_area_is_zero_and_inside_is_untouched(sizes):
    normalize = Normalize(MEAN, STD)
    images = torch.rand(len(sizes), 3, 6, 9) * 255
    plain = normalize(images)
    for i, (height, width) in enumerate(sizes):
        images[i, :, height:] = torch.nan
        images[i, :, :, width:] = torch.nan
    result = normalize(images, torch.tensor(sizes))
    for i, (height, width) in enumerate(sizes):
        assert torch.equal(result[i, :, :height, :width], plain[i, :, :height, :width])
        assert (result[i, :, height:] == 0).all()
        assert (result[i, :, :, width:] == 0).all()


def test_the_input_is_left_alone():
    images = torch.full((1, 3, 4, 4), 9.0)
    Normalize(MEAN, STD)(images, torch.tensor([[2, 2]]))
    assert (images == 9).all()


def test_no_checkpoint_holds_the_constants():
    assert Normalize(MEAN, STD).state_dict() == {}


@pytest.mark.parametrize(("mean", "std"), [((1.0, 2.0), (1.0,)), ((), ()), ((1.0,), (0.0,))])
def test_constants_that_do_not_fit_are_refused(mean, std):
    with pytest.raises(UserError, match="pixel_mean"):
        Normalize(mean, std)


def test_bgr_feeds_swapped_channels_to_unswapped_statistics():
    images = torch.randint(0, 256, (1, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(Normalize(MEAN, STD, bgr=True)(images), Normalize(MEAN, STD)(images[:, [2, 1, 0]]))
