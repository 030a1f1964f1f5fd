from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from hrsam_lit.data.record import decode_mask
from hrsam_lit.errors import UserError
from hrsam_prep.folder import read_folder

PHOTO = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
LEFT, RIGHT = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
LEFT[2:9, 1:8] = True
RIGHT[5:18, 20:28] = True


@pytest.fixture
def source(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    return tmp_path


def photo(source, name: str, pixels: np.ndarray = PHOTO, **options):
    Image.fromarray(pixels).save(source / "images" / name, **options)


def mask(source, name: str, values: np.ndarray, mode: str | None = None):
    image = Image.fromarray(values)
    if mode == "P":
        image = Image.fromarray(values, "L")
        image.putpalette(list(range(256)) * 3)
        image = image.convert("P") if image.mode != "P" else image
    image.save(source / "masks" / name)


def read(source, **options):
    return list(read_folder(source, **options))


def masks_of(record) -> list[np.ndarray]:
    return [one.mask() for one in record.instances]


def test_photos_and_masks_are_paired_by_stem(source):
    photo(source, "b.png")
    photo(source, "a.jpg", quality=90)
    (source / "images" / "notes.txt").write_text("not a photo")
    (source / "images" / "folder.jpg").mkdir()
    mask(source, "a.png", LEFT)
    mask(source, "b.bmp", (RIGHT * 255).astype(np.uint8))
    first, second = read(source)
    assert (first.key, first.extension, first.height, first.width) == ("a", "jpg", 20, 30)
    assert first.image == (source / "images" / "a.jpg").read_bytes()
    assert (second.key, second.extension) == ("b", "png")
    np.testing.assert_array_equal(masks_of(first), [LEFT])
    np.testing.assert_array_equal(masks_of(second), [RIGHT])
    assert first.source == "images/a.jpg"
    assert second.instances[0].source == "masks/b.bmp: > 0"
    assert first.ignore is None


def test_one_trailing_letter_makes_several_objects_of_a_photo(source):
    photo(source, "189011.jpg")
    photo(source, "12b.jpg")
    mask(source, "189011a.png", np.repeat((LEFT * np.uint8(255))[..., None], 3, 2))
    mask(source, "189011b.png", np.repeat((RIGHT * np.uint8(255))[..., None], 3, 2))
    mask(source, "12b.png", LEFT)
    records = {record.key: record for record in read(source)}
    np.testing.assert_array_equal(masks_of(records["189011"]), [LEFT, RIGHT])
    assert [one.id for one in records["189011"].instances] == [1, 2]
    assert len(records["12b"].instances) == 1


def test_palette_and_wide_values_are_ids(source):
    values = (LEFT * 3 + RIGHT * 250).astype(np.uint8)
    photo(source, "a.png")
    image = Image.fromarray(values)
    image.putpalette([*range(256)] * 3)
    image.save(source / "masks" / "a.png")
    photo(source, "b.png")
    mask(source, "b.png", (LEFT * 7 + RIGHT * 40000).astype(np.uint16))
    photo(source, "c.png")
    mask(source, "c.png", (LEFT * 1 + RIGHT * 2).astype(np.uint8))
    records = read(source)
    for record in records:
        np.testing.assert_array_equal(masks_of(record), [LEFT, RIGHT])
    assert [one.source for one in records[0].instances] == ["masks/a.png: = 3", "masks/a.png: = 250"]
    assert records[1].instances[1].source == "masks/b.png: = 40000"


def test_soft_masks_are_cut_at_127_and_say_so(source):
    soft = np.where(LEFT, 128, 0).astype(np.uint8)
    soft[RIGHT] = 127
    soft[3, 3] = 255
    photo(source, "a.png")
    mask(source, "a.png", soft)
    (record,) = read(source)
    np.testing.assert_array_equal(masks_of(record), [LEFT])
    assert record.instances[0].source == "masks/a.png: > 127"
    ids = read(source, values="ids")[0]
    assert [one.source for one in ids.instances] == [f"masks/a.png: = {value}" for value in (127, 128, 255)]


def test_an_ignored_value_is_neither_object_nor_background(source):
    values = (LEFT * 255 + RIGHT * 128).astype(np.uint8)
    photo(source, "a.png")
    mask(source, "a.png", values)
    (record,) = read(source, ignore=128)
    np.testing.assert_array_equal(masks_of(record), [LEFT])
    np.testing.assert_array_equal(decode_mask(record.ignore), RIGHT)
    assert record.instances[0].source == "masks/a.png: > 0"


def test_a_few_stray_coloured_pixels_count_by_their_largest_channel(source):
    grey = np.repeat((LEFT * np.uint8(255))[..., None], 3, 2)
    stray = np.repeat(grey, 10, 0).repeat(10, 1)
    stray[0, 0] = (255, 0, 255)
    photo(source, "a.png", PHOTO.repeat(10, 0).repeat(10, 1))
    mask(source, "a.png", stray)
    found = masks_of(read(source)[0])[0]
    assert found[0, 0]
    assert found.sum() == LEFT.sum() * 100 + 1
    mask(source, "a.png", PHOTO.repeat(10, 0).repeat(10, 1))
    with pytest.raises(UserError, match=r"a\.png: a mask in colours"):
        read(source)


def test_exif_orientation_decides_the_size(source):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(source, "a.jpg", PHOTO.transpose(1, 0, 2).copy(), exif=exif)
    mask(source, "a.png", LEFT)
    (record,) = read(source)
    assert (record.height, record.width) == (20, 30)
    assert record.pixels().shape == (20, 30, 3)


def test_other_formats_become_png_with_the_same_pixels(source):
    photo(source, "a.bmp")
    photo(source, "b.TIFF")
    for record in read(source, masks=None):
        assert record.extension == "png"
        np.testing.assert_array_equal(record.pixels(), PHOTO)
        assert record.source.endswith("saved as PNG")


def test_the_content_decides_not_the_suffix(source):
    file = io.BytesIO()
    Image.fromarray(PHOTO).save(file, "JPEG")
    (source / "images" / "a.png").write_bytes(file.getvalue())
    (record,) = read(source, masks=None)
    assert record.extension == "jpg"


def test_photos_alone_and_dotted_names(source):
    photo(source, "a.v2.png")
    (record,) = read(source / "images", images=".", masks=None)
    assert record.key == "a_v2"
    assert record.instances == ()
    photo(source, "a_v2.png")
    with pytest.raises(UserError, match="makes the same key 'a_v2'"):
        read(source, masks=None)


def bad_size(source):
    photo(source, "a.png")
    mask(source, "a.png", LEFT[:, :-1])


def bad_photo(source):
    photo(source, "a.jpg")
    path = source / "images" / "a.jpg"
    path.write_bytes(path.read_bytes()[:-100])
    mask(source, "a.png", LEFT)


def bad_mask(source):
    photo(source, "a.png")
    (source / "masks" / "a.png").write_bytes(b"no mask")


def empty_mask(source):
    photo(source, "a.png")
    mask(source, "a.png", np.zeros((20, 30), np.uint8))


def tiny(source):
    photo(source, "a.png", PHOTO[:1, :1])
    mask(source, "a.png", LEFT[:1, :1])


def no_mask(source):
    photo(source, "a.png")
    photo(source, "c.png")
    mask(source, "a.png", LEFT)


def no_photo(source):
    photo(source, "a.png")
    mask(source, "a.png", LEFT)
    mask(source, "cab.png", LEFT)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (bad_size, r"masks/a\.png: mask of 29 x 20 pixels for .*images/a\.png of 30 x 20"),
        (bad_photo, r"images/a\.jpg \(mask .*masks/a\.png\): the image is damaged"),
        (bad_mask, r"masks/a\.png: not a readable mask"),
        (empty_mask, r"masks/a\.png: no object in the mask of .*images/a\.png"),
        (tiny, r"images/a\.png \(mask .*masks/a\.png\): 1 x 1 pixels"),
        (no_mask, r"images/c\.png: no mask 'c' in .*masks"),
        (no_photo, r"masks/cab\.png: no photo 'cab' .*images"),
    ],
)
def test_mistakes_are_one_line_with_both_files(source, break_it, message):
    break_it(source)
    with pytest.raises(UserError, match=message) as raised:
        read(source)
    assert "\n" not in str(raised.value)


def test_missing_and_empty_folders_are_named(source):
    with pytest.raises(UserError, match="images: no images in it"):
        read(source)
    with pytest.raises(UserError, match="img: no such folder"):
        read(source, images="img")
    photo(source, "a.png")
    with pytest.raises(UserError, match="masks: no images in it"):
        read(source)


def test_berkeley_has_100_objects_on_96_photos(shared):
    records = read(shared / "data" / "berkeley")
    assert len(records) == 96
    assert sum(len(record.instances) for record in records) == 100
    several = {record.key: len(record.instances) for record in records if len(record.instances) > 1}
    assert several == {"189011": 3, "239007": 3}  # the pair, and each of the two


def test_coco_mval_is_paired(shared):
    records = [
        record for record, _ in zip(read_folder(shared / "data/coco_mval", "img", "gt"), range(20), strict=False)
    ]
    assert len(records) == 20
    assert all(len(record.instances) == 1 and record.extension == "jpg" for record in records)
