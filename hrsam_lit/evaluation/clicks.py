"""The click protocol: a model, an object, twenty simulated clicks (RITM, Sofiiuk et al. 2021)."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hrsam_lit.clicks import Click, next_click
from hrsam_lit.data.dataset import EvaluationItem
from hrsam_lit.metrics import ClickMetrics, names
from hrsam_lit.metrics.functional import boundary_iou, iou
from hrsam_lit.models.promptable import Predictor, Promptable

ClickRule = Literal["ritm", "hrsam"]


@dataclass
class ObjectResult:
    """One object's run: IoU after each click, the clicks (x, y, positive), and times in milliseconds.

    boundary_iou: of the last mask; encode_ms: of the image, shared by its objects; click_ms: mean a click.
    masks: click count -> prediction, bool (H, W), for the counts that were asked for.
    """

    key: str
    object_id: int
    ious: list[float]
    clicks: list[tuple[int, int, bool]]
    boundary_iou: float
    encode_ms: float
    click_ms: float
    masks: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def row(self) -> dict[str, Any]:
        """Plain values for a results file."""
        names = ("key", "object_id", "ious", "clicks", "boundary_iou", "encode_ms", "click_ms")
        return {name: getattr(self, name) for name in names}


class Clicker:
    """Clicks objects by a rule, each image encoded once while its objects follow one another.

    clicks: how many an object gets, without early stop. keep: click counts whose masks are kept.
    rule: "ritm" (deterministic) or "hrsam" (random among equals; a perfect mask gets no further click and is
    predicted again). Each answer's low-resolution logits are part of the next prompt.
    """

    def __init__(
        self, model: Promptable, clicks: int = 20, rule: ClickRule = "ritm", keep: Iterable[int] = (), seed: int = 42
    ) -> None:
        self.predictor = Predictor(model)
        self.clicks = clicks
        self.rule = rule
        self.keep = frozenset(keep)
        self.rng = np.random.default_rng(seed)
        self._key: str | None = None
        self._encode_ms = 0.0

    def __call__(self, item: EvaluationItem) -> ObjectResult:
        """Run the protocol on one object."""
        if item.key != self._key:
            start = time.perf_counter()
            self.predictor.set_image(item.image)
            if self.predictor.model.device.type == "cuda":
                torch.cuda.synchronize()
            self._encode_ms = (time.perf_counter() - start) * 1e3
            self._key = item.key
        prediction = np.zeros(item.truth.shape, dtype=bool)
        clicked = np.zeros(item.truth.shape, dtype=bool)
        given: list[Click] = []
        ious: list[float] = []
        masks: dict[int, np.ndarray] = {}
        logits: Tensor | None = None
        seconds = 0.0
        for count in range(1, self.clicks + 1):
            click = next_click(item.truth, prediction, clicked, self.rule, self.rng)
            if click is not None:
                given.append(click)
                clicked[click.y, click.x] = True
            points = np.array([(click.x, click.y) for click in given], dtype=np.float32)
            labels = np.array([click.positive for click in given], dtype=np.int64)
            start = time.perf_counter()
            prediction, _, logits = self.predictor.predict(points, labels, logits=logits)
            seconds += time.perf_counter() - start
            ious.append(float(iou(prediction, item.truth)))
            if count in self.keep:
                masks[count] = prediction
        return ObjectResult(
            key=item.key,
            object_id=item.object_id,
            ious=ious,
            clicks=[(click.x, click.y, click.positive) for click in given],
            boundary_iou=float(boundary_iou(prediction, item.truth)),
            encode_ms=self._encode_ms,
            click_ms=seconds * 1e3 / self.clicks,
            masks=masks,
        )


def summarise(results: list[ObjectResult]) -> dict[str, float]:
    """Canonical metric names -> values, with median milliseconds an image and a click."""
    metric = click_metrics(len(results[0].ious))
    update_metric(metric, results)
    summary = {name: float(value) for name, value in metric.compute().items()}
    summary[names.MS_IMAGE] = float(np.median([result.encode_ms for result in results]))
    summary[names.MS_CLICK] = float(np.median([result.click_ms for result in results]))
    return summary


def click_metrics(clicks: int) -> ClickMetrics:
    """The metrics of runs with this many clicks an object."""
    return ClickMetrics(clicks=clicks, iou_clicks=[click for click in (1, 5, 20) if click <= clicks])


def update_metric(metric: ClickMetrics, results: list[ObjectResult]) -> None:
    """Add objects to a metric, training's validation and evaluation alike."""
    metric.update(
        torch.tensor([result.ious for result in results], dtype=torch.float64),
        torch.tensor([result.boundary_iou for result in results], dtype=torch.float64),
    )
