from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from hrsam_lit.data.record import encode_mask
from hrsam_lit.errors import UserError
from hrsam_prep.sa1b import read_sa1b

MASK = np.zeros((20, 30), bool)
MASK[4:9, 3:20] = True


def jpeg(number: int, size: tuple[int, int] = (20, 30)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def annotation(number: int, **changes) -> dict:
    one = {
        "id": 500 + number,
        "segmentation": encode_mask(MASK),
        "bbox": [3.0, 4.0, 16.0, 4.0],
        "area": int(MASK.sum()),
        "predicted_iou": 0.9,
        "stability_score": 0.95,
        "crop_box": [0, 0, 30, 20],
        "point_coords": [[5.0, 6.0]],
        **changes,
    }
    return {
        "image": {"image_id": number, "width": 30, "height": 20, "file_name": f"sa_{number}.jpg"},
        "annotations": [one, {**one, "id": 1, "predicted_iou": 0.5, "stability_score": 0.99}],
    }


def pack(path, members: dict[str, bytes]):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def pair(number: int, prefix: str = "", **changes) -> dict[str, bytes]:
    return {
        f"{prefix}sa_{number}.jpg": jpeg(number),
        f"{prefix}sa_{number}.json": json.dumps(annotation(number, **changes)).encode(),
    }


def test_a_released_tar_is_read_without_encoding_anew(tmp_path):
    path = pack(tmp_path / "sa_000000.tar", {**pair(11), **pair(7, "./")})
    first, second = read_sa1b(path)
    assert (first.key, first.extension, first.height, first.width) == ("sa_11", "jpg", 20, 30)
    assert first.image == jpeg(11)
    assert [one.id for one in first.instances] == [511, 1]
    assert first.instances[0].box == (3.0, 4.0, 16.0, 4.0)
    np.testing.assert_array_equal(first.instances[0].mask(), MASK)
    assert second.key == "sa_7"


def test_halves_may_lie_apart_and_tars_in_a_folder(tmp_path):
    a, b = pair(1), pair(2)
    pack(tmp_path / "sa_000001.tar", pair(3))
    pack(
        tmp_path / "sa_000000.tar",
        {
            "sa_1.json": a["sa_1.json"],
            "sa_2.json": b["sa_2.json"],
            "sa_2.jpg": b["sa_2.jpg"],
            "sa_1.jpg": a["sa_1.jpg"],
        },
    )
    assert [record.key for record in read_sa1b(tmp_path)] == ["sa_2", "sa_1", "sa_3"]


def test_weak_masks_may_be_left_out(tmp_path):
    path = pack(tmp_path / "x.tar", pair(1))
    assert [one.id for one in next(read_sa1b(path, min_predicted_iou=0.8)).instances] == [501]
    assert [one.id for one in next(read_sa1b(path, min_stability=0.96)).instances] == [1]


def test_plain_run_lengths_are_compressed(tmp_path):
    flat = MASK.T.ravel().astype(int)
    runs = np.diff(np.flatnonzero(np.diff(flat, prepend=1 - flat[0], append=1 - flat[-1]))).tolist()
    path = pack(tmp_path / "x.tar", pair(1, segmentation={"size": [20, 30], "counts": runs}))
    np.testing.assert_array_equal(next(read_sa1b(path)).instances[0].mask(), MASK)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"sa_1.jpg": jpeg(1)}, r"x\.tar: sa_1\.json is missing"),
        ({"sa_1.json": b"{}"}, r"x\.tar: sa_1\.jpg is missing"),
        ({"sa_1.jpg": jpeg(1), "sa_1.json": b"{"}, r"x\.tar: sa_1\.json: not an SA-1B annotation"),
        ({"sa_1.jpg": jpeg(1), "sa_1.json": b"{}"}, r"sa_1\.json: not an SA-1B annotation"),
        ({"sa_1.jpg": b"no image", "sa_1.json": b"{}"}, r"x\.tar: sa_1\.jpg: not an image"),
        (
            {"sa_1.jpg": jpeg(1, (30, 20)), "sa_1.json": pair(1)["sa_1.json"]},
            r"says 30 x 20 pixels, .*has 20 x 30",
        ),
        (pair(1, segmentation={"size": [20, 30], "counts": "04"}), r"sa_1.*run lengths"),
        (pair(1, segmentation={"size": [2, 3], "counts": "6"}), r"sa_1\.json: not an SA-1B annotation"),
        ({"../sa_1.jpg": b""}, "not a plain file inside"),
        ({"/sa_1.jpg": b""}, "not a plain file inside"),
    ],
    ids=range(10),
)
def test_mistakes_are_one_line_with_tar_and_member(tmp_path, members, message):
    path = pack(tmp_path / "x.tar", members)
    with pytest.raises(UserError, match=message) as raised:
        list(read_sa1b(path))
    assert "\n" not in str(raised.value)
    assert "x.tar" in str(raised.value)


def test_cut_and_missing_tars_are_named(tmp_path):
    path = pack(tmp_path / "x.tar", pair(1))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"x\.tar: "):
        list(read_sa1b(path))
    with pytest.raises(UserError, match="no SA-1B tar there"):
        list(read_sa1b(tmp_path / "none.tar"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no SA-1B tar there"):
        list(read_sa1b(tmp_path / "empty"))
