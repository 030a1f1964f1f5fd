"""One bar for a whole fit: steps done of steps to do, whatever the epochs are."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class StepBar(ProgressBar):
    """A progress bar over `trainer.max_steps` with what modules log for it; on rank zero alone."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def enable(self) -> None:
        """Lightning's switch."""
        self._enabled = True

    def disable(self) -> None:
        """Lightning's switch, used on every rank but zero."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the bar where the run stands."""
        if not self._enabled:
            return
        columns = (TextColumn("steps"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, TextColumn("{task.fields[shown]}"), transient=True)
        self._task = self._progress.add_task("", total=trainer.max_steps, completed=trainer.global_step, shown="")
        self._progress.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Advance to the optimiser's step."""
        if self._progress is not None:
            metrics = self.get_metrics(trainer, pl_module)
            shown = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items() if isinstance(value, float))
            self._progress.update(self._task, completed=trainer.global_step, shown=shown)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the bar away, after an error too."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
