"""The quickstart's own data: real photos with thin objects drawn into them, masks exact to the pixel.

The photos are the natural ones inside the wheel of scikit-image; nothing is downloaded. Each record is a
crop of one photo with one to three objects of `hrsam_prep.shapes`. A photo belongs to one split only.
Record i of a split depends on (seed, split, i) alone and has the same bytes at every call with the same
versions of numpy and OpenCV.

H W: the record's size in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from hrsam_lit.data.record import Instance, Record
from hrsam_lit.errors import UserError
from hrsam_prep.drawing import Shape, value_noise
from hrsam_prep.shapes import FULL, THIN

Split = Literal["train", "val"]

# The other images of the wheel are drawings, documents, microscopy or a second view of the motorcycle.
PHOTOS: dict[Split, tuple[str, ...]] = {
    "train": (
        "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coins.png",
        "grass.png", "gravel.png", "moon.png", "motorcycle_left.png",
    ),
    "val": ("coffee.png", "rocket.jpg"),
}  # fmt: skip
_SPLIT_CODE: dict[Split, int] = {"train": 0, "val": 1}
_NO_UP = {"brick", "coins", "grass", "gravel", "moon"}  # natural in any of the eight orientations

MIN_SIDE, MAX_SIDE = 384, 640  # of a record, pixels
MIN_AREA = 400  # visible pixels of an object
_ENLARGED = 1.8  # the most a photo is enlarged: beyond it the crisp objects give themselves away
_CONTRAST = 32.0  # least distance in CIELAB between an object's mean colour and its surroundings'
_FULL_SHARE = 0.5  # of the later objects; were all of them thin, every model would run out of clicks
_ATTEMPTS = 30  # at drawing an object that fits among the others
_QUALITY = 95  # JPEG; masks are stored apart, so compression cannot move them
# colour at full resolution, or a 2-pixel bar borrows its neighbours' colour
_FULL_COLOUR = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)

# what a grey photo may be toned to
_TINTS = {
    "brick": ((164, 96, 74), (150, 120, 92), (120, 112, 108)),
    "camera": ((138, 126, 108), (116, 124, 134)),
    "coins": ((138, 122, 92), (112, 122, 128), (126, 104, 88)),
    "grass": ((94, 124, 62), (148, 134, 82), (110, 128, 84)),
    "gravel": ((110, 118, 130), (150, 130, 104), (136, 112, 100)),
    "moon": ((142, 128, 108), (110, 120, 136)),
}


@lru_cache(maxsize=16)
def _photo(name: str) -> tuple[np.ndarray, bool]:
    """A photo of scikit-image's wheel, RGB uint8 (h, w, 3), and whether it is grey."""
    try:
        import skimage
    except ImportError as error:
        raise UserError(
            "the built-in photos come with scikit-image, which is not installed: "
            "pip install 'hrsam-lit[quickstart]', or name your own photos with --data"
        ) from error
    path = Path(skimage.__file__).parent / "data" / name
    if not path.is_file():
        raise UserError(
            f"scikit-image {version('scikit-image')} came without its photo {path}: "
            "pip install --force-reinstall 'hrsam-lit[quickstart]', or name your own photos with --data"
        )
    with Image.open(path) as file:
        return np.asarray(file.convert("RGB")), file.mode == "L"


