"""`hrsam fit | validate | test`: LightningCLI over our modules and data."""

from __future__ import annotations

import logging
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from typing import Any

from jsonargparse import set_parsing_settings
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI

from hrsam_lit.errors import UserError
from hrsam_lit.runs.callbacks import SaveConfig, WholeCheckpointIO
from hrsam_lit.runs.progress import StepBar
from hrsam_lit.runs.tracking import default_loggers

log = logging.getLogger(__name__)


class RunCLI(LightningCLI):
    """LightningCLI with whole checkpoints, and CSV and W&B logs in the run's folder unless told otherwise."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Fill in what a run always has."""
        config = self._get(self.config_init, "trainer", default={})
        folder = config.get("default_root_dir")
        if folder is None and self.subcommand == "fit":
            raise UserError("trainer.default_root_dir must name the run's folder")
        if config.get("logger") in (None, True):
            kwargs["logger"] = default_loggers(folder) if self.subcommand == "fit" else False
        if self.subcommand == "fit" and config.get("enable_progress_bar") is not False:
            kwargs["callbacks"] = [*(config.get("callbacks") or []), StepBar()]
        kwargs["plugins"] = [WholeCheckpointIO(), *(config.get("plugins") or [])]
        return super().instantiate_trainer(**kwargs)


def launch(arguments: Sequence[str]) -> RunCLI:
    """Parse and run a Lightning subcommand.

    Raises UserError with one line for a wrong key, type or value, before anything starts.
    """
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    # In sys.argv, not as an argument: ranks that Lightning starts are this process' command line again.
    argv, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        return RunCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            # Without exit_on_error jsonargparse raises, and the command line reports mistakes in one way.
            parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False},
        )
    except (ArgumentError, ValueError) as error:
        mistake = _mistake(error)
        if mistake is None:
            raise
        raise mistake from None
    except SystemExit as leaving:  # how Lightning passes an interrupt on
        if isinstance(leaving.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        sys.argv = argv
        if "wandb" in sys.modules:
            sys.modules["wandb"].finish()


def _mistake(error: BaseException) -> UserError | None:
    """The user's mistake behind a parser's error: our own where a constructor found it, else the parser's words."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__
    return UserError(" ".join(str(error).split())) if isinstance(error, ArgumentError) else None
