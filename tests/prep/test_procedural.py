"""The quickstart's built-in data: the same bytes every time, held out by photo, masks that hold."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest

from hrsam_lit.data.record import Record
from hrsam_lit.errors import UserError
from hrsam_prep import procedural
from hrsam_prep.drawing import Shape
from hrsam_prep.procedural import MAX_SIDE, MIN_AREA, MIN_SIDE, PHOTOS, composite, procedural_records
from hrsam_prep.shapes import FAMILIES


@pytest.fixture(scope="module")
def train() -> list[Record]:
    return list(procedural_records("train", 40))


@pytest.fixture(scope="module")
def val() -> list[Record]:
    return list(procedural_records("val", 18))


def photo_of(record: Record) -> str:
    return next(name for names in PHOTOS.values() for name in names if f" {name}," in record.source)


def test_the_same_bytes_every_time(train, val):
    for split, known in (("train", train), ("val", val)):
        procedural._photo.cache_clear()
        again = list(procedural_records(split, 9))  # a shorter run is the beginning of a longer one
        assert [record.to_members() for record in again] == [record.to_members() for record in known[:9]]
        assert [record.key for record in again] == [record.key for record in known[:9]]


def test_threads_do_not_change_the_bytes(train):
    before = cv2.getNumThreads()
    cv2.setNumThreads(1 if before > 1 else 2)
    try:
        other = list(procedural_records("train", 4))
    finally:
        cv2.setNumThreads(before)
    assert [record.image for record in other] == [record.image for record in train[:4]]


def test_another_seed_and_another_place_give_another_picture(train):
    other = list(procedural_records("train", 8, seed=1))
    assert all(a.image != b.image for a, b in zip(train, other, strict=False))
    assert len({record.image for record in train}) == len(train)
    assert len({record.key for record in train}) == len(train)


def test_a_photo_is_in_one_split_only(train, val):
    assert not set(PHOTOS["train"]) & set(PHOTOS["val"])
    assert {photo_of(record) for record in train} == set(PHOTOS["train"])
    assert {photo_of(record) for record in val} == set(PHOTOS["val"])
    # two views of one scene would be a leak under two names
    scenes = [{name.split("_")[0].split(".")[0] for name in names} for names in PHOTOS.values()]
    assert not scenes[0] & scenes[1]


def test_photos_are_distinct_pictures():
    """No photo of one split is another's copy: their thumbnails do not correlate."""
    thumbs = {
        name: cv2.resize(procedural._photo(name)[0], (16, 16), interpolation=cv2.INTER_AREA).ravel()
        for names in PHOTOS.values()
        for name in names
    }
    for a in PHOTOS["train"]:
        for b in PHOTOS["val"]:
            assert np.corrcoef(thumbs[a], thumbs[b])[0, 1] < 0.8, (a, b)


def test_masks_are_sensible_disjoint_and_match_their_facts(train, val):
    for record in (*train, *val):
        pixels = record.pixels()
        assert pixels.shape == (record.height, record.width, 3)
        assert min(pixels.shape[:2]) >= MIN_SIDE
        assert max(pixels.shape[:2]) <= MAX_SIDE
        assert 1 <= len(record.instances) <= 3
        masks = [instance.mask() for instance in record.instances]
        assert np.sum(masks, axis=0).max() == 1, f"{record.key}: objects share pixels"
        for instance, mask in zip(record.instances, masks, strict=True):
            assert mask.shape == pixels.shape[:2]
            assert MIN_AREA <= instance.area == mask.sum() < 0.6 * mask.size
            x, y, w, h = (int(value) for value in instance.box)
            assert mask[y : y + h, x : x + w].sum() == instance.area
        assert [instance.id for instance in record.instances] == list(range(1, len(masks) + 1))


def test_objects_can_be_seen(train, val):
    """Object and surroundings differ in mean colour, after JPEG, in every picture."""
    for record in (*train, *val):
        lab = cv2.cvtColor(record.pixels().astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        everything = np.any([instance.mask() for instance in record.instances], axis=0)
        last = record.instances[-1].mask()
        around = cv2.dilate(last.astype(np.uint8), np.ones((25, 25), np.uint8)).astype(bool) & ~everything
        assert np.linalg.norm(lab[last].mean(0) - lab[around].mean(0)) > 10, record.key


def test_the_sets_vary(train, val):
    families = {instance.source.split()[1].rstrip(",") for record in train for instance in record.instances}
    assert families == set(FAMILIES)
    assert {len(record.instances) for record in train} == {1, 2, 3}
    assert len({(record.height, record.width) for record in train}) > 30
    shapes = np.array([record.width / record.height for record in train])
    assert shapes.min() < 0.85
    assert shapes.max() > 1.2
    saturation = np.array([np.ptp(record.pixels().astype(int), axis=2).mean() for record in train])
    assert (saturation < 3).any(), "no grey record"
    assert (saturation > 20).mean() > 0.3


def test_compositing_changes_the_mask_and_its_antialiased_edge_only():
    rng = np.random.default_rng(0)
    for family in FAMILIES.values():
        drawn = family(rng, 260)
        shape = Shape(drawn.alpha, np.full_like(drawn.rgb, 255))
        image = np.zeros((300, 320, 3), np.uint8)
        mask = composite(image, shape, 20, -15)
        share = image[..., 0] / 255
        np.testing.assert_array_equal(mask, share >= 0.5)
        reach = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
        assert not (image.any(2) & ~reach).any(), "pixels changed far from the mask"
        inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        assert np.median(image[inner]) == 255


def test_a_drawn_object_leaves_the_photo_around_it_alone(monkeypatch):
    """In a finished picture every visible change lies at a mask, every mask is a change."""
    monkeypatch.setattr(procedural, "value_noise", lambda rng, hw, cell: np.zeros(hw, np.float32))
    for i, name in enumerate(("coffee.png", "rocket.jpg", "grass.png")):
        plain, grey = procedural._background(np.random.default_rng(i), name)
        picture, masks, _ = procedural.compose(np.random.default_rng(i), name, full_first=bool(i))
        if grey:
            continue
        union = np.any(masks, axis=0)
        changed = np.abs(picture.astype(int) - plain).max(2)
        near = cv2.dilate(union.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
        assert changed[~near].max() == 0
        assert (changed[union] > 8).mean() > 0.85


def test_without_scikit_image_the_way_out_is_named(monkeypatch):
    procedural._photo.cache_clear()
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(UserError, match=r"pip install 'hrsam-lit\[quickstart\]'"):
        next(procedural_records("train", 1))


def test_a_wheel_without_a_photo_is_named(monkeypatch):
    procedural._photo.cache_clear()
    monkeypatch.setitem(procedural.PHOTOS, "val", ("absent.png",))
    with pytest.raises(UserError, match=r"absent\.png"):
        next(procedural_records("val", 1))


def test_an_unknown_split_is_named():
    with pytest.raises(UserError, match="test"):
        next(procedural_records("test", 1))