def _background(rng: np.random.Generator, name: str) -> tuple[np.ndarray, bool]:
    """A crop of a photo, RGB uint8 (H, W, 3), turned, resized, recoloured; and whether the record is grey."""
    photo, grey = _photo(name)
    if Path(name).stem in _NO_UP:
        photo = np.rot90(photo, int(rng.integers(4)))
    if rng.random() < 0.5:
        photo = photo[:, ::-1]
    h, w = (int(rng.integers(MIN_SIDE, min(MAX_SIDE, int(_ENLARGED * length)) + 1)) for length in photo.shape[:2])
    scale = rng.uniform(max(h / photo.shape[0], w / photo.shape[1]), _ENLARGED)
    # the crop may lose a fraction of a pixel to rounding, never reach over the photo's edge
    crop_h, crop_w = int(h / scale), int(w / scale)
    top, left = (int(rng.integers(photo.shape[i] - crop + 1)) for i, crop in enumerate((crop_h, crop_w)))
    crop = np.ascontiguousarray(photo[top : top + crop_h, left : left + crop_w])
    crop = cv2.resize(crop, (w, h), interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)
    light = 255 * (crop.astype(np.float32) / 255) ** np.float32(rng.uniform(0.75, 1.3))
    if not grey:
        return _to_bytes(light * rng.uniform(0.92, 1.08, 3).astype(np.float32)), False
    if rng.random() < 0.2:
        return _to_bytes(light), True
    tints = _TINTS[Path(name).stem]
    tint = np.asarray(tints[rng.integers(len(tints))], np.float32)
    return _to_bytes(light * (1 + np.float32(rng.uniform(0.4, 1.0)) * (tint / _luma(tint) - 1))), False


def _luma(rgb: np.ndarray) -> np.ndarray:
    """Float32 (..., 3) -> (...), grey; written out, as a BLAS product differs by processor."""
    return rgb[..., 0] * np.float32(0.299) + rgb[..., 1] * np.float32(0.587) + rgb[..., 2] * np.float32(0.114)


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def composite(image: np.ndarray, shape: Shape, top: int, left: int) -> np.ndarray:
    """Draw a shape over RGB uint8 (H, W, 3) in place, its box's corner at (left, top), possibly outside.

    Returns its mask, boolean (H, W): the pixels at least half of which the shape now covers.
    """
    h, w = shape.alpha.shape
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + h, image.shape[0]), min(left + w, image.shape[1])
    here = np.s_[y0:y1, x0:x1]
    there = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
    alpha = shape.alpha[there][..., None]
    image[here] = _to_bytes(image[here] * (1 - alpha) + shape.rgb[there] * alpha)
    mask = np.zeros(image.shape[:2], bool)
    mask[here] = shape.mask[there]
    return mask


def _fit_light(rng: np.random.Generator, shape: Shape, around: np.ndarray, grey: bool) -> Shape:
    """The shape in the light of its surroundings (n, 3) RGB, yet different enough in colour to be seen."""
    inside = shape.mask
    tone = around.mean(0)
    grey_tone = float(_luma(tone))
    exposure = np.float32(0.75 + 0.35 * grey_tone / 128)
    cast = 1 + np.float32(0.25) * (tone / max(grey_tone, 1.0) - 1)
    rgb = shape.rgb * (exposure * cast)
    if rng.random() < 0.35:  # a colour the photo has as well: colour alone must not tell object from photo
        borrowed = around[rng.integers(len(around))]
        luma = _luma(rgb)
        lightness = luma / max(float(luma[inside].mean()), 1.0)
        rgb = np.float32(0.4) * rgb + np.float32(0.6) * lightness[..., None] * borrowed
    mean = rgb[inside].mean(0)
    if grey:  # the record will be: only lightness counts
        tone, mean = np.repeat(_luma(tone), 3), np.repeat(_luma(mean), 3)
    target, lab = _lab(tone), _lab(mean)
    gap = float(np.sqrt(max(0.0, _CONTRAST**2 - float(((lab - target)[1:] ** 2).sum()))))
    if abs(lab[0] - target[0]) < gap:
        above, below = float(target[0]) + gap, float(target[0]) - gap
        brighter = below < 15 or (lab[0] >= target[0] and above < 90)
        # gamma-coded values and CIE lightness are both near power 1/2.4 of light: one factor serves
        rgb = rgb * np.float32((above if brighter else below) / max(float(lab[0]), 4.0))
    return Shape(shape.alpha, _to_bytes(rgb))


def _lab(colour: np.ndarray) -> np.ndarray:
    """RGB 0..255 (3,) -> CIELAB (3,), lightness 0..100."""
    pixel = (np.clip(colour, 0, 255) / 255).astype(np.float32)[None, None]
    return cv2.cvtColor(pixel, cv2.COLOR_RGB2LAB)[0, 0]


