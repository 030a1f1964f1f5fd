"""One sample as shards hold it: image bytes as they were, masks as COCO run lengths, where they come from."""

from __future__ import annotations

import io
import json
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from pycocotools import mask as coco

from hrsam_lit.errors import UserError

SCHEMA = 1
EXTENSIONS = ("jpg", "png")
SMALLEST_SIDE = 8

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error)  # what Pillow raises on bad bytes


class Rle(TypedDict):
    """A binary mask as COCO's compressed run lengths; size is [height, width], runs go down the columns."""

    size: list[int]
    counts: str


def encode_mask(mask: np.ndarray) -> Rle:
    """Boolean (H, W) -> COCO run lengths."""
    assert (mask.ndim, mask.dtype) == (2, bool), (mask.shape, mask.dtype)
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(length) for length in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_mask(rle: Rle) -> np.ndarray:
    """COCO run lengths -> boolean (H, W); raises UserError when the runs do not fill the mask.

    pycocotools returns uninitialised memory for runs that stop early, so the runs are checked here.
    """
    height, width = rle["size"]
    runs = mask_runs(rle)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def mask_runs(rle: Rle) -> np.ndarray:
    """Lengths of the runs, background first, int64; raises UserError when they do not fill the mask."""
    height, width = rle["size"]
    runs = _runs(rle["counts"])
    if (runs < 0).any() or runs.sum() != height * width:
        raise UserError(f"a mask's run lengths do not fill its {height} x {width} pixels")
    return runs


