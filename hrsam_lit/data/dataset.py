"""From a record in a shard to tensors: one training sample, one batch, one object to evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from hrsam_lit.data.augment import Augmentation
from hrsam_lit.data.batch import Batch
from hrsam_lit.data.embeddings import EmbeddingSet
from hrsam_lit.data.record import Instance, Record
from hrsam_lit.data.shards import ShardSet
from hrsam_lit.errors import UserError
from hrsam_lit.geometry import Frame


@dataclass
class Sample:
    """One image of a `Batch`, same fields without the first axis; `None` where nobody asked."""

    key: str
    frame: Frame
    image: Tensor
    masks: Tensor | None = None
    present: Tensor | None = None
    ignore: Tensor | None = None
    embedding: Tensor | None = None
    embedding_frame: Frame | None = None


class SampleBuilder:
    """Read, decode, augment and place samples of an image set; the result follows from (seed, epoch, index).

    image_size: side of the canvas in pixels; objects: slots P for masks, 0 for none; min_area (pixels of
    the image) and max_area (share of the image): which objects may be drawn; embeddings: a teacher's, for
    the same keys. Raises UserError for embeddings with an augmentation that changes the view, and for
    masks asked of a set without any.
    """

    def __init__(
        self,
        images: ShardSet,
        *,
        image_size: int,
        objects: int = 0,
        augmentation: Augmentation | None = None,
        embeddings: EmbeddingSet | None = None,
        seed: int = 0,
        min_area: int = 1,
        max_area: float = 1.0,
    ) -> None:
        self.images, self.embeddings = images, embeddings
        self.image_size, self.objects = image_size, objects
        self.augmentation = augmentation or Augmentation()
        self.seed, self.min_area, self.max_area = seed, min_area, max_area
        if objects and not images.objects.any():
            raise UserError(f"{images.folder}: no image has a mask; set objects=0 or give a set with masks")
        self._rows: np.ndarray | None = None
        if embeddings is not None:
            if self.augmentation.changes_view:
                raise UserError(
                    "augment: it moves pixels, but a cached embedding belongs to one view of its "
                    "image; use augment=distill, or the teacher online instead of embeddings"
                )
            self._rows = embeddings.shards.find(images.keys)

    def __call__(self, index: int, epoch: int = 0) -> Sample:
        """Sample `index` as epoch `epoch` sees it."""
        record = self.images.read(index)
        # Objects are drawn first: a record may hold a hundred, and decoding each mask costs.
        chosen = self._choose(record, index, epoch)
        masks = [one.mask() for one in chosen]
        if self.objects:
            masks.append(record.ignore_mask())
        image, masks = self.augmentation(record.pixels(), masks, (self.seed, epoch, index))
        frame = Frame.pad((image.shape[0], image.shape[1]), self.image_size)
        sample = Sample(record.key, frame, frame.place_image(image))
        if self.objects:
            sample.ignore = frame.place_mask(masks.pop())
            sample.masks = torch.zeros(self.objects, *frame.canvas_hw, dtype=torch.bool)
            for slot, mask in enumerate(masks):
                sample.masks[slot] = frame.place_mask(mask)
            sample.present = sample.masks.flatten(1).any(1)  # a small object may vanish on the canvas
        if self.embeddings is not None:
            self._add_embedding(sample, index, (record.height, record.width))
        return sample

    def _choose(self, record: Record, index: int, epoch: int) -> list[Instance]:
        """At most `objects` of the record's instances, at random, in random order."""
        if not self.objects:
            return []
        largest = self.max_area * record.height * record.width
        fit = [one for one in record.instances if self.min_area <= one.area <= largest]
        draw = np.random.default_rng((self.seed, epoch, index, 1))
        return [fit[place] for place in draw.permutation(len(fit))[: self.objects]]

    def _add_embedding(self, sample: Sample, index: int, image_hw: tuple[int, int]) -> None:
        assert self.embeddings is not None
        assert self._rows is not None
        meta = self.embeddings.meta
        values = self.embeddings.read(int(self._rows[index]))
        sample.embedding_frame = self.embeddings.frame_for(image_hw)
        cells = sample.embedding_frame.valid_cells(meta.stride)
        if values.shape != (meta.channels, *cells):
            raise UserError(
                f"{self.embeddings.shards.folder}: embedding of {sample.key!r} has shape "
                f"{values.shape}, its image needs {(meta.channels, *cells)}; cache them again"
            )
        grid = meta.side // meta.stride
        sample.embedding = torch.zeros(meta.channels, grid, grid, dtype=torch.float16)
        sample.embedding[:, : cells[0], : cells[1]] = torch.from_numpy(values)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one builder -> a batch."""

    def stacked(name: str) -> Tensor | None:
        values = [getattr(sample, name) for sample in samples]
        return None if values[0] is None else torch.stack(values)

    frames = [sample.embedding_frame for sample in samples if sample.embedding_frame is not None]
    return Batch(
        keys=[sample.key for sample in samples],
        frames=[sample.frame for sample in samples],
        images=torch.stack([sample.image for sample in samples]),
        sizes=torch.tensor([sample.frame.resized_hw for sample in samples]),
        weight=torch.ones(len(samples)),
        masks=stacked("masks"),
        present=stacked("present"),
        ignore=stacked("ignore"),
        embeddings=stacked("embedding"),
        embedding_frames=frames or None,
    )


@dataclass
class EvaluationItem:
    """One object to segment, at its image's own size.

    image: RGB uint8 (H, W, 3); truth: int8 (H, W), 1 object, 0 background, -1 ignored.
    """

    key: str
    object_id: int
    image: np.ndarray
    truth: np.ndarray


class EvaluationSet:
    """Every object of an image set once; the objects of one image follow one another.

    limit: only the first so many objects. Raises UserError for a set without masks.
    """

    def __init__(self, images: ShardSet, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise UserError(f"limit of {limit} objects to evaluate: at least 1 is needed")
        if not images.objects.any():
            raise UserError(f"{images.folder}: no image has a mask, so nothing can be evaluated")
        self.images = images
        counts = images.objects.astype(np.int64)
        self._image = np.repeat(np.arange(len(images)), counts)[:limit]
        self._object = (np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts))[:limit]
        self._last: tuple[int, Record, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._image)

    def groups(self) -> list[range]:
        """The items of each image, so that ranks can share images without encoding one twice."""
        starts = [*np.flatnonzero(np.diff(self._image, prepend=-1)).tolist(), len(self)]
        return [range(start, stop) for start, stop in pairwise(starts)]

    def __getitem__(self, index: int) -> EvaluationItem:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(self._image[index])
        if self._last is None or self._last[0] != number:
            record = self.images.read(number)
            self._last = (number, record, record.pixels())
        _, record, image = self._last
        one = record.instances[self._object[index]]
        truth = one.mask().astype(np.int8)
        truth[record.ignore_mask()] = -1
        return EvaluationItem(record.key, one.id, image, truth)
