"""Every shipped config parses, builds and steps, with a small model and small data in place of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from hrsam_lit.errors import UserError
from hrsam_lit.models.hrsam import SIZES
from hrsam_lit.runs.launch import launch

FOLDER = Path(__file__).resolve().parents[2] / "experiments"
CONFIGS = sorted(FOLDER.rglob("*.yaml"))
OVERLAY = re.compile(r"laid\s+over\s+(\S+\.yaml)")
pytestmark = pytest.mark.filterwarnings("ignore:.*`ModelCheckpoint.*monitor:UserWarning")


def bases(config: Path) -> list[Path]:
    """A config and what it is laid over."""
    found = OVERLAY.search(config.read_text().replace("\n#", ""))
    return [config] if found is None else [config.with_name(found.group(1)), config]


def small(config: Path, world, folder: Path) -> list[str]:
    """Options that make a config's step cheap; everything else is the config's own."""
    text = "".join(path.read_text() for path in bases(config))
    merged = yaml.safe_load(bases(config)[0].read_text())
    options = {
        "trainer.default_root_dir": folder,
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.strategy": "auto",
        "trainer.max_steps": 2,
        "trainer.logger": "false",
        "trainer.enable_progress_bar": "false",
        "model.encoder.depth": 2,
        "model.encoder.width": 32,
        "model.encoder.heads": 2,
        "model.encoder.window": 4,
        "model.encoder.taps": "[0,1]",
        "model.encoder.state": 4,
        "model.encoder.anchor": 32,
        "model.decoder": world.decoder,
        "data.train": world.images,
        "data.image_size": world.side,
        "data.workers": 0,
    }
    if "val_check_interval" in text:
        options["trainer.val_check_interval"] = 1
    if re.search(r"^ +val: ", text, re.MULTILINE):
        options["data.val"] = world.images
    for key in ("embeddings", "val_embeddings"):
        if f" {key}: runs" in text:
            options[f"data.{key}"] = world.embeddings
    if "teacher: " in text:
        options["model.teacher"] = world.teacher
    if "init_from: " in text:
        options["model.init_from"] = "null"
    if "SegmentModule" in text:
        options["model.clicks"] = 2
    if any("monitor: val/noc95" in line for line in text.splitlines()):
        options["data.val_limit"] = 2
    assert merged
    return [f"--{key}={value}" for key, value in options.items()]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_it_parses_builds_and_steps(config, world, tmp_path):
    configs = [f"--config={path}" for path in bases(config)]
    trainer = launch(["fit", *configs, *small(config, world, tmp_path)]).trainer
    assert trainer.global_step == 2
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file() or trainer.max_steps < 50
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
def test_a_wrong_key_type_or_value_is_one_line_before_anything_is_written(option, words, world, tmp_path):
    config = FOLDER / "quickstart" / "distill.yaml"
    arguments = ["fit", f"--config={config}", *small(config, world, tmp_path / "run"), option]
    with pytest.raises(UserError, match=words) as caught:
        launch(arguments)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.ckpt")) and not list(tmp_path.rglob("*.safetensors"))


def test_a_misspelt_key_in_a_file_is_named(world, tmp_path):
    config = FOLDER / "quickstart" / "distill.yaml"
    changed = tmp_path / "mine.yaml"
    changed.write_text(config.read_text().replace("start_at_teacher", "start_at_the_teacher"))
    with pytest.raises(UserError, match="start_at_the_teacher"):
        launch(["fit", f"--config={changed}", *small(config, world, tmp_path / "run")])


def test_derived_keys_follow_an_override(world, tmp_path):
    """`${trainer.default_root_dir}/checkpoints` is computed after the command line was read."""
    config = FOLDER / "quickstart" / "distill.yaml"
    cli = launch(["fit", f"--config={config}", *small(config, world, tmp_path / "elsewhere")])
    assert cli.trainer.checkpoint_callback.dirpath == str(tmp_path / "elsewhere" / "checkpoints")
