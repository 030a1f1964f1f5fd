from __future__ import annotations

import io
import json
import pickle
import tarfile

import numpy as np
import pytest

from hrsam_lit.data.shards import SAMPLE, ShardSet, ShardWriter, write_index
from hrsam_lit.errors import UserError


def test_every_record_comes_back(images, record):
    assert len(images) == 11
    assert images.shard_sizes.tolist() == [4, 4, 3]
    assert images.objects.tolist() == [2] * 11
    for number in (10, 0, 4, 3, 7):
        assert images.read(number) == record(number)
        assert images.shard_of(number) == f"shard-{number // 4:06d}.tar"
    assert images.info["provenance"] == {"source": "test"}
    assert images.info["licence"] == "none"
    images.verify(checksums=True)


def test_eleven_million_rows_stay_under_200_mb():
    assert SAMPLE.itemsize * 11_000_000 < 200e6


def test_same_records_give_the_same_bytes(tmp_path, make_set):
    first, second = (make_set(tmp_path / name) for name in "ab")
    names = sorted(path.name for path in first.folder.iterdir())
    assert names == [
        "index.json",
        "keys.npy",
        "samples.npy",
        *(f"shard-{number:06d}.tar" for number in range(3)),
    ]
    for name in names:
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes(), name


def test_webdataset_reads_the_shards(images):
    from webdataset.tariterators import group_by_keys, tar_file_expander

    with open(images.folder / "shard-000001.tar", "rb") as file:
        samples = list(group_by_keys(tar_file_expander([{"url": "shard", "stream": file}])))
    assert [sample["__key__"] for sample in samples] == ["k004", "k005", "k006", "k007"]
    assert samples[0]["png"] == images.read(4).image


def test_rows_are_found_by_key(images):
    assert images.find(["k007", "k000", "k010"]).tolist() == [7, 0, 10]
    assert images.find(images.keys).tolist() == list(range(11))
    with pytest.raises(UserError, match=r"no sample 'x' \(2 of 3"):
        images.find(["k001", "x", "zzz"])


def test_a_pickled_set_maps_its_tables_again(images):
    pickled = pickle.dumps(images)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).read(5) == images.read(5)


