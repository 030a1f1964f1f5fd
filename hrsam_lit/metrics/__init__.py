"""Metrics of click-based segmentation: functions, and torchmetrics classes on them."""

from hrsam_lit.metrics.functional import boundary_iou, iou, noc, nof, nof_at_limit
from hrsam_lit.metrics.interactive import ClickMetrics

__all__ = ["ClickMetrics", "boundary_iou", "iou", "noc", "nof", "nof_at_limit"]
