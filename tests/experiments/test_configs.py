"""Every shipped config parses, builds and steps, with a small model and small data in place of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hrsam_lit.errors import UserError
from hrsam_lit.models.hrsam import SIZES
from hrsam_lit.runs.launch import launch

FOLDER = Path(__file__).resolve().parents[2] / "experiments"
CONFIGS = sorted(FOLDER.rglob("*.yaml"))
pytestmark = pytest.mark.filterwarnings("ignore:.*`ModelCheckpoint.*monitor:UserWarning")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_it_parses_builds_and_steps(config, small, bases, tmp_path):
    configs = [f"--config={path}" for path in bases(config)]
    trainer = launch(["fit", *configs, *small(config, tmp_path)]).trainer
    assert trainer.global_step == 2
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert (tmp_path / "config.yaml").is_file()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_it_says_what_it_is_for_what_it_costs_and_what_to_expect(config):
    head = [line for line in config.read_text().splitlines() if line.startswith("#")]
    for word in ("# Intent:", "# Cost:", "# Expected:"):
        assert sum(line.startswith(word) for line in head) == 1, word


@pytest.mark.parametrize("name", ["distill", "finetune"])
def test_quickstarts_encoder_is_the_tiny_size(name):
    config = yaml.safe_load((FOLDER / "quickstart" / f"{name}.yaml").read_text())
    encoder = dict(config["model"]["init_args"]["encoder"]["init_args"])
    assert encoder.pop("anchor") * 2 == config["data"]["init_args"]["image_size"]
    assert {key: tuple(value) if isinstance(value, list) else value for key, value in encoder.items()} == SIZES["tiny"]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--trainer.max_stepz=3", r"max_stepz"),
        ("--model.encoder.dpeth=3", r"dpeth"),
        ("--trainer.max_steps=many", r"trainer\.max_steps.*many"),
        ("--model.optimizer.lr=fast", r"lr"),
        ("--data.image_size=huge", r"image_size"),
        ("--data.train=/nowhere", r"/nowhere"),
        ("--model.decoder=/nowhere", r"/nowhere"),
        ("--model.encoder.taps=[5]", r"taps"),
    ],
)
def test_a_wrong_key_type_or_value_is_one_line_before_anything_is_written(option, words, small, tmp_path):
    config = FOLDER / "quickstart" / "distill.yaml"
    arguments = ["fit", f"--config={config}", *small(config, tmp_path / "run"), option]
    with pytest.raises(UserError, match=words) as caught:
        launch(arguments)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.ckpt")) and not list(tmp_path.rglob("*.safetensors"))


def test_a_misspelt_key_in_a_file_is_named(small, tmp_path):
    config = FOLDER / "quickstart" / "distill.yaml"
    changed = tmp_path / "mine.yaml"
    changed.write_text(config.read_text().replace("start_at_teacher", "start_at_the_teacher"))
    with pytest.raises(UserError, match="start_at_the_teacher"):
        launch(["fit", f"--config={changed}", *small(config, tmp_path / "run")])


def test_derived_keys_follow_an_override(small, tmp_path):
    """`${trainer.default_root_dir}/checkpoints` is computed after the command line was read."""
    config = FOLDER / "quickstart" / "distill.yaml"
    cli = launch(["fit", f"--config={config}", *small(config, tmp_path / "elsewhere")])
    assert cli.trainer.checkpoint_callback.dirpath == str(tmp_path / "elsewhere" / "checkpoints")


@pytest.mark.dist
def test_two_ranks_are_started_by_the_same_command(small, tmp_path):
    """Lightning starts the other ranks from the command line: it must still hold the whole command."""
    config = FOLDER / "hrsam_plusplus" / "finetune.yaml"
    options = [*small(config, tmp_path), "--trainer.devices=2", "--trainer.strategy=ddp_find_unused_parameters_true"]
    options.append("--data.val_limit=8")  # an image for each rank
    command = [sys.executable, "-m", "hrsam_lit.cli", "fit", f"--config={config}", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "MEMBER: 2/2" in done.stderr + done.stdout
    assert (tmp_path / "model" / "model.safetensors").is_file()
