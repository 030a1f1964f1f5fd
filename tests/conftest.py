"""Fixtures every test may use."""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for a hub
os.environ.setdefault("WANDB_MODE", "offline")

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden files, weights and photos beside the checkout; skips where it is absent."""
    folder = Path(os.environ.get("HRSAM_SHARED", ROOT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"{folder} with golden files is not there")
    return folder


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


SIDE = 64
ENCODER = {
    "depth": 2,
    "width": 32,
    "heads": 2,
    "window": 4,
    "taps": [0, 1],
    "state": 4,
    "cycles": 2,
    "anchor": 32,
    "pos_grid": 4,
}


@dataclass(frozen=True)
class World:
    """Paths of everything a config names."""

    images: Path
    embeddings: Path
    teacher: Path
    decoder: Path
    side: int = SIDE


def make_images(folder: Path, count: int):
    from hrsam_lit.data.record import Instance, Record
    from hrsam_lit.data.shards import ShardSet, ShardWriter, write_index

    with ShardWriter(folder, 4) as writer:
        for number in range(count):
            rng = np.random.default_rng(number)
            height, width = (48, 64) if number % 2 else (64, 40)
            image = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
            masks = np.zeros((2, height, width), bool)
            masks[0, 6:20, 5:30], masks[1, 26:44, 8:33] = True, True
            image[masks[0]] += 120
            image[masks[1]] += 60
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            instances = tuple(Instance.from_mask(i + 1, mask, "test") for i, mask in enumerate(masks))
            writer.add(Record(f"k{number:03d}", file.getvalue(), "png", height, width, instances, None, "test"))
    write_index(folder)
    return ShardSet.open(folder)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("world")
    images = make_images(folder / "images", 6)
    from transformers import SamConfig, SamModel

    from hrsam_lit.data.embeddings import EmbeddingMeta, EmbeddingSet, EmbeddingWriter
    from hrsam_lit.geometry import Frame
    from hrsam_lit.models.decoder import SamDecoder

    torch.manual_seed(0)
    vision = {
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "mlp_dim": 16,
        "image_size": SIDE,
        "global_attn_indexes": [0],
        "window_size": 4,
    }
    SamModel(SamConfig(vision_config=vision)).save_pretrained(folder / "teacher")
    torch.manual_seed(0)
    save_file(SamDecoder().state_dict(), folder / "decoder.safetensors")
    meta = EmbeddingMeta("test", "0" * 64, "pad", SIDE, 16, 256)
    mix = np.random.default_rng(0).normal(0.0, 0.1, (256, 3)).astype(np.float32)
    with EmbeddingWriter(folder / "embeddings", images, meta) as writer:
        for part in writer.ranges():
            for index in part:
                record = images.read(index)
                # A map that a student can learn: mixed mean colours of each cell.
                canvas = Frame.pad((record.height, record.width), SIDE).place_image(record.pixels()).float() / 255
                colours = torch.nn.functional.avg_pool2d(canvas, 16).numpy()
                neck = np.einsum("cd,dhw->chw", mix, colours) + 0.3
                writer.add(index, neck, (record.height, record.width))
    assert len(EmbeddingSet.open(folder / "embeddings")) == 6
    return World(folder / "images", folder / "embeddings", folder / "teacher", folder / "decoder.safetensors")


@pytest.fixture
def encoder():
    """A small HRSAM++."""
    from hrsam_lit.models.hrsam import HRSAM

    torch.manual_seed(1)
    return HRSAM(**ENCODER)


OVERLAY = re.compile(r"laid\s+over\s+(\S+\.yaml)")


def _bases(config: Path) -> list[Path]:
    found = OVERLAY.search(config.read_text().replace("\n#", ""))
    return [config] if found is None else [config.with_name(found.group(1)), config]


@pytest.fixture(scope="session")
def bases():
    """A recipe and what it is laid over, in the order they are read."""
    return _bases


@pytest.fixture
def small(world):
    """Options that make a recipe's step cheap; everything else is the recipe's own."""

    def options(config: Path, folder: Path) -> list[str]:
        text = "".join(path.read_text() for path in _bases(config))
        changed = {
            "trainer.default_root_dir": folder,
            "trainer.accelerator": "cpu",
            "trainer.devices": 1,
            "trainer.strategy": "auto",
            "trainer.max_steps": 2,
            "trainer.logger": "false",
            "trainer.enable_progress_bar": "false",
            **{
                f"model.encoder.{key}": str(value).replace(" ", "")
                for key, value in ENCODER.items()
                if key != "pos_grid"
            },
            "model.decoder": world.decoder,
            "data.train": world.images,
            "data.image_size": world.side,
            "data.workers": 0,
        }
        if "val_check_interval" in text:
            changed["trainer.val_check_interval"] = 1
        if re.search(r"^ +val: ", text, re.MULTILINE):
            changed["data.val"] = world.images
        for key in ("embeddings", "val_embeddings"):
            if f" {key}: runs" in text:
                changed[f"data.{key}"] = world.embeddings
        if "teacher: " in text:
            changed["model.teacher"] = world.teacher
        if "init_from: " in text:
            changed["model.init_from"] = "null"
        if "SegmentModule" in text:
            changed["model.clicks"] = 2
        if "monitor: val/noc95" in text:
            changed["data.val_limit"] = 2
        return [f"--{key}={value}" for key, value in changed.items()]

    return options
