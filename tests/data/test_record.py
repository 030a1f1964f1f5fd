from __future__ import annotations

import io
import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco

from hrsam_lit.data.record import Instance, Record, decode_image, decode_mask, encode_mask, image_facts
from hrsam_lit.errors import UserError

PHOTO = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_masks_survive_run_lengths(mask):
    rle = encode_mask(mask)
    assert rle["size"] == list(mask.shape)
    np.testing.assert_array_equal(decode_mask(rle), mask)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools and numpy 2
def test_own_decoder_agrees_with_coco_on_a_large_mask():
    rng = np.random.default_rng(1)
    mask = np.kron(rng.random((40, 60)) > 0.5, np.ones((31, 37))) > 0
    mask[700:, 900:] = True
    rle = encode_mask(mask)
    np.testing.assert_array_equal(decode_mask(rle), coco.decode(rle).astype(bool))


@pytest.mark.parametrize(
    "damage",
    [
        lambda counts: counts[:-1],
        lambda counts: counts + "1",
        lambda counts: "",
        lambda counts: "\x07" + counts,
        lambda counts: "é" + counts,
        lambda counts: counts + "P" * 20 + "0",
    ],
)
def test_damaged_run_lengths_are_one_clear_error(damage):
    mask = np.zeros((20, 30), bool)
    mask[3:9, 4:20] = True
    rle = encode_mask(mask)
    with pytest.raises(UserError, match="run lengths"):
        decode_mask({"size": rle["size"], "counts": damage(rle["counts"])})


def test_run_lengths_of_another_size_are_refused():
    rle = encode_mask(np.ones((20, 30), bool))
    with pytest.raises(UserError, match="2000 x 30"):
        decode_mask({"size": [2000, 30], "counts": rle["counts"]})


def sample() -> Record:
    mask = np.zeros((24, 40), bool)
    mask[5:9, 7:20] = True
    return Record(
        "a_1",
        encoded(Image.fromarray(PHOTO)),
        "png",
        24,
        40,
        (Instance.from_mask(3, mask, "masks/ä.png: > 0"),),
        encode_mask(~mask),
        "folder",
    )


def test_record_survives_its_members():
    record = sample()
    members = record.to_members()
    assert set(members) == {"png", "json"}
    assert members["png"] is record.image
    assert Record.from_members("a_1", members) == record
    assert record.instances[0].box == (7, 5, 13, 4)
    assert record.instances[0].area == 52
    assert (record.ignore_mask() == ~record.instances[0].mask()).all()
    np.testing.assert_array_equal(record.pixels(), PHOTO)


def test_record_without_masks_survives_and_ignores_nothing():
    record = Record("b", encoded(Image.fromarray(PHOTO), "JPEG"), "jpg", 24, 40)
    assert Record.from_members("b", record.to_members()) == record
    assert not record.ignore_mask().any()


def test_record_of_another_size_than_its_image_is_refused():
    record = Record("b", encoded(Image.fromarray(PHOTO)), "png", 40, 24)
    with pytest.raises(UserError, match="'b' is 40 x 24 pixels, its record says 24 x 40"):
        record.pixels()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: facts.update(schema=9), "schema 9"),
        (lambda facts: facts.pop("height"), "height"),
        (lambda facts: facts["instances"][0]["rle"].update(size=[9, 9]), "size"),
        (lambda facts: facts["instances"][0].update(box=[1, 2]), "not a record"),
    ],
)
def test_wrong_json_names_the_sample(change, message):
    members = sample().to_members()
    facts = json.loads(members["json"])
    change(facts)
    with pytest.raises(UserError, match=message) as raised:
        Record.from_members("a_1", {**members, "json": json.dumps(facts).encode()})
    assert "'a_1'" in str(raised.value)


@pytest.mark.parametrize("members", [{}, {"json": b"{}"}, {"png": b"", "jpg": b"", "json": b"{}"}, {"png": b""}])
def test_missing_members_name_the_sample(members):
    with pytest.raises(UserError, match="'k'"):
        Record.from_members("k", members)


