"""The metrics of click-based segmentation, summed over ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from hrsam_lit.errors import UserError
from hrsam_lit.metrics import functional, names


class ClickMetrics(Metric):
    """NoC, NoF and mean IoU of N objects that were each clicked on a fixed number of times.

    noc_targets, nof_targets: the IoUs to reach, 0.9 for 90 %. iou_clicks: the clicks whose mean IoU is
    reported. clicks: how often each object was clicked on, without stopping early. limit_targets: targets
    of RITM's and SegNext's NoF, which also counts success at the last click.

    Every object weighs the same. An IoU that is NaN (nothing to find, nothing found) is left out of mean
    IoU and counts as not reached. Every state is a float64 or int64 sum: moving the metric to another
    dtype leaves them alone, and a rank without any object adds nothing.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    objects: Tensor
    clicks_needed: Tensor
    failures: Tensor
    limits: Tensor
    iou_sum: Tensor
    iou_count: Tensor
    boundary_sum: Tensor
    boundary_count: Tensor

    def __init__(
        self,
        noc_targets: Sequence[float] = (0.85, 0.90, 0.95),
        nof_targets: Sequence[float] = (0.95,),
        iou_clicks: Sequence[int] = (1, 5, 20),
        clicks: int = 20,
        limit_targets: Sequence[float] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, targets in (("noc", noc_targets), ("nof", nof_targets), ("limit", limit_targets)):
            for target in targets:
                if not 0 < target <= 1:
                    raise UserError(f"{name}_targets holds {target}: write 90 % as 0.9")
        for click in iou_clicks:
            if not 1 <= click <= clicks:
                raise UserError(f"iou_clicks holds {click}: use 1..{clicks}, or raise clicks={clicks}")
        self.noc_targets, self.nof_targets = tuple(noc_targets), tuple(nof_targets)
        self.limit_targets, self.iou_clicks = tuple(limit_targets), tuple(iou_clicks)
        self.clicks = clicks

        def count(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64)

        self.add_state("objects", count(), "sum")
        self.add_state("clicks_needed", count(len(noc_targets)), "sum")
        self.add_state("failures", count(len(nof_targets)), "sum")
        self.add_state("limits", count(len(limit_targets)), "sum")
        self.add_state("iou_sum", torch.zeros(len(iou_clicks), dtype=torch.float64), "sum")
        self.add_state("iou_count", count(len(iou_clicks)), "sum")
        self.add_state("boundary_sum", torch.zeros((), dtype=torch.float64), "sum")
        self.add_state("boundary_count", count(), "sum")

    def update(self, ious: Tensor, boundary: Tensor | None = None) -> None:
        """Add N objects: their IoUs (N, clicks) and, where measured, final boundary IoUs (N,), floats."""
        if ious.ndim != 2 or ious.shape[1] != self.clicks:
            raise UserError(f"IoUs have shape {tuple(ious.shape)}: set clicks={self.clicks} to the second")
        assert ious.dtype in (torch.float32, torch.float64), ious.dtype
        ious = ious.to(self.device)
        self.objects += len(ious)
        for i, target in enumerate(self.noc_targets):
            self.clicks_needed[i] += functional.noc(ious, target).sum()
        for i, target in enumerate(self.nof_targets):
            self.failures[i] += functional.nof(ious, target)
        for i, target in enumerate(self.limit_targets):
            self.limits[i] += functional.nof_at_limit(ious, target)
        chosen = ious[:, [click - 1 for click in self.iou_clicks]].double()
        self.iou_sum += chosen.nansum(0)
        self.iou_count += (~chosen.isnan()).sum(0)
        if boundary is not None:
            assert boundary.shape == (len(ious),), (boundary.shape, ious.shape)
            boundary = boundary.to(self.device).double()
            self.boundary_sum += boundary.nansum()
            self.boundary_count += (~boundary.isnan()).sum()

    def compute(self) -> dict[str, Tensor]:
        """Values by canonical name (`names`), float64 scalars; a mean over no object is NaN.

        The boundary IoU is only there when one was given on any rank.
        """
        values: dict[str, Tensor] = {}
        for i, target in enumerate(self.noc_targets):
            values[names.noc(target)] = self.clicks_needed[i].double() / self.objects
        for i, target in enumerate(self.nof_targets):
            values[names.nof(target)] = self.failures[i].double()
        for i, target in enumerate(self.limit_targets):
            values[names.nof_at_limit(target)] = self.limits[i].double()
        for i, click in enumerate(self.iou_clicks):
            values[names.iou_at(click)] = self.iou_sum[i] / self.iou_count[i]
        if self.boundary_count:
            values[names.BOUNDARY_IOU] = self.boundary_sum / self.boundary_count
        return values

    @property
    def update_called(self) -> bool:
        """Always true: zero objects are a fair share of a small set on many ranks, no reason to warn."""
        return True

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        # `.to(bfloat16)` of a whole module would round the sums; only the device may change
        return super()._apply(lambda state: state.to(fn(state).device), exclude_state)
