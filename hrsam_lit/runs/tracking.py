"""Weights & Biases that never waits for a network, and curves in a CSV file beside it."""

from __future__ import annotations

import csv
import netrc
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger


def has_key() -> bool:
    """Whether a W&B key is at hand: WANDB_API_KEY, or a login in the user's netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc().hosts
    except (FileNotFoundError, netrc.NetrcParseError):
        return False
    return any("wandb" in host for host in hosts)


class Tracker(WandbLogger):
    """A W&B run that is offline unless there is a key, and goes on under its own id when resumed.

    save_dir: the run's folder; the run's id is kept in `<save_dir>/wandb_id`. offline: forced either way.
    """

    def __init__(
        self,
        save_dir: str,
        project: str = "hrsam",
        name: str | None = None,
        group: str | None = None,
        offline: bool | None = None,
    ) -> None:
        if offline is None:
            offline = os.environ.get("WANDB_MODE") == "offline" or not has_key()
        Path(save_dir).mkdir(parents=True, exist_ok=True)
        super().__init__(
            name=name or Path(save_dir).name,
            save_dir=save_dir,
            project=project,
            offline=offline,
            id=_run_id(Path(save_dir)),
            group=group,
            resume=None if offline else "allow",
        )


def _run_id(folder: Path) -> str:
    """The folder's run id; made at the first call."""
    path = folder / "wandb_id"
    try:
        with open(path, "x", encoding="ascii") as file:  # ranks that start together agree on the first one's
            file.write(secrets.token_hex(4))
    except FileExistsError:
        pass
    return path.read_text(encoding="ascii").strip()


def default_loggers(folder: str) -> list[Logger]:
    """What a run logs to where its config names no logger: CSV curves and W&B, both inside `folder`.

    Runs whose folders lie side by side are one W&B group.
    """
    return [CSVLogger(folder, name="", version="curves"), Tracker(folder, group=Path(folder).resolve().parent.name)]


def sync_command(folder: str | Path) -> str:
    """The command that uploads every offline run below `folder`, oldest first."""
    runs = sorted(Path(folder).glob("**/wandb/offline-run-*"), key=lambda path: path.name)
    return " ".join(["wandb sync", *map(str, runs)])


def log_report(folder: Path, table: Sequence[Mapping[str, Any]], pictures: Mapping[str, Path]) -> None:
    """A report's table and pictures as a W&B run of their own, in `folder` and its group."""
    import wandb

    tracker = Tracker(str(folder), group=folder.resolve().parent.name)
    columns = list(table[0])
    rows = wandb.Table(columns=columns, data=[[row[name] for name in columns] for row in table])
    images = {title: wandb.Image(str(path)) for title, path in pictures.items()}
    tracker.experiment.log({"results": rows, **images})
    tracker.experiment.finish()


def read_curves(folder: str | Path) -> dict[str, Any]:
    """Name -> (steps, values) of what a run logged to CSV."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    path = Path(folder) / "curves" / "metrics.csv"
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    steps, values = series.setdefault(name, ([], []))
                    steps.append(int(row["step"]))
                    values.append(float(value))
    return series
