"""The bar counts optimiser steps over epochs and goes away."""

import pytest
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from rich.progress import Progress

from hrsam_lit.runs.progress import StepBar


@pytest.mark.parametrize("enabled", [True, False])
def test_the_bar_counts_steps_over_epochs_and_is_taken_away(tmp_path, monkeypatch, enabled):
    seen = []
    monkeypatch.setattr(Progress, "update", lambda self, task, **values: seen.append(values["completed"]))
    bar = StepBar()
    if not enabled:
        bar.disable()
        monkeypatch.setattr(bar, "enable", lambda: None)
    trainer = Trainer(
        default_root_dir=tmp_path, max_steps=5, limit_train_batches=2, limit_val_batches=0, logger=False,
        enable_model_summary=False, enable_checkpointing=False, accelerator="cpu", callbacks=[bar],
    )  # fmt: skip
    trainer.fit(BoringModel())
    assert seen == ([1, 2, 3, 4, 5] if enabled else [])
    assert bar._progress is None
