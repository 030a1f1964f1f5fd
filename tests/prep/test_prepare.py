from __future__ import annotations

import errno
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hrsam_lit.data.record import Instance, Record
from hrsam_lit.errors import UserError
from hrsam_prep.prepare import prepare

MASK = np.ones((10, 12), bool)


def records(count: int = 40, per_photo: int = 2):
    """Objects of `count` / `per_photo` photos; the number behind _ is the photo's."""
    for number in range(count):
        file = io.BytesIO()
        Image.fromarray(np.full((10, 12, 3), number, np.uint8)).save(file, "PNG")
        yield Record(
            f"cat{number:02d}_{number // per_photo}",
            file.getvalue(),
            "png",
            10,
            12,
            (Instance.from_mask(1, MASK),),
        )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def keys(images) -> set[str]:
    return {images.key(row) for row in range(len(images))}


def test_sets_are_split_by_photo(tmp_path):
    counted = []
    sets = prepare(
        records(),
        tmp_path,
        holdout=0.3,
        test=0.2,
        group=r"_(\d+)$",
        samples_per_shard=7,
        provenance={"source": "here"},
        licence="free",
        progress=counted.append,
    )
    assert set(sets) == {"train", "val", "test"}
    assert sum(map(len, sets.values())) == 40
    photos = [{key.split("_")[1] for key in keys(images)} for images in sets.values()]
    assert len(photos[0] | photos[1] | photos[2]) == 20 == sum(map(len, photos))
    assert all(2 * len(group) == len(images) for group, images in zip(photos, sets.values(), strict=True))
    assert counted == list(range(1, 41))
    assert sets["val"].info["provenance"]["source"] == "here"
    assert sets["val"].info["provenance"]["split"] == "val"
    assert sets["val"].info["licence"] == "free"
    assert sets["train"].read(0).instances[0].area == 120
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test", "train", "val"]


def test_the_seed_decides_the_split_and_the_bytes(tmp_path):
    settings = {"holdout": 0.5, "group": r"_(\d+)$", "samples_per_shard": 5}
    first = prepare(records(), tmp_path / "a", seed=1, **settings)
    prepare(records(), tmp_path / "b", seed=1, **settings)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    other = prepare(records(), tmp_path / "c", seed=2, **settings)
    assert keys(first["val"]) != keys(other["val"])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.permutations(range(12)))
def test_where_a_photo_goes_does_not_depend_on_the_others(tmp_path_factory, seed, order):
    all_of_them = list(records(12, 1))
    out = tmp_path_factory.mktemp("out")
    try:
        whole = prepare(all_of_them, out / "a", holdout=0.5, seed=seed)
        part = prepare([all_of_them[place] for place in order[:9]], out / "b", holdout=0.5, seed=seed)
    except UserError as error:
        assert "no photo fell" in str(error)  # noqa: PT017
        return
    for split in ("train", "val"):
        assert keys(part[split]) <= keys(whole[split])


def test_a_finished_run_is_kept_and_not_read_again(tmp_path):
    prepare(records(), tmp_path, holdout=0.5)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    def forbidden():
        raise AssertionError("read again")
        yield

    sets = prepare(forbidden(), tmp_path, holdout=0.5)
    assert len(sets["train"]) + len(sets["val"]) == 40
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_set_made_otherwise_is_not_overwritten(tmp_path):
    prepare(records(), tmp_path, holdout=0.5, provenance={"source": "a"})
    with pytest.raises(UserError, match="prepared with source='a', not 'b'"):
        prepare(records(), tmp_path, holdout=0.5, provenance={"source": "b"})
    with pytest.raises(UserError, match=r"prepared with settings=.*'seed': 0.*not .*'seed': 1"):
        prepare(records(), tmp_path, holdout=0.5, seed=1, provenance={"source": "a"})


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "diary.txt").write_text("mine")
    with pytest.raises(UserError, match="train: exists and is no prepared set"):
        prepare(records(), tmp_path)
    assert (tmp_path / "train" / "diary.txt").read_text() == "mine"


def test_a_damaged_finished_set_is_noticed(tmp_path):
    prepare(records(), tmp_path)
    path = tmp_path / "train" / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(UserError, match=r"shard-000000\.tar: not the shard the index knows"):
        prepare(records(), tmp_path)


def test_an_interrupted_run_leaves_nothing_and_is_redone(tmp_path):
    def broken():
        yield from records(20)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(broken(), tmp_path / "a", holdout=0.5, samples_per_shard=3)
    assert not any((tmp_path / "a").iterdir())
    (tmp_path / "a" / ".train.partial").mkdir()  # what a killed process would leave
    (tmp_path / "a" / ".train.partial" / "shard-000009.tar").write_bytes(b"half")
    prepare(records(), tmp_path / "a", holdout=0.5, samples_per_shard=3)
    prepare(records(), tmp_path / "b", holdout=0.5, samples_per_shard=3)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_run_killed_between_its_last_steps_is_completed(tmp_path):
    prepare(records(), tmp_path, holdout=0.5)
    whole = contents(tmp_path)
    (tmp_path / "val").rename(tmp_path / ".val.partial")
    prepare(records(), tmp_path, holdout=0.5)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("when", [0, 9])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, when):
    from webdataset import TarWriter

    write, written = TarWriter.write, []

    def fills_up(self, sample):
        written.append(sample)
        if len(written) > when:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, sample)

    monkeypatch.setattr(TarWriter, "write", fills_up)
    with pytest.raises(UserError, match="out: the disk is full"):
        prepare(records(), tmp_path / "out", holdout=0.5, samples_per_shard=4)
    assert not any((tmp_path / "out").iterdir())


def test_a_mistake_in_the_data_leaves_nothing(tmp_path):
    def bad():
        yield from records(5)
        raise UserError("a.jpg: damaged")

    with pytest.raises(UserError, match=r"a\.jpg"):
        prepare(bad(), tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"holdout": 1.5}, r"holdout=1\.5"),
        ({"holdout": -0.1}, r"holdout=-0\.1"),
        ({"holdout": 0.7, "test": 0.6}, r"test=0\.6"),
        ({"group": "("}, "not a regular expression"),
        ({"group": "_\\d"}, "put what photos share in brackets"),
        ({"group": "photo(x)"}, "not found in sample key 'cat00_0'"),
        ({"samples_per_shard": 0}, "samples_per_shard=0"),
    ],
)
def test_impossible_settings_are_named(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        prepare(records(4), tmp_path / "out", **options)
    assert not any((tmp_path / "out").iterdir() if (tmp_path / "out").exists() else [])


def test_an_empty_set_and_no_records_are_named(tmp_path):
    with pytest.raises(UserError, match="val: no photo fell into this set"):
        prepare(records(2, 1), tmp_path, holdout=1e-6)
    with pytest.raises(UserError, match="train: no photo fell"):
        prepare([], tmp_path)


def test_everything_may_be_held_out(tmp_path):
    sets = prepare(records(6), tmp_path, holdout=1.0)
    assert list(sets) == ["val"]
    assert len(sets["val"]) == 6


def test_a_function_may_name_the_group(tmp_path):
    sets = prepare(records(), tmp_path, holdout=0.5, group=lambda key: key.split("_")[1])
    photos = [{key.split("_")[1] for key in keys(images)} for images in sets.values()]
    assert not photos[0] & photos[1]
