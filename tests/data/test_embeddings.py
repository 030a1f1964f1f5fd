from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hrsam_lit.data.embeddings import EmbeddingMeta, EmbeddingSet, EmbeddingWriter
from hrsam_lit.data.shards import ShardSet
from hrsam_lit.errors import UserError
from hrsam_lit.geometry import Frame

META = EmbeddingMeta("toy", "ab" * 32, "pad", 64, 16, 3)


def size(images: ShardSet, index: int) -> tuple[int, int]:
    record = images.read(index)
    return record.height, record.width


def embedding(index: int) -> np.ndarray:
    values = np.random.default_rng(index).normal(index, 2, (3, 4, 4)).astype(np.float32)
    values[2] *= 10
    return values


def write(folder, images: ShardSet, meta: EmbeddingMeta = META, stop_at: int | None = None) -> list[int]:
    """Fill what is missing; returns which samples were asked for."""
    asked = []
    with EmbeddingWriter(folder, images, meta, samples_per_shard=4) as writer:
        for part in writer.ranges():
            for index in part:
                if index == stop_at:
                    raise KeyboardInterrupt
                asked.append(index)
                writer.add(index, embedding(index), size(images, index))
    return asked


def test_maps_come_back_without_their_padding(tmp_path, images):
    assert write(tmp_path, images) == list(range(11))
    cached = EmbeddingSet.open(tmp_path)
    assert cached.meta == META
    assert len(cached) == 11
    for index in range(11):
        hw = size(images, index)
        rows, columns = (3, 4) if index % 2 else (4, 2)  # 24 x 32 and 40 x 20 on 64 pixels, stride 16
        assert Frame.pad(hw, 64).valid_cells(16) == (rows, columns)
        values = cached.read(index)
        assert values.dtype == np.float16
        np.testing.assert_array_equal(values, embedding(index)[:, :rows, :columns].astype(np.float16))
        np.testing.assert_array_equal(cached.read(images.key(index)), values)
        assert cached.frame_for(hw) == Frame.pad(hw, 64)


def test_statistics_are_those_of_the_kept_cells(tmp_path, images):
    write(tmp_path, images)
    cached = EmbeddingSet.open(tmp_path)
    cells = np.concatenate([cached.read(index).reshape(3, -1).astype(np.float64) for index in range(11)], axis=1)
    np.testing.assert_allclose(cached.mean, cells.mean(1), rtol=1e-5)
    np.testing.assert_allclose(cached.std, cells.std(1), rtol=1e-5)
    assert cached.mean.dtype == cached.std.dtype == np.float32


def test_a_squashing_teacher_keeps_its_whole_map(tmp_path, images):
    meta = dataclasses.replace(META, mode="squash")
    write(tmp_path, images, meta)
    cached = EmbeddingSet.open(tmp_path)
    assert cached.read(1).shape == (3, 4, 4)
    assert cached.frame_for((24, 32)) == Frame.squash((24, 32), 64)


def test_an_interrupted_run_keeps_finished_shards_and_ends_the_same(tmp_path, images):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a", images, stop_at=6)
    assert not (tmp_path / "a" / "shard-000001.tar").exists()
    with pytest.raises(UserError, match=r"no index\.json"):
        EmbeddingSet.open(tmp_path / "a")
    assert write(tmp_path / "a", images) == list(range(4, 11))
    assert write(tmp_path / "a", images) == []
    write(tmp_path / "b", images)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_stopping_inside_a_shard_without_an_error_does_not_finish_it(tmp_path, images):
    with EmbeddingWriter(tmp_path, images, META, samples_per_shard=4) as writer:
        for part in writer.ranges():
            writer.add(part[0], embedding(part[0]), size(images, part[0]))
            break
    assert not list(tmp_path.glob("*.tar"))
    assert not (tmp_path / "index.json").exists()
    assert write(tmp_path, images) == list(range(11))


def test_a_lost_shard_alone_is_made_again(tmp_path, images):
    write(tmp_path, images)
    (tmp_path / "shard-000001.tar").unlink()
    assert write(tmp_path, images) == [4, 5, 6, 7]
    assert len(EmbeddingSet.open(tmp_path)) == 11


@pytest.mark.parametrize(
    "change", [{"weights_sha256": "cd" * 32}, {"mode": "squash"}, {"side": 128}, {"teacher": "other"}]
)
def test_another_teacher_does_not_write_into_the_folder(tmp_path, images, change):
    write(tmp_path, images)
    with pytest.raises(UserError, match=r"holds embeddings of toy \(abababababab, pad 64\).*, not of") as raised:
        write(tmp_path, images, dataclasses.replace(META, **change))
    assert str(next(iter(change.values())))[:12] in str(raised.value)


def test_another_image_set_does_not_write_into_the_folder(tmp_path, images, make_set):
    write(tmp_path / "a", images)
    with pytest.raises(UserError, match=r"11 samples from 'k000' to 'k010'.*, not of .*5 samples"):
        write(tmp_path / "a", make_set(tmp_path / "few", samples=5))


def test_what_was_asked_for_is_compared(tmp_path, images):
    write(tmp_path, images)
    cached = EmbeddingSet.open(tmp_path)
    cached.require(weights_sha256="ab" * 32, mode="pad", side=64)
    with pytest.raises(UserError, match="side=64 by toy, but side=1024"):
        cached.require(side=1024)
    with pytest.raises(UserError, match="mode=pad by toy, but mode=squash"):
        cached.require(mode="squash")
    with pytest.raises(UserError, match=r"weights_sha256=abab.*weights_sha256=cd"):
        cached.require(weights_sha256="cd")


@pytest.mark.parametrize("value", [np.nan, np.inf, 70000.0])
def test_values_that_float16_cannot_hold_name_the_image(tmp_path, images, value):
    broken = embedding(0)
    broken[1, 0, 0] = value
    with EmbeddingWriter(tmp_path, images, META) as writer:
        next(writer.ranges())
        with pytest.raises(UserError, match="'k000' by toy"):
            writer.add(0, broken, size(images, 0))


def test_images_are_not_embeddings(tmp_path, images):
    with pytest.raises(UserError, match="holds images, not embeddings"):
        EmbeddingSet.open(images.folder)
    write(tmp_path, images)
    with pytest.raises(UserError, match="holds embeddings, not images"):
        ShardSet.open(tmp_path)