def test_an_interrupted_shard_leaves_nothing(tmp_path, record):
    def three(writer):
        with writer:
            for number in range(3):
                writer.add(record(number))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        three(ShardWriter(tmp_path, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["shard-000000.tar"]


def test_a_discarded_shard_leaves_nothing(tmp_path, record):
    with ShardWriter(tmp_path, 2) as writer:
        writer.add(record(0))
        writer.discard()
        writer.add(record(1))
        writer.finish_shard()
    write_index(tmp_path)
    assert ShardSet.open(tmp_path).key(0) == "k001"
    assert len(list(tmp_path.iterdir())) == 4


def test_damaged_bytes_name_shard_and_key(tmp_path, make_set):
    images = make_set(tmp_path)
    path = images.folder / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    row = images._samples[5]
    data[int(row["offset"]) + 700] ^= 1
    path.write_bytes(data)
    assert images.read(4).key == "k004"
    with pytest.raises(UserError, match=r"shard-000001\.tar: sample 'k005' is cut off or damaged"):
        images.read(5)
    images.verify()
    with pytest.raises(UserError, match=r"shard-000001\.tar"):
        images.verify(checksums=True)


def test_a_cut_shard_names_shard_and_key(tmp_path, make_set):
    images = make_set(tmp_path)
    path = images.folder / "shard-000002.tar"
    path.write_bytes(path.read_bytes()[: int(images._samples[9]["offset"]) + 600])
    assert images.read(8).key == "k008"
    for number in (9, 10):
        with pytest.raises(UserError, match=rf"shard-000002\.tar: sample 'k0{number:02d}' is cut off"):
            images.read(number)
    with pytest.raises(UserError, match=r"shard-000002\.tar"):
        images.verify()
    with pytest.raises(UserError, match=r"shard-000002\.tar: the shard is"):
        write_index(images.folder)


def test_a_shard_cut_between_samples_is_not_indexed(tmp_path, make_set):
    images = make_set(tmp_path)
    path = images.folder / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[: int(images._samples[2]["offset"])])
    with pytest.raises(UserError, match=r"shard-000000\.tar: the shard is cut off"):
        write_index(images.folder)


def test_a_lost_shard_is_named(tmp_path, make_set):
    images = make_set(tmp_path)
    (tmp_path / "shard-000000.tar").unlink()
    with pytest.raises(UserError, match=r"shard-000000\.tar: sample 'k001' cannot be read \(No such file"):
        images.read(1)


def test_missing_folder_and_index_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        ShardSet.open(tmp_path / "none")
    with pytest.raises(UserError, match=r"no index\.json"):
        ShardSet.open(tmp_path)
    with pytest.raises(UserError, match=r"no \.tar shards"):
        write_index(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: info.update(schema=7), "schema 7, this version reads 1"),
        (lambda info: info.update(kind="embeddings"), "holds embeddings, not images"),
        (lambda info: info.update(samples=3), "index is damaged"),
        (lambda info: info.pop("shards"), "index is damaged"),
        (lambda info: info["shards"][0].update(name="../secret.tar"), "outside its folder"),
    ],
)
def test_wrong_indices_are_refused(tmp_path, make_set, change, message):
    make_set(tmp_path)
    info = json.loads((tmp_path / "index.json").read_text())
    change(info)
    (tmp_path / "index.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=message):
        ShardSet.open(tmp_path)


@pytest.mark.parametrize("name", ["samples.npy", "keys.npy", "index.json"])
@pytest.mark.parametrize("content", [b"", b"nonsense"])
def test_damaged_tables_are_refused(tmp_path, make_set, name, content):
    make_set(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="index is damaged"):
        ShardSet.open(tmp_path)


def test_repeated_keys_are_refused(tmp_path, record):
    with ShardWriter(tmp_path, 2) as writer:
        for number in (0, 1, 2, 1):
            writer.add(record(number))
    with pytest.raises(UserError, match="'k001' occurs twice"):
        write_index(tmp_path)


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "..", "a\nb", "x" * 201, "a\\b"])
def test_keys_that_are_no_names_are_refused(tmp_path, key):
    with ShardWriter(tmp_path) as writer, pytest.raises(UserError, match="sample key"):
        writer.write(key, {"png": b""})


def test_long_and_foreign_keys_survive(tmp_path, record):
    keys = ["ü" * 100, "x" * 200, "写真 1"]
    with ShardWriter(tmp_path) as writer:
        for number, key in enumerate(keys):
            writer.write(key, record(number).to_members())
    write_index(tmp_path)
    images = ShardSet.open(tmp_path)
    assert [images.read(row).key for row in images.find(keys)] == keys
    assert images.read(2).image == record(2).image


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("/etc/a.jpg", tarfile.REGTYPE),
        ("../a.jpg", tarfile.REGTYPE),
        ("b/../../a.jpg", tarfile.REGTYPE),
        ("a.jpg", tarfile.SYMTYPE),
        ("a.jpg", tarfile.LNKTYPE),
        ("a.jpg", tarfile.CHRTYPE),
    ],
)
def test_members_that_point_outside_are_refused(tmp_path, name, kind):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member, io.BytesIO())
    with pytest.raises(UserError, match="not a plain file inside"):
        write_index(tmp_path)


def test_tars_made_by_others_are_indexed(tmp_path, record):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        folder = tarfile.TarInfo(".")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number in range(3):
            for extension, data in record(number).to_members().items():
                member = tarfile.TarInfo(f"./k{number:03d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    write_index(tmp_path)
    assert ShardSet.open(tmp_path).read(1) == record(1)


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, np.random.default_rng(0).bytes(5000)])
def test_what_is_no_tar_is_named(tmp_path, content):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.tar: the shard is"):
        write_index(tmp_path)
