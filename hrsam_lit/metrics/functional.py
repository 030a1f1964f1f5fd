"""What is measured, as pure functions.

H W: the frame of the original image. A truth is int8 with 1 object, 0 background and -1 ignored, or bool;
a prediction is bool. All results are float64.
"""

from __future__ import annotations

import math
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", np.ndarray, Tensor)


def iou(prediction: Array, truth: Array) -> Array:
    """Intersection over union of masks (..., H, W) -> float64 (...), both numpy arrays or both tensors.

    Ignored pixels count for neither; the result is NaN where the union is empty.
    """
    assert prediction.shape == truth.shape, (prediction.shape, truth.shape)
    target = truth == 1
    inside = prediction & (truth != -1)
    common, union = _count(inside & target), _count(inside | target)
    if isinstance(common, Tensor):
        return common.double() / union.double()
    with np.errstate(invalid="ignore"):
        return np.true_divide(common, union)


def boundary_iou(prediction: np.ndarray | Tensor, truth: np.ndarray | Tensor, ratio: float = 0.02) -> float:
    """IoU of the inner bands of two masks (H, W), `ratio` of the image's diagonal wide (Cheng et al. 2021).

    Equal to boundary-iou-api: the border of the image bounds a mask too, and the band is at least one pixel
    wide. Ignored pixels belong to neither mask, so that the value does not depend on what is predicted
    there. NaN where both masks are empty. Tensors are copied to the host.
    """
    prediction, truth = (x.cpu().numpy() if isinstance(x, Tensor) else x for x in (prediction, truth))
    assert prediction.ndim == 2, prediction.shape
    assert prediction.shape == truth.shape, (prediction.shape, truth.shape)
    target = truth == 1
    inside = prediction & (truth != -1)
    width = max(1, round(ratio * math.hypot(*truth.shape)))
    x, y, w, h = cv2.boundingRect((inside | target).view(np.uint8))
    if not w:
        return math.nan
    crop = slice(y, y + h), slice(x, x + w)
    found, wanted = (_band(mask[crop], width) for mask in (inside, target))
    return np.count_nonzero(found & wanted) / np.count_nonzero(found | wanted)


def noc(ious: Array, target: float) -> Array:
    """Number of clicks of each object: IoUs (N, clicks), float32 or float64 -> int64 (N,).

    The first click whose IoU is at least the target, counted from 1, or all clicks where none is (a NaN
    reaches nothing). Mean IoU and NoC of targets above a stopping rule's need curves that did not stop.
    """
    assert ious.ndim == 2, ious.shape
    missed = (ious >= target).cumsum(1) == 0
    return (missed.sum(1) + 1).clip(max=ious.shape[1])


def nof(ious: Array, target: float) -> int:
    """Number of objects, of IoUs (N, clicks), that never reach the target."""
    assert ious.ndim == 2, ious.shape
    return int((~(ious >= target).any(1)).sum())


def nof_at_limit(ious: Array, target: float) -> int:
    """Number of objects, of IoUs (N, clicks), whose NoC is the number of clicks.

    What RITM and SegNext print as NoF: objects that reach the target with the last click count too.
    """
    return int((noc(ious, target) == ious.shape[1]).sum())


def _count(mask: Array) -> Array:
    """True pixels of bool (..., H, W) -> integers (...)."""
    if isinstance(mask, Tensor):
        return torch.count_nonzero(mask, dim=(-2, -1))
    return np.asarray(np.count_nonzero(mask, axis=(-2, -1)))


def _band(mask: np.ndarray, width: int) -> np.ndarray:
    """Pixels of a bool (h, w) mask at most `width` king's moves from a pixel outside it."""
    padded = cv2.copyMakeBorder(mask.view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=(0,))
    return mask & (cv2.distanceTransform(padded, cv2.DIST_C, 3)[1:-1, 1:-1] <= width)
