"""A teacher's embeddings beside an image set: the same keys, one fp16 map a sample, without its padding."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from hrsam_lit.data.shards import ShardSet, ShardWriter, write_index
from hrsam_lit.errors import UserError
from hrsam_lit.files import write_json
from hrsam_lit.geometry import Frame

_META = "embeddings.json"  # in an unfinished folder: what is being written


@dataclass(frozen=True)
class EmbeddingMeta:
    """What was computed: by which weights, from which view of the image.

    mode: the image padded to a square or squashed to it; side: that square in pixels; stride: pixels
    of the square per cell; channels: of the map.
    """

    teacher: str
    weights_sha256: str
    mode: Literal["pad", "squash"]
    side: int
    stride: int
    channels: int
    dtype: Literal["float16"] = "float16"

    def frame_for(self, image_hw: tuple[int, int]) -> Frame:
        """How an image lies on the teacher's square."""
        return Frame.pad(image_hw, self.side) if self.mode == "pad" else Frame.squash(image_hw, self.side)

    def __str__(self) -> str:
        return f"{self.teacher} ({self.weights_sha256[:12]}, {self.mode} {self.side})"


class EmbeddingWriter:
    """Write the embeddings of an image set shard by shard; finished shards survive an interruption.

    Ask `ranges()` which samples are missing, `add` them in that order, leave the `with` block; the index
    is written when all are there. Raises UserError where the folder holds other embeddings.
    """

    def __init__(
        self, folder: str | Path, images: ShardSet, meta: EmbeddingMeta, samples_per_shard: int = 1000
    ) -> None:
        self.folder, self.images, self.meta = Path(folder), images, meta
        self._writer = ShardWriter(folder, samples_per_shard)
        about = {
            "meta": asdict(meta),
            "samples": len(images),
            "samples_per_shard": samples_per_shard,
            "first": images.key(0),
            "last": images.key(len(images) - 1),
        }
        found = self._found()
        if found is None:
            write_json(self.folder / _META, about)
        elif found != about:
            raise UserError(
                f"{self.folder}: holds embeddings of {_described(found)}, not of "
                f"{_described(about)}; give another folder or remove it"
            )
        self._reset()
        self._next = 0

    def _found(self) -> Any:
        path = self.folder / _META
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except ValueError as error:
            raise UserError(f"{path}: damaged ({error}); remove the folder") from error

    def _reset(self) -> None:
        self._sums = np.zeros((2, self.meta.channels))
        self._cells = 0

    def _stats(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:06d}.json"

    def ranges(self) -> Iterator[range]:
        """Samples of each shard that is not finished, in order."""
        step = self._writer.samples_per_shard
        for shard, start in enumerate(range(0, len(self.images), step)):
            if not (self.folder / ShardWriter.name(shard)).is_file():
                self._writer.shard, self._next = shard, start
                yield range(start, min(start + step, len(self.images)))

    def __enter__(self) -> EmbeddingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.discard()  # finished shards are closed already
        if kind is None and not any(True for _ in self.ranges()):
            self._finish()

    def add(self, index: int, embedding: np.ndarray, image_hw: tuple[int, int]) -> None:
        """Append the map (C, h, w) of sample `index` over the teacher's square; padding is cut off here."""
        assert index == self._next, f"sample {index} out of order, {self._next} is due"
        grid = self.meta.side // self.meta.stride
        assert embedding.shape == (self.meta.channels, grid, grid), embedding.shape
        rows, columns = self.meta.frame_for(image_hw).valid_cells(self.meta.stride)
        with np.errstate(over="ignore"):  # what does not fit is reported below
            values = np.ascontiguousarray(embedding[:, :rows, :columns]).astype(np.float16)
        key = self.images.key(index)
        if not np.isfinite(values).all():
            raise UserError(
                f"embedding of {key!r} by {self.meta.teacher} has values that float16 cannot "
                "hold; run the teacher in float32 or leave the image out"
            )
        wide = values.astype(np.float64)
        self._sums += np.stack((wide.sum((1, 2)), (wide**2).sum((1, 2))))
        self._cells += rows * columns
        file = io.BytesIO()
        np.save(file, values)
        self._next += 1
        if self._next % self._writer.samples_per_shard == 0 or self._next == len(self.images):
            # Before the shard takes its name, so that a finished shard always has its sums.
            write_json(self._stats(self._writer.shard), {"cells": self._cells, "sums": self._sums.tolist()})
            self._reset()
        self._writer.write(key, {"npy": file.getvalue()})
        if self._next == len(self.images):
            self._writer.finish_shard()

    def _finish(self) -> None:
        shards = -(-len(self.images) // self._writer.samples_per_shard)
        parts = [json.loads(self._stats(shard).read_text(encoding="utf-8")) for shard in range(shards)]
        cells = sum(part["cells"] for part in parts)
        mean, square = np.sum([part["sums"] for part in parts], axis=0) / cells
        std = np.sqrt((square - mean**2).clip(0))
        facts = {**asdict(self.meta), "mean": mean.tolist(), "std": std.tolist()}
        write_index(
            self.folder,
            kind="embeddings",
            provenance=self.images.info["provenance"],
            licence=self.images.info["licence"],
            facts={"embeddings": facts},
        )


def _described(about: dict[str, Any]) -> str:
    meta = EmbeddingMeta(**about["meta"])
    return (
        f"{meta}, {about['samples']} samples from {about['first']!r} to {about['last']!r}, "
        f"{about['samples_per_shard']} a shard"
    )


class EmbeddingSet:
    """The embeddings of one teacher for one image set.

    meta: what was computed; mean, std: float32 (C,) over all cells that hold image.
    """

    def __init__(self, shards: ShardSet, meta: EmbeddingMeta, mean: np.ndarray, std: np.ndarray) -> None:
        self.shards, self.meta, self.mean, self.std = shards, meta, mean, std

    @classmethod
    def open(cls, folder: str | Path) -> EmbeddingSet:
        """Open a finished set; raises UserError where there is none."""
        shards = ShardSet.open(folder, kind="embeddings")
        facts = dict(shards.info["embeddings"])
        mean, std = (np.array(facts.pop(name), np.float32) for name in ("mean", "std"))
        return cls(shards, EmbeddingMeta(**facts), mean, std)

    def __len__(self) -> int:
        return len(self.shards)

    def require(self, *, weights_sha256: str | None = None, mode: str | None = None, side: int | None = None) -> None:
        """Raise UserError, naming both, where these are not embeddings of the teacher or view asked for."""
        for name, asked in (("weights_sha256", weights_sha256), ("mode", mode), ("side", side)):
            found = getattr(self.meta, name)
            if asked is not None and asked != found:
                raise UserError(
                    f"{self.shards.folder}: embeddings with {name}={found} by "
                    f"{self.meta.teacher}, but {name}={asked} is asked for; cache them again "
                    "or change the teacher"
                )

    def frame_for(self, image_hw: tuple[int, int]) -> Frame:
        """How an image lies on the teacher's square."""
        return self.meta.frame_for(image_hw)

    def read(self, sample: int | str) -> np.ndarray:
        """float16 (C, h, w) of one sample, by row or key, only the cells that hold image."""
        index = sample if isinstance(sample, int) else int(self.shards.find([sample])[0])
        return np.load(io.BytesIO(self.shards.members(index)["npy"]), allow_pickle=False)
