"""Read the tars of SA-1B as released: sa_N.jpg beside sa_N.json."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pycocotools import mask as coco

from hrsam_lit.data.record import Instance, Record, Rle, image_facts, mask_runs
from hrsam_lit.data.shards import split_member
from hrsam_lit.errors import UserError


def read_sa1b(source: str | Path, *, min_predicted_iou: float = 0.0, min_stability: float = 0.0) -> Iterator[Record]:
    """Records of one SA-1B tar, or of all tars of a folder; the JPEGs are passed on unchanged.

    Masks that the release scores below `min_predicted_iou` or `min_stability` are left out. Raises
    UserError, naming tar and member, for damaged tars, images without annotation and the reverse.
    """
    source = Path(source)
    tars = sorted(source.glob("*.tar")) if source.is_dir() else [source]
    if not tars or not tars[0].is_file():
        raise UserError(f"{source}: no SA-1B tar there; give a sa_*.tar or a folder of them")
    for path in tars:
        yield from _read_tar(path, min_predicted_iou, min_stability)


def _read_tar(path: Path, min_iou: float, min_stability: float) -> Iterator[Record]:
    waiting: dict[str, dict[str, bytes]] = {}  # the halves whose other half has not come yet
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                key, extension = split_member(str(path), member)
                key = key.rpartition("/")[2]
                file = tar.extractfile(member)
                if extension not in ("jpg", "json") or file is None:
                    continue
                parts = waiting.setdefault(key, {})
                parts[extension] = file.read()
                if len(parts) == 2:
                    yield _record(f"{path}: {key}", key, waiting.pop(key), min_iou, min_stability)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{path}: the tar is damaged ({error}); download it again") from error
    for key, parts in waiting.items():
        missing = "jpg" if "json" in parts else "json"
        raise UserError(f"{path}: {key}.{missing} is missing; the tar is incomplete, download it again")


def _record(name: str, key: str, parts: dict[str, bytes], min_iou: float, min_stability: float) -> Record:
    kind, height, width = image_facts(parts["jpg"], f"{name}.jpg")
    if kind != "JPEG":
        raise UserError(f"{name}.jpg: is {kind}, not JPEG; download the tar again")
    try:
        facts = json.loads(parts["json"])
        said = (int(facts["image"]["height"]), int(facts["image"]["width"]))
        if said != (height, width):
            raise UserError(
                f"{name}.json: says {said[1]} x {said[0]} pixels, {name}.jpg has {width} x "
                f"{height}; download the tar again"
            )
        instances = tuple(
            Instance(
                int(one["id"]), _rle(one["segmentation"], height, width), int(one["area"]), _box(one["bbox"]), "sa1b"
            )
            for one in facts["annotations"]
            if one["predicted_iou"] >= min_iou and one["stability_score"] >= min_stability
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{name}.json: not an SA-1B annotation ({error!r}); download the tar again") from error
    return Record(key, parts["jpg"], "jpg", height, width, instances, source="sa1b")


def _rle(value: Any, height: int, width: int) -> Rle:
    counts = value["counts"]
    if list(value["size"]) != [height, width]:
        raise ValueError(f"mask of size {value['size']}")
    if isinstance(counts, list):
        plain = {"size": [height, width], "counts": counts}
        counts = coco.frPyObjects(plain, height, width)["counts"].decode()
    rle: Rle = {"size": [height, width], "counts": counts}
    try:
        mask_runs(rle)  # damage is found now, not in the middle of a training
    except UserError as error:
        raise ValueError(str(error)) from error
    return rle


def _box(value: Any) -> tuple[float, float, float, float]:
    x, y, width, height = value
    return float(x), float(y), float(width), float(height)
