"""A teacher's embeddings of a shard set, cached beside it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import torch
from rich.progress import Progress

from hrsam_lit.data.embeddings import EmbeddingMeta, EmbeddingSet, EmbeddingWriter
from hrsam_lit.data.shards import ShardSet
from hrsam_lit.errors import UserError
from hrsam_lit.models.teachers import Teacher


def embed(
    images: ShardSet,
    teacher: Teacher,
    out: Path,
    *,
    precision: Literal["fp32", "bf16"] = "fp32",
    device: str = "cpu",
    samples_per_shard: int = 100,
) -> EmbeddingSet:
    """Write float16 embeddings of every image of a set into `out`; what is finished there is kept.

    Raises UserError where the disk cannot hold them, or `out` holds another teacher's.
    """
    side, stride = teacher.model.image_size, teacher.stride
    meta = EmbeddingMeta(teacher.name, teacher.weights_sha256, teacher.model.mode, side, stride, teacher.channels)
    writer = EmbeddingWriter(out, images, meta, samples_per_shard)
    missing = sum(len(part) for part in writer.ranges())
    largest = missing * teacher.channels * (side // stride) ** 2 * 2
    free = shutil.disk_usage(out).free
    if largest > free:
        raise UserError(
            f"{out}: up to {largest / 1e9:.1f} GB of embeddings, {free / 1e9:.1f} GB free; use another disk"
        )
    teacher.to(device)
    with Progress(transient=True) as progress, writer:
        bar = progress.add_task(f"embed with {teacher.name}", total=len(images), completed=len(images) - missing)
        for part in writer.ranges():
            for index in part:
                pixels = images.read(index).pixels()
                frame = teacher.frame((pixels.shape[0], pixels.shape[1]))
                canvas = frame.place_image(pixels)[None].to(device)
                neck = teacher.embed(canvas, torch.tensor([frame.resized_hw], device=device), precision)
                writer.add(index, neck[0].cpu().numpy(), frame.image_hw)
                progress.advance(bar)
    return EmbeddingSet.open(out)
