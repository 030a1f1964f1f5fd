"""The data a module is trained on, as far as the module has to know it."""

from __future__ import annotations

from lightning import LightningModule

from hrsam_lit.data.datamodule import ShardDataModule
from hrsam_lit.errors import UserError


def data_of(module: LightningModule) -> ShardDataModule:
    """The trainer's data module, which has to be one of ours: canvas size and teacher statistics come from it."""
    datamodule = getattr(module.trainer, "datamodule", None)
    if not isinstance(datamodule, ShardDataModule):
        raise UserError(
            f"data is {type(datamodule).__name__}; use hrsam_lit.data.datamodule.ShardDataModule or a subclass"
        )
    return datamodule
