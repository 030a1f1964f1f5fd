from __future__ import annotations

import warnings

import cv2
import numpy as np
import pytest

from hrsam_lit.data.augment import PRESETS, Augmentation
from hrsam_lit.errors import UserError

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
MASK = np.zeros((24, 32), bool)
MASK[3:9, 2:11] = True


def test_none_changes_nothing():
    image, masks = Augmentation("none")(IMAGE, [MASK], (0, 0, 0))
    assert image is IMAGE
    assert masks == [MASK]
    assert not Augmentation().changes_view


def test_only_moving_pixels_changes_the_view():
    assert not Augmentation("distill").changes_view
    assert Augmentation("finetune").changes_view
    assert Augmentation([{"name": "Affine"}]).changes_view
    assert not Augmentation([{"name": "GaussNoise"}]).changes_view


@pytest.mark.parametrize("preset", PRESETS)
def test_a_seed_decides_whatever_came_before(preset):
    first = Augmentation(preset)
    wanted = [first(IMAGE, [MASK], (0, 1, index)) for index in range(8)]
    second = Augmentation(preset)
    np.random.default_rng(0).random(5)
    for index in reversed(range(8)):
        image, masks = second(IMAGE, [MASK], (0, 1, index))
        np.testing.assert_array_equal(image, wanted[index][0])
        np.testing.assert_array_equal(masks[0], wanted[index][1][0])


def test_samples_epochs_and_seeds_differ():
    augment = Augmentation("distill")
    seeds = [(seed, epoch, index) for seed in range(3) for epoch in range(3) for index in range(3)]
    assert len({augment(IMAGE, [], seed)[0].tobytes() for seed in seeds}) > 18  # one in 16 stays unchanged


def test_transforms_are_drawn_independently():
    grey = np.full((8, 8, 3), 100, np.uint8)
    augment = Augmentation(
        [
            {"name": "HorizontalFlip", "p": 0.5},
            {
                "name": "RandomBrightnessContrast",
                "brightness_limit": (0.3, 0.3),
                "contrast_limit": 0.0,
                "p": 0.5,
            },
        ]
    )
    grey[:, 0] = 0
    seen = set()
    for index in range(60):
        image, _ = augment(grey, [], (0, 0, index))
        seen.add((bool(image[0, 0, 0] > image[0, -1, 0]), bool(image.max() > 100)))
    assert len(seen) == 4


def test_mask_follows_image():
    augment = Augmentation("finetune")
    flips = 0
    for index in range(40):
        _, (mask,) = augment(IMAGE, [MASK], (0, 0, index))
        assert mask.dtype == bool
        flipped = bool((mask == MASK[:, ::-1]).all())
        assert flipped or (mask == MASK).all()
        flips += flipped
    assert 10 <= flips <= 30
    picture = np.repeat((MASK * np.uint8(255))[..., None], 3, 2)
    for index in range(20):
        image, (mask,) = augment(picture, [MASK], (1, 0, index))
        inside, outside = image[mask].mean(), image[~mask].mean()
        assert inside > outside + 50


def test_colours_stay_within_the_stated_bounds():
    grey = np.full((8, 8, 3), 100, np.uint8)  # neither saturation nor hue changes grey
    augment = Augmentation("distill")
    values = np.array([augment(grey, [], (0, 0, index))[0][0, 0, 0] for index in range(400)]).astype(float)
    assert values.min() >= (100 - 32) * 0.5 - 1
    assert values.max() <= (100 + 32) * 1.5 + 1
    assert values.min() < 55
    assert values.max() > 150
    assert 0.15 < (values == 100).mean() < 0.35  # brightness and contrast are each left out half the time
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    only_hue = Augmentation(PRESETS["distill"][3:])
    hues = []
    for index in range(200):
        hue = int(cv2.cvtColor(only_hue(red, [], (0, 0, index))[0], cv2.COLOR_RGB2HSV)[0, 0, 0])
        hues.append(hue - 180 if hue > 90 else hue)
    assert min(hues) >= -19
    assert max(hues) <= 19
    assert min(hues) < -12
    assert max(hues) > 12


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("distil", "augment='distil': one of none, distill, finetune"),
        ([{"name": "HorizontalFlop"}], "'HorizontalFlop' is no albumentations transform"),
        ([{"p": 0.5}], "None is no albumentations transform"),
        ([{"name": "Compose", "transforms": []}], "'Compose' is no"),
        ([{"name": "HorizontalFlip", "prob": 0.5}], "HorizontalFlip: .*prob"),
        ([{"name": "HorizontalFlip", "p": 3}], "HorizontalFlip: .*less than or equal to 1"),
        ([{"name": "PadIfNeeded", "value": 3}], "PadIfNeeded: .*value"),
    ],
)
def test_mistakes_are_one_clear_line(spec, message):
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as in a user's process, where a misspelt argument is a warning
        with pytest.raises(UserError, match=message) as raised:
            Augmentation(spec)
    assert "\n" not in str(raised.value)
