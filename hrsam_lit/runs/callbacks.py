"""What every run does besides training: whole checkpoints, an exported model, one log of how it was made."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

from hrsam_lit.errors import UserError
from hrsam_lit.files import replacing
from hrsam_lit.models.checkpoints import save_model
from hrsam_lit.models.promptable import Promptable
from hrsam_lit.runs.lineage import lineage


class WholeCheckpointIO(TorchCheckpointIO):
    """Checkpoints that a kill leaves either old or new, never half."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write beside `path`, flush, rename."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            torch.save(checkpoint, temporary)


class Export(Callback):
    """Writes the student to `<run>/model` for `hrsam evaluate` and `hrsam_lit.models.checkpoints.load_model`.

    monitor: the validation metric whose best value is exported; null exports the last weights.
    """

    def __init__(self, monitor: str | None = None, mode: Literal["min", "max"] = "min") -> None:
        self.monitor = monitor
        self.mode = mode
        self.best = math.inf if mode == "min" else -math.inf

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Fail before training, not after, where the student cannot be exported."""
        if stage == "fit":
            _exported(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export where the monitored metric improved."""
        if self.monitor is None or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise UserError(f"Export.monitor {self.monitor!r} is not logged; there are {known}")
        value = float(trainer.callback_metrics[self.monitor])
        if value < self.best if self.mode == "min" else value > self.best:
            self.best = value
            self._save(trainer, pl_module, {self.monitor: value})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the last weights where nothing is monitored."""
        if self.monitor is None and trainer.global_step >= trainer.max_steps:
            self._save(trainer, pl_module, {})

    def _save(self, trainer: Trainer, pl_module: LightningModule, metrics: dict[str, float]) -> None:
        if trainer.is_global_zero:
            provenance = {**lineage(), "step": trainer.global_step, "metrics": metrics}
            save_model(_exported(pl_module), Path(trainer.default_root_dir) / "model", provenance)

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, for resuming."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Counterpart of `state_dict`."""
        self.best = state_dict["best"]


@runtime_checkable
class _Exports(Protocol):
    def exported(self) -> Promptable: ...


def _exported(module: LightningModule) -> Promptable:
    if not isinstance(module, _Exports):
        raise UserError(
            f"the Export callback exports DistillModule and SegmentModule; {type(module).__name__} is neither"
        )
    return module.exported()


class SaveConfig(SaveConfigCallback):
    """The resolved config in the run's folder, and with the code's and libraries' versions in every logger."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write and log once, on rank zero."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        text = self.parser.dump(self.config, skip_none=False)
        root = Path(trainer.default_root_dir)
        root.mkdir(parents=True, exist_ok=True)
        with replacing(root / "config.yaml") as temporary:
            temporary.write_text(text, encoding="utf-8")
        for logger in trainer.loggers:
            logger.log_hyperparams({"lineage": lineage(), "config": text})
