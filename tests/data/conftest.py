"""Small shard sets for the tests of this folder."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrsam_lit.data.record import Instance, Record, encode_mask
from hrsam_lit.data.shards import ShardSet, ShardWriter, write_index


def record(number: int, objects: int = 2) -> Record:
    """A record whose image tells its number: the red channel of the first pixel."""
    rng = np.random.default_rng(number)
    height, width = (24, 32) if number % 2 else (40, 20)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[0, 0, 0] = number
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    instances = []
    for place in range(objects):
        mask = np.zeros((height, width), bool)
        mask[2 + 4 * place : 8 + 4 * place, 3:15] = True
        instances.append(Instance.from_mask(place + 1, mask, "test"))
    ignore = np.zeros((height, width), bool)
    ignore[:2] = True
    return Record(
        f"k{number:03d}",
        file.getvalue(),
        "png",
        height,
        width,
        tuple(instances),
        encode_mask(ignore) if number % 3 == 0 else None,
        "test",
    )


def make_set(folder: Path, samples: int = 11, per_shard: int = 4, objects: int = 2) -> ShardSet:
    """An indexed set of such records."""
    with ShardWriter(folder, per_shard) as writer:
        for number in range(samples):
            writer.add(record(number, objects))
    write_index(folder, provenance={"source": "test"}, licence="none")
    return ShardSet.open(folder)


@pytest.fixture(name="record", scope="session")
def _record():
    return record


@pytest.fixture(name="make_set", scope="session")
def _make_set():
    return make_set


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> ShardSet:
    """Eleven records in three shards."""
    return make_set(tmp_path_factory.mktemp("images"))
