"""Read a folder of photos and a folder of masks as records."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from hrsam_lit.data.record import Instance, Record, decode_image, encode_mask, image_facts
from hrsam_lit.errors import UserError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
_STRAY = 0.001  # share of coloured pixels in a grey mask: three masks of Berkeley have up to three pixels
_AS_IS = {"JPEG": "jpg", "PNG": "png"}  # Pillow's format -> extension of a record


def read_folder(
    source: str | Path,
    images: str = "images",
    masks: str | None = "masks",
    *,
    values: Literal["auto", "binary", "ids"] = "auto",
    ignore: int | None = None,
) -> Iterator[Record]:
    """Records of the photos in `source/images`, by name, with the objects that `source/masks` shows.

    A mask belongs to the photo with its stem, or with its stem without one last letter (189011a.png and
    189011b.png are two objects of 189011.jpg). `masks=None` reads photos alone. What a mask's values mean:
    `binary`, one object where the value is above 127 (or is the only one above 0); `ids`, one object for
    each value above 0; `auto` takes palette and 16-bit files and grey ones without a value above 127 as ids.
    Of several channels the largest counts. `ignore`: a value that is neither. Files that are no images are
    passed over.

    Raises UserError, naming the files, for a photo without mask, a mask without photo, unequal sizes,
    broken files, coloured masks and masks without an object.
    """
    source = Path(source)
    photos = _files(source / images)
    of_photo = _paired(photos, _files(source / masks)) if masks is not None else {}
    stems: dict[str, Path] = {}
    for photo in photos:
        key = _key(photo)
        if key in stems:
            raise UserError(f"{photo}: makes the same key {key!r} as {stems[key]}; rename one")
        stems[key] = photo
    for key, photo in stems.items():
        yield _record(key, photo, of_photo.get(photo, []), f"{images}/{photo.name}", values, ignore)


def _key(photo: Path) -> str:
    return photo.stem.replace(".", "_")  # shards split a member's name at its first dot


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the folders of images and masks")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not found:
        raise UserError(f"{folder}: no images in it ({', '.join(sorted(_SUFFIXES))})")
    return found


def _paired(photos: list[Path], masks: list[Path]) -> dict[Path, list[Path]]:
    """The masks of each photo."""
    by_stem = {photo.stem: photo for photo in photos}
    paired: dict[Path, list[Path]] = defaultdict(list)
    for mask in masks:
        stem = mask.stem
        if stem not in by_stem and len(stem) > 1 and stem[-1].isalpha():
            stem = stem[:-1]
        if stem not in by_stem:
            raise UserError(
                f"{mask}: no photo {mask.stem!r} beside it in {photos[0].parent}; remove the mask or add the photo"
            )
        paired[by_stem[stem]].append(mask)
    bare = next((photo for photo in photos if photo not in paired), None)
    if bare is not None:
        raise UserError(
            f"{bare}: no mask {bare.stem!r} in {masks[0].parent}; add it, remove the photo, or read the photos alone"
        )
    return paired


def _record(key: str, photo: Path, masks: list[Path], source: str, values: str, ignore: int | None) -> Record:
    data = photo.read_bytes()
    with_masks = f"{photo} (mask {masks[0]})" if masks else str(photo)
    pixels = decode_image(data, with_masks)  # also finds files that end too early
    height, width = pixels.shape[:2]
    extension = _AS_IS.get(image_facts(data, with_masks)[0])
    if extension is None:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        data, extension, source = file.getvalue(), "png", f"{source} saved as PNG"
    instances: list[Instance] = []
    ignored = np.zeros((height, width), bool)
    for path in masks:
        grey, rule = _values(path, values)
        if grey.shape != (height, width):
            raise UserError(
                f"{path}: mask of {grey.shape[1]} x {grey.shape[0]} pixels for {photo} "
                f"of {width} x {height}; make them equal"
            )
        if ignore is not None:
            ignored |= grey == ignore
            grey = np.where(grey == ignore, 0, grey)
        objects = list(_objects(grey, rule))
        if not objects:
            raise UserError(f"{path}: no object in the mask of {photo}; remove both or mend the mask")
        where = f"{path.parent.name}/{path.name}"
        instances += [
            Instance.from_mask(len(instances) + number, mask, f"{where}: {text}")
            for number, (mask, text) in enumerate(objects, 1)
        ]
    return Record(
        key, data, extension, height, width, tuple(instances), encode_mask(ignored) if ignored.any() else None, source
    )


def _values(path: Path, values: str) -> tuple[np.ndarray, str]:
    """A mask file's values, int32 (H, W), and whether they are `binary` or `ids`."""
    try:
        with Image.open(path) as image:
            mode = image.mode
            grey = np.asarray(image).astype(np.int32)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not a readable mask image; replace it") from error
    if mode in ("LA", "RGBA"):
        grey = grey[..., :-1]
    if grey.ndim == 3:
        coloured = (grey != grey[..., :1]).any(-1).mean()
        if values != "binary" and coloured > _STRAY:
            raise UserError(f"{path}: a mask in colours; save it as grey values or as palette indices")
        grey = grey.max(-1)
    if values != "auto":
        return grey, values
    ids = mode == "P" or mode.startswith("I") or grey.max() <= 127
    return grey, "ids" if ids else "binary"


def _objects(grey: np.ndarray, rule: str) -> Iterator[tuple[np.ndarray, str]]:
    """Boolean (H, W) and its rule, for every object of a mask."""
    found = [int(value) for value in np.unique(grey) if value > 0]
    if rule == "ids":
        for value in found:
            yield grey == value, f"= {value}"
    elif len(found) == 1:
        yield grey > 0, "> 0"
    elif (grey > 127).any():
        yield grey > 127, "> 127"
