"""W&B that waits for no network, curves beside it, and where a result came from."""

import os
import subprocess
import sys

import pytest
from lightning.pytorch.loggers import CSVLogger

from hrsam_lit.runs import tracking
from hrsam_lit.runs.devices import fast_precision
from hrsam_lit.runs.lineage import lineage
from hrsam_lit.runs.tracking import Tracker, has_key, read_curves, sync_command


def test_without_a_key_runs_are_offline_and_keep_their_id(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    assert not has_key()
    first, second = Tracker(str(tmp_path / "run")), Tracker(str(tmp_path / "run"))
    assert first._offline and first.version == second.version == (tmp_path / "run/wandb_id").read_text()
    assert Tracker(str(tmp_path / "other")).version != first.version


@pytest.mark.parametrize("way", ["environment", "netrc"])
def test_a_key_is_found_where_wandb_looks(tmp_path, monkeypatch, way):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert not has_key()
    if way == "environment":
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    else:
        (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password x\n")
        (tmp_path / ".netrc").chmod(0o600)
    assert has_key()


def test_an_offline_run_is_written_and_the_upload_command_names_it(tmp_path):
    code = (
        "from hrsam_lit.runs.tracking import Tracker\n"
        f"t = Tracker({str(tmp_path / 'run')!r}); t.log_metrics({{'val/iou@5': 0.5}}, step=3); t.experiment.finish()"
    )
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    runs = list((tmp_path / "run").rglob("*.wandb"))
    assert len(runs) == 1 and b"iou@5" in runs[0].read_bytes()
    assert sync_command(tmp_path) == f"wandb sync {runs[0].parent}"


def test_curves_come_back_by_name(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="curves")
    logger.log_metrics({"train/loss/embedding": 2.0}, step=1)
    logger.log_metrics({"train/loss/embedding": 1.0, "val/fvu": 0.9}, step=2)
    logger.save()
    assert read_curves(tmp_path) == {"train/loss/embedding": ([1, 2], [2.0, 1.0]), "val/fvu": ([2], [0.9])}


def test_default_loggers_write_below_the_runs_folder(tmp_path):
    csv, tracker = tracking.default_loggers(str(tmp_path / "run"))
    assert csv.log_dir == str(tmp_path / "run/curves") and tracker.save_dir == str(tmp_path / "run")


def test_lineage_names_the_code_and_the_libraries():
    facts = lineage()
    assert {"hrsam_lit", "commit", "torch", "lightning", "transformers", "device"} <= set(facts)
    assert all(isinstance(value, str) and value for value in facts.values())


def test_the_fast_precision_is_one_lightning_knows():
    assert fast_precision() in ("bf16-mixed", "32-true")