def _runs(counts: str) -> np.ndarray:
    """Lengths of the alternating runs, background first.

    COCO writes 5 bits a character, low bits first, and from the fourth run on the difference to the last
    but one.
    """
    digits = np.frombuffer(counts.encode("utf-8"), np.uint8).astype(np.int64) - 48
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        raise UserError("a mask's run lengths are not COCO's compressed form")
    last = np.flatnonzero((digits & 32) == 0)
    first = np.concatenate(([0], last[:-1] + 1))
    length = last - first + 1
    if length.max() > 8:
        raise UserError("a mask's run lengths are not COCO's compressed form")
    place = np.arange(len(digits)) - np.repeat(first, length)
    runs = np.add.reduceat((digits & 31) << (5 * place), first)
    runs -= np.where(digits[last] & 16, np.int64(1) << (5 * length), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


@dataclass(frozen=True)
class Instance:
    """One object of an image.

    id: unique in its record; area: pixels; box: x, y, width, height in pixels of the image;
    source: the file and the rule that made the mask binary.
    """

    id: int
    rle: Rle
    area: int
    box: tuple[float, float, float, float]
    source: str = ""

    @classmethod
    def from_mask(cls, number: int, mask: np.ndarray, source: str = "") -> Instance:
        """Boolean (H, W), not empty -> an instance with its tight box."""
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y = int(columns[0]), int(rows[0])
        box = (x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y)
        return cls(number, encode_mask(mask), int(mask.sum()), box, source)

    def mask(self) -> np.ndarray:
        """Boolean (H, W)."""
        return decode_mask(self.rle)


@dataclass(frozen=True)
class Record:
    """One image with its objects.

    image: the file's bytes, unchanged; extension: jpg or png; height, width: pixels after EXIF
    orientation, the frame of every mask; ignore: pixels that are neither object nor background.
    """

    key: str
    image: bytes
    extension: str
    height: int
    width: int
    instances: tuple[Instance, ...] = ()
    ignore: Rle | None = None
    source: str = ""

    def pixels(self) -> np.ndarray:
        """RGB uint8 (H, W, 3); raises UserError when the image is broken or of another size than stated."""
        image = decode_image(self.image, f"image of sample {self.key!r}")
        if image.shape[:2] != (self.height, self.width):
            raise UserError(
                f"image of sample {self.key!r} is {image.shape[1]} x {image.shape[0]} pixels, "
                f"its record says {self.width} x {self.height}: prepare the set again"
            )
        return image

    def ignore_mask(self) -> np.ndarray:
        """Boolean (H, W), all False where the source marks nothing."""
        if self.ignore is None:
            return np.zeros((self.height, self.width), bool)
        return decode_mask(self.ignore)

    def to_members(self) -> dict[str, bytes]:
        """Extension -> bytes of the files that stand for this record in a shard."""
        assert self.extension in EXTENSIONS, self.extension
        facts = {
            "schema": SCHEMA,
            "height": self.height,
            "width": self.width,
            "source": self.source,
            "ignore": self.ignore,
            "instances": [
                {"id": one.id, "rle": one.rle, "area": one.area, "box": list(one.box), "source": one.source}
                for one in self.instances
            ],
        }
        text = json.dumps(facts, ensure_ascii=False, separators=(",", ":"))
        return {self.extension: self.image, "json": text.encode("utf-8")}

    @classmethod
    def from_members(cls, key: str, members: dict[str, bytes]) -> Record:
        """Inverse of `to_members`; raises UserError naming the key."""
        extensions = [extension for extension in EXTENSIONS if extension in members]
        if len(extensions) != 1 or "json" not in members:
            raise UserError(
                f"sample {key!r} has {', '.join(sorted(members)) or 'nothing'} "
                "where one jpg or png and a json are due: prepare the set again"
            )
        facts = read_facts(key, members["json"])
        try:
            height, width = int(facts["height"]), int(facts["width"])
            instances = tuple(
                Instance(
                    int(one["id"]),
                    _rle(one["rle"], height, width),
                    int(one["area"]),
                    _box(one["box"]),
                    str(one["source"]),
                )
                for one in facts["instances"]
            )
            ignore = None if facts["ignore"] is None else _rle(facts["ignore"], height, width)
            source = str(facts["source"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"sample {key!r}: its json is not a record ({error!r}): prepare the set again") from error
        return cls(key, members[extensions[0]], extensions[0], height, width, instances, ignore, source)


def read_facts(key: str, text: bytes) -> dict[str, Any]:
    """A record's json as a dict of this schema; raises UserError naming the key."""
    try:
        facts = json.loads(text)
    except ValueError as error:
        raise UserError(f"sample {key!r}: its json is damaged ({error})") from error
    if not isinstance(facts, dict) or facts.get("schema") != SCHEMA:
        found = facts.get("schema") if isinstance(facts, dict) else None
        raise UserError(
            f"sample {key!r} has record schema {found!r}, this version reads {SCHEMA}: prepare the set again"
        )
    return facts


def _rle(value: Any, height: int, width: int) -> Rle:
    if list(value["size"]) != [height, width]:
        raise ValueError(f"a mask of size {value['size']} on an image of {[height, width]}")
    return {"size": [height, width], "counts": str(value["counts"])}


def _box(value: Any) -> tuple[float, float, float, float]:
    x, y, width, height = value
    return x, y, width, height


def image_facts(data: bytes, name: str) -> tuple[str, int, int]:
    """Format (Pillow's name), height and width after EXIF orientation, read from the header alone."""
    with _opened(data, name) as image:
        width, height = image.size
        if image.getexif().get(0x0112) in (5, 6, 7, 8):  # orientations that turn the image by 90 degrees
            width, height = height, width
        return str(image.format), height, width


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Bytes of an image file -> RGB uint8 (H, W, 3), EXIF orientation applied.

    Grey is repeated, 16 bits are scaled to 8, CMYK and palettes are converted, alpha is dropped.
    Raises UserError, naming `name`, for what is no image, is cut off, or is under 8 pixels on a side.
    """
    with _opened(data, name) as image:
        if min(image.size) < SMALLEST_SIDE:
            raise UserError(
                f"{name}: {image.width} x {image.height} pixels, at least {SMALLEST_SIDE} "
                "on a side are needed: leave it out"
            )
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise UserError(f"{name}: floating-point pixels have no known range; save it with 8 or 16 bits")
        if image.mode.startswith("I"):
            wide = np.asarray(image).astype(np.int64).clip(0, 65535)
            return np.repeat((wide * 255 + 32767)[..., None] // 65535, 3, axis=2).astype(np.uint8)
        if image.mode == "P":
            image = image.convert("RGBA")  # straight to RGB, Pillow warns about palettes with transparency
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


@contextmanager
def _opened(data: bytes, name: str) -> Iterator[Image.Image]:
    """The image, lazily; what Pillow raises about its content becomes a UserError with the file's name."""
    with warnings.catch_warnings():
        # Photos above 89 megapixels are welcome, and broken EXIF does not spoil the pixels.
        warnings.simplefilter("ignore")
        try:
            yield Image.open(io.BytesIO(data))
        except UnidentifiedImageError as error:
            raise UserError(f"{name}: not an image; remove it or save it as JPEG or PNG") from error
        except Image.DecompressionBombError as error:
            raise UserError(f"{name}: too many pixels ({error}); tile or shrink it") from error
        except _BROKEN as error:
            raise UserError(f"{name}: the image is damaged ({error}); replace or remove it") from error
