"""Losses on mask logits, one value a mask.

N: masks. H W: the logits' grid. Every loss takes logits of any float dtype and works in float32, whatever
autocast says; targets are bool, or float and object above 0.5; `valid` is bool, False where a pixel does
not count (None: all count). A mask without a valid pixel has loss 0 and gradient 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def normalized_focal_loss(
    logits: Tensor, targets: Tensor, valid: Tensor | None = None, alpha: float = 0.5, gamma: float = 2.0
) -> Tensor:
    """Focal loss whose weights average 1 over a mask's valid pixels (RITM; HRSAM trains on it alone).

    logits, targets, valid: (N, H, W) -> float32 (N,). With q the probability of a pixel's true class, its
    focal weight (1 - q)**gamma is divided by the mean of these weights, taken as a constant, so that the
    gradient does not fade as the prediction improves. alpha weighs object, 1 - alpha background.
    """
    logits, object_, counted = _prepared(logits, targets, valid)
    with torch.autocast(logits.device.type, enabled=False):
        signed = torch.where(object_, logits, -logits)
        right = torch.sigmoid(signed)
        weight = torch.sigmoid(-signed) ** gamma * counted  # 1 - right would lose the small ones
        number = counted.sum((1, 2))
        eps = torch.finfo(torch.float32).eps
        scale = (number / (weight.sum((1, 2)) + eps)).detach()[:, None, None]
        class_weight = torch.where(object_, alpha, 1 - alpha)
        terms = -class_weight * scale * weight * torch.log((right + eps).clamp(max=1))
        return terms.sum((1, 2)) / number.clamp(min=1)


def dice_loss(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """1 - (2 |p y| + 1) / (|p| + |y| + 1), SAM's dice, over valid pixels: (N, H, W) -> float32 (N,)."""
    logits, object_, counted = _prepared(logits, targets, valid)
    with torch.autocast(logits.device.type, enabled=False):
        found, wanted = logits.sigmoid() * counted, object_ * counted
        common = (found * wanted).sum((1, 2))
        return 1 - (2 * common + 1) / (found.sum((1, 2)) + wanted.sum((1, 2)) + 1)


def bce_loss(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Binary cross-entropy, the mean over a mask's valid pixels: (N, H, W) -> float32 (N,)."""
    logits, object_, counted = _prepared(logits, targets, valid)
    with torch.autocast(logits.device.type, enabled=False):
        terms = F.binary_cross_entropy_with_logits(logits, object_.float(), reduction="none") * counted
        return terms.sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)


def _prepared(logits: Tensor, targets: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in float32, targets as bool, and float32 1 where a pixel counts, all (N, H, W)."""
    assert logits.ndim == 3, logits.shape
    assert targets.shape == logits.shape, (targets.shape, logits.shape)
    object_ = targets if targets.dtype == torch.bool else targets > 0.5
    if valid is None:
        return logits.float(), object_, torch.ones_like(logits, dtype=torch.float32)
    assert (valid.dtype, valid.shape) == (torch.bool, logits.shape), (valid.dtype, valid.shape)
    return logits.float(), object_, valid.float()
