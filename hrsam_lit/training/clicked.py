"""A module whose student is judged by simulated clicks, while it trains and when it is tested."""

from __future__ import annotations

from lightning import LightningModule

from hrsam_lit.data.dataset import EvaluationItem
from hrsam_lit.evaluation.clicks import Clicker, click_metrics, update_metric
from hrsam_lit.metrics import names
from hrsam_lit.models.promptable import Promptable


class ClickedModule(LightningModule):
    """`hrsam test` of every module: `clicks` simulated clicks an object, by the evaluation's own code."""

    def __init__(self, clicks: int) -> None:
        super().__init__()
        self.clicks = clicks
        self.metric = click_metrics(clicks)
        self._clicker: Clicker | None = None

    def exported(self) -> Promptable:
        """The student with its decoder, as it is saved and judged."""
        raise TypeError(f"{type(self).__name__} does not say what its student is")

    def start_clicking(self) -> None:
        """Begin a pass over a set: weights have changed, so no image is encoded yet."""
        self._clicker = Clicker(self.exported().to(self.device), self.clicks)

    def click(self, item: EvaluationItem) -> None:
        """Click one object."""
        assert self._clicker is not None, "start_clicking comes first"
        update_metric(self.metric, [self._clicker(item)])

    def log_clicks(self, stage: str) -> None:
        """Log the whole set's metrics, equal on every rank, as `<stage>/<name>`."""
        for name, value in self.metric.compute().items():
            self.log(names.staged(stage, name), value.float(), prog_bar=name == names.iou_at(5))
        self.metric.reset()

    def on_test_epoch_start(self) -> None:
        """Begin."""
        self.start_clicking()

    def test_step(self, item: EvaluationItem, batch_idx: int) -> None:
        """Click one object of the test set."""
        self.click(item)

    def on_test_epoch_end(self) -> None:
        """Log."""
        self.log_clicks("test")