def test_unreadable_json_names_the_sample():
    with pytest.raises(UserError, match="'k': its json is damaged"):
        Record.from_members("k", {"png": b"", "json": b"{"})


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    image = Image.fromarray(PHOTO)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "PNG", exif=exif)
    turned = {
        1: PHOTO,
        2: PHOTO[:, ::-1],
        3: PHOTO[::-1, ::-1],
        4: PHOTO[::-1],
        5: PHOTO.transpose(1, 0, 2),
        6: np.rot90(PHOTO, -1),
        7: PHOTO[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(PHOTO),
    }[orientation]
    np.testing.assert_array_equal(decode_image(data, "x"), turned)
    assert image_facts(data, "x") == ("PNG", *turned.shape[:2])


def test_sixteen_bits_keep_their_range():
    wide = np.linspace(0, 65535, 24 * 40).astype(np.uint16).reshape(24, 40)
    rgb = decode_image(encoded(Image.fromarray(wide)), "x")
    assert rgb.shape == (24, 40, 3)
    assert rgb[0, 0].tolist() == [0] * 3
    assert rgb[-1, -1].tolist() == [255] * 3
    assert np.abs(rgb[..., 1] - wide / 257).max() <= 0.5


def test_grey_alpha_palette_and_cmyk_become_rgb():
    grey = PHOTO[..., 0]
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(grey)), "x"), np.repeat(grey[..., None], 3, 2))
    alpha = np.dstack((PHOTO, np.full((24, 40), 7, np.uint8)))
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(alpha)), "x"), PHOTO)
    flat = np.zeros((24, 40, 3), np.uint8)
    flat[:, 20:] = (10, 200, 30)
    palette = Image.fromarray(flat).quantize(4)
    np.testing.assert_array_equal(decode_image(encoded(palette), "x"), flat)
    np.testing.assert_array_equal(decode_image(encoded(palette, transparency=b"\x00\x10"), "x"), flat)
    cmyk = decode_image(encoded(Image.fromarray(flat).convert("CMYK"), "JPEG", quality=100), "x")
    assert np.abs(cmyk.astype(int) - flat)[:, 24:].max() < 6
    bits = decode_image(encoded(Image.fromarray(grey > 100)), "x")
    np.testing.assert_array_equal(bits[..., 2] == 255, grey > 100)


def test_long_thin_images_are_fine_and_tiny_ones_are_named():
    assert decode_image(encoded(Image.new("RGB", (30000, 50))), "x").shape == (50, 30000, 3)
    with pytest.raises(UserError, match=r"photos/one\.png: 1 x 1 pixels"):
        decode_image(encoded(Image.new("RGB", (1, 1))), "photos/one.png")
    with pytest.raises(UserError, match="7 x 100 pixels"):
        decode_image(encoded(Image.new("RGB", (7, 100))), "x")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        encoded(Image.fromarray(PHOTO), "JPEG")[:-200],
        encoded(Image.fromarray(PHOTO))[:600],
        encoded(Image.fromarray(PHOTO))[:30],
        encoded(Image.new("F", (20, 20)), "TIFF"),
    ],
    ids=["empty", "text", "cut jpeg", "cut png", "png header", "float"],
)
def test_broken_images_are_one_line_with_the_name(data):
    with pytest.raises(UserError, match=r"^photos/a\.jpg: ") as raised:
        decode_image(data, "photos/a.jpg")
    assert "\n" not in str(raised.value)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2000), st.binary(min_size=1, max_size=8), st.sampled_from(["JPEG", "PNG"]))
def test_flipped_bytes_never_raise_anything_else(place, noise, kind):
    data = bytearray(encoded(Image.fromarray(PHOTO), kind))
    place %= len(data)
    data[place : place + len(noise)] = noise
    with suppress(UserError):  # the only error that bad bytes may raise
        assert decode_image(bytes(data), "x").shape[2] == 3
