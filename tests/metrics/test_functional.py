from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hrsam_lit.metrics import boundary_iou, iou, noc, nof, nof_at_limit

frames = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=16).flatmap(
    lambda shape: st.tuples(
        hnp.arrays(bool, shape), hnp.arrays(np.int8, shape, elements=st.sampled_from([1, 1, 0, 0, -1]))
    )
)


def band_by_erosion(mask: np.ndarray, width: int) -> np.ndarray:
    """The definition: a mask without its erosion by `width` steps of a 3 x 3 element."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=(0,))
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return mask & (eroded == 0)


@pytest.mark.parametrize("number", range(8))
def test_golden_ious(shared: Path, number: int) -> None:
    with np.load(shared / "golden" / "clicks.npz") as golden:
        truth = golden[f"{number}.gt"]
        ious, boundary_ious = golden[f"{number}.ious"], golden[f"{number}.boundary_ious"]
        predictions = np.unpackbits(golden[f"{number}.preds"], axis=-1, count=truth.shape[1]).astype(bool)
    truths = np.broadcast_to(truth, predictions.shape)
    np.testing.assert_array_equal(iou(predictions, truths), ious)
    tensors = iou(torch.from_numpy(predictions), torch.from_numpy(truths.copy()))
    np.testing.assert_array_equal(tensors.numpy(), ious)
    np.testing.assert_array_equal([boundary_iou(one, truth) for one in predictions], boundary_ious)


@pytest.mark.parametrize("percent", [80, 85, 90, 95])
def test_golden_numbers_of_clicks(shared: Path, percent: int) -> None:
    with np.load(shared / "golden" / "clicks.npz") as golden:
        ious, clicks, failures = golden["noc.ious"], golden[f"noc.{percent}"], golden[f"nof.{percent}"]
    np.testing.assert_array_equal(noc(ious, percent / 100), clicks)
    assert nof(ious, percent / 100) == failures
    assert nof(ious[:, :10], percent / 100) == (clicks > 10).sum()
    assert nof_at_limit(ious[:, :10], percent / 100) == (clicks >= 10).sum()


@pytest.mark.parametrize("as_array", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_clicks_by_hand(as_array) -> None:
    curves = np.zeros((6, 20))
    curves[0, :] = 0.95  # at once
    curves[1, 19] = 0.9  # exactly, with the last click
    curves[2, 4] = 0.91  # and lost again
    curves[3, :] = np.nan
    curves[4, :] = 0.899999
    curves[5, 7:] = 0.9
    ious = as_array(curves)
    assert noc(ious, 0.9).tolist() == [1, 20, 5, 20, 20, 8]
    assert nof(ious, 0.9) == 2
    assert nof_at_limit(ious, 0.9) == 3
    assert noc(ious[:0], 0.9).tolist() == []
    assert nof(ious[:0], 0.9) == 0


def test_a_target_met_exactly_is_met_in_single_precision_too() -> None:
    for target in (0.8, 0.85, 0.9, 0.95):
        assert noc(torch.tensor([[target]]), target).tolist() == [1]
        assert nof(np.array([[target]], dtype=np.float32), target) == 0


@given(frames)
@settings(max_examples=50, deadline=None)
def test_iou_counts_valid_pixels(frame) -> None:
    prediction, truth = frame
    found = {i for i in np.ndindex(truth.shape) if prediction[i] and truth[i] != -1}
    wanted = {i for i in np.ndindex(truth.shape) if truth[i] == 1}
    value = iou(prediction, truth)
    if not found | wanted:
        assert math.isnan(value)
        assert torch.isnan(iou(torch.from_numpy(prediction), torch.from_numpy(truth)))
        return
    assert value == len(found & wanted) / len(found | wanted)
    assert iou(torch.from_numpy(prediction), torch.from_numpy(truth)).item() == value
    if (truth != -1).all():
        assert iou(truth == 1, prediction) == value  # symmetric, and a bool truth will do


@given(frames, st.sampled_from([0.02, 0.1, 0.3]))
@settings(max_examples=50, deadline=None)
def test_boundary_iou_equals_its_definition_by_erosion(frame, ratio: float) -> None:
    prediction, truth = frame
    valid = truth != -1
    width = max(1, round(ratio * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2)))
    bands = [band_by_erosion(mask, width) & valid for mask in (prediction & valid, truth == 1)]
    union = (bands[0] | bands[1]).sum()
    value = boundary_iou(prediction, truth, ratio)
    assert boundary_iou(torch.from_numpy(prediction), torch.from_numpy(truth), ratio) == pytest.approx(
        value, nan_ok=True
    )
    if union == 0:
        assert math.isnan(value)
        return
    assert value == (bands[0] & bands[1]).sum() / union


@given(frames, st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_predictions_on_ignored_pixels_change_nothing(frame, seed: int) -> None:
    prediction, truth = frame
    assume((truth == -1).any())
    other = np.where(truth == -1, np.random.default_rng(seed).random(truth.shape) > 0.5, prediction)
    np.testing.assert_equal(iou(other, truth), iou(prediction, truth))
    np.testing.assert_equal(boundary_iou(other, truth), boundary_iou(prediction, truth))
    if (truth == 1).any():
        assert iou(truth != 0, truth) == 1
        assert boundary_iou(truth != 0, truth) == 1


def test_bands_of_large_masks() -> None:
    rows, columns = np.mgrid[:700, :900]
    truth = ((rows - 350) ** 2 + (columns - 450) ** 2 < 300**2).astype(np.int8)
    prediction = np.roll(truth == 1, 12, axis=1)
    prediction[600:, 890:] = True  # touches the border of the image
    width = round(0.02 * math.hypot(700, 900))
    bands = [band_by_erosion(mask, width) for mask in (prediction, truth == 1)]
    expected = (bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum()
    assert boundary_iou(prediction, truth) == expected
    assert boundary_iou(truth == 1, truth) == 1