def compose(rng: np.random.Generator, name: str, full_first: bool) -> tuple[np.ndarray, list[np.ndarray], list[str]]:
    """One picture from the photo `name`: RGB uint8 (H, W, 3), its objects' visible masks, their families.

    The first object is of a full family or of a thin one, the others are of either; each lies over the
    earlier ones. The masks are boolean (H, W) and disjoint: a pixel belongs to the last object that covers
    at least half of it. Each keeps MIN_AREA pixels and half of what it had within the picture.
    """
    image, grey = _background(rng, name)
    h, w = image.shape[:2]
    wanted = int(rng.choice(3, p=(0.5, 0.35, 0.15))) + 1
    masks: list[np.ndarray] = []
    whole: list[int] = []
    families: list[str] = []
    for _ in range(_ATTEMPTS):
        if len(masks) == wanted:
            break
        kind = FULL if (rng.random() < _FULL_SHARE if masks else full_first) else THIN
        family = list(kind)[rng.integers(len(kind))]
        share = rng.uniform(0.5, 0.95) if not masks else rng.uniform(0.3, 0.7)
        shape = kind[family](rng, int(min(h, w) * share))
        top = int(rng.integers(-shape.alpha.shape[0] // 8, h - shape.alpha.shape[0] * 7 // 8 + 1))
        left = int(rng.integers(-shape.alpha.shape[1] // 8, w - shape.alpha.shape[1] * 7 // 8 + 1))
        trial = image.copy()
        mask = composite(trial, shape, top, left)
        visible = [earlier & ~mask for earlier in masks]
        too_hidden = any(v.sum() < max(MIN_AREA, 0.5 * full) for v, full in zip(visible, whole, strict=True))
        if mask.sum() < MIN_AREA or too_hidden:
            continue
        ring = cv2.dilate(mask.astype(np.uint8), np.ones((25, 25), np.uint8)).astype(bool) & ~mask
        composite(image, _fit_light(rng, shape, image[ring].astype(np.float32), grey), top, left)
        masks, whole, families = [*visible, mask], [*whole, int(mask.sum())], [*families, family]
    assert masks, f"no object found a place in {name}"
    # one sensor's grain over photo and objects alike
    noise = rng.uniform(0.5, 2.5) * value_noise(rng, (h, w), 1.5)
    picture = _to_bytes(image + noise[..., None])
    if grey:
        picture = np.repeat(_to_bytes(_luma(picture.astype(np.float32)))[..., None], 3, axis=2)
    return picture, masks, families


def procedural_records(split: Split, count: int, seed: int = 0) -> Iterator[Record]:
    """Yield `count` records of a split, round its photos in turn.

    A record's source names its photo, an instance's the family of its object. Raises UserError where
    scikit-image or one of its photos is missing.
    """
    if split not in PHOTOS:
        raise UserError(f"split {split!r}: the built-in data has {' and '.join(PHOTOS)}")
    for i in range(count):
        lap, place = divmod(i, len(PHOTOS[split]))
        name = PHOTOS[split][place]
        rng = np.random.default_rng([seed, _SPLIT_CODE[split], i])
        picture, masks, families = compose(rng, name, full_first=(lap + place) % 2 == 0)
        quality = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY, *_FULL_COLOUR]
        whole, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), quality)
        assert whole, f"OpenCV could not encode record {i} of {split}"
        instances = tuple(
            Instance.from_mask(number, mask, f"drawn {family}, alpha >= 0.5")
            for number, (mask, family) in enumerate(zip(masks, families, strict=True), start=1)
        )
        yield Record(
            key=f"{split}_{i:05d}_{Path(name).stem}", image=data.tobytes(), extension="jpg",
            height=picture.shape[0], width=picture.shape[1], instances=instances,
            source=f"scikit-image {name}, cropped and recoloured",
        )  # fmt: skip
