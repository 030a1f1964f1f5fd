"""How much of a teacher's embedding a student leaves unexplained."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class UnexplainedVariance(Metric):
    """Fraction of variance unexplained: squared error over the teacher's variance around its channel means.

    1.0 is what predicting each channel's mean scores, 0.0 is a perfect copy. All states are sums.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    error: Tensor
    square: Tensor
    total: Tensor
    cells: Tensor

    def __init__(self, channels: int = 256) -> None:
        super().__init__()
        self.add_state("error", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("square", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(channels, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("cells", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, student: Tensor, target: Tensor, valid: Tensor) -> None:
        """Add maps (B, C, h, w) with valid cells, bool (B, 1, h, w)."""
        keep = valid.expand_as(target)
        target = target.double() * keep
        self.error += ((student.double() * keep) - target).square().sum()
        self.square += target.square().sum()
        self.total += target.sum(dim=(0, 2, 3))
        self.cells += valid.sum()

    def compute(self) -> Tensor:
        """The fraction, float64; nan before any update."""
        variance = self.square - self.total.square().sum() / self.cells
        return self.error / variance
