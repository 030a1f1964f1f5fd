"""The names of metrics in logs, tables and configs; no other module spells them."""

from __future__ import annotations

BOUNDARY_IOU = "boundary_iou"
FVU = "fvu"  # the teacher's variance left unexplained
MS_IMAGE = "ms/image"
MS_CLICK = "ms/click"
TRAIN_IOU = "train/iou"


def noc(target: float) -> str:
    """Mean number of clicks to an IoU: 0.9 -> "noc90"."""
    return f"noc{percent(target)}"


def nof(target: float) -> str:
    """Number of objects that never reach an IoU: 0.95 -> "nof95"."""
    return f"nof{percent(target)}"


def nof_at_limit(target: float) -> str:
    """Number of objects that need the last click or fail, RITM's and SegNext's count: "nof95_at_limit"."""
    return f"nof{percent(target)}_at_limit"


def iou_at(click: int) -> str:
    """Mean IoU after a number of clicks: 5 -> "iou@5"."""
    return f"iou@{click}"


def validation(name: str) -> str:
    """A metric of the validation set as it is logged: "val/noc90"."""
    return f"val/{name}"


def staged(stage: str, name: str) -> str:
    """A metric of a stage's set as it is logged: "test/noc90"."""
    return f"{stage}/{name}"


def train_loss(term: str) -> str:
    """One term of the training loss as it is logged: "train/loss/<term>"."""
    return f"train/loss/{term}"


def higher_is_better(name: str) -> bool:
    """Whether a metric, prefixed or not, is an IoU rather than a loss or a count of clicks or failures."""
    return "iou" in name.rsplit("/", 1)[-1]


def percent(target: float) -> str:
    """0.9 -> "90", 0.995 -> "99.5"."""
    return f"{100 * target:g}"
