"""Shard sets as a Lightning data module."""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from hrsam_lit.data.augment import Augmentation
from hrsam_lit.data.dataset import EvaluationSet, SampleBuilder
from hrsam_lit.data.embeddings import EmbeddingSet
from hrsam_lit.data.loader import BatchLoader, ObjectLoader, TrainLoader
from hrsam_lit.data.shards import ShardSet
from hrsam_lit.errors import UserError


class ShardDataModule(LightningDataModule):
    """Training, validation and test sets from prepared shards.

    train, val, test: folders of image sets; embeddings, val_embeddings: a teacher's cached embeddings of
    the training and the validation images. image_size: side of the canvas in pixels; batch_size: images a
    device and step; objects: mask slots an image in training, 0 for none; augment: `distill` changes
    colours only, `finetune` also flips and cannot go with embeddings. min_area (pixels) and max_area (share
    of the image) bound the objects drawn in training. val_kind: `embeddings` yields batches in order for
    the comparison with a teacher, cached in val_embeddings or run online; `objects` yields one object at a
    time at its image's own size. val_limit: the first so many images or objects.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        test: str | None = None,
        *,
        embeddings: str | None = None,
        val_embeddings: str | None = None,
        image_size: int = 1024,
        batch_size: int = 1,
        objects: int = 1,
        augment: Literal["none", "distill", "finetune"] = "distill",
        min_area: int = 1,
        max_area: float = 1.0,
        workers: int = 2,
        seed: int = 0,
        val_kind: Literal["embeddings", "objects"] = "objects",
        val_limit: int | None = None,
    ) -> None:
        super().__init__()
        limits = {
            "image_size": (image_size, 16),
            "batch_size": (batch_size, 1),
            "objects": (objects, 0),
            "workers": (workers, 0),
            "seed": (seed, 0),
            "min_area": (min_area, 1),
            "val_limit": (1 if val_limit is None else val_limit, 1),
        }
        for name, (value, least) in limits.items():
            if value < least:
                raise UserError(f"data.{name}={value}: at least {least} is needed")
        if val_embeddings is not None and (val is None or val_kind != "embeddings"):
            raise UserError("data.val_embeddings is only used with data.val and data.val_kind=embeddings")
        self.train_folder, self.val_folder, self.test_folder = train, val, test
        self.embeddings_folder, self.val_embeddings_folder = embeddings, val_embeddings
        self.image_size, self.batch_size, self.objects = image_size, batch_size, objects
        self.augment = augment
        self.min_area, self.max_area, self.workers, self.seed = min_area, max_area, workers, seed
        self.val_kind, self.val_limit = val_kind, val_limit
        if val is None:  # where the hook is overridden, Lightning validates, and warns of an empty loader
            self.val_dataloader = super().val_dataloader  # type: ignore[method-assign]
        self._statistics: tuple[Tensor, Tensor] | None = None
        self.pin_memory = torch.cuda.is_available()

    @property
    def _ranks(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def embedding_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel of the training embeddings, float32 (C,)."""
        if self._statistics is None:
            embeddings = _embeddings(self.embeddings_folder)
            if embeddings is None:
                raise UserError("data.embeddings is not set, so a teacher's statistics are not known")
            self._statistics = (torch.from_numpy(embeddings.mean), torch.from_numpy(embeddings.std))
        return self._statistics

    def train_dataloader(self) -> TrainLoader:
        """Training batches of this rank, from the trainer's epoch on."""
        rank, world_size = self._ranks
        builder = SampleBuilder(
            ShardSet.open(self.train_folder),
            image_size=self.image_size,
            objects=self.objects,
            augmentation=Augmentation(self.augment),
            seed=self.seed,
            min_area=self.min_area,
            max_area=self.max_area,
            embeddings=_embeddings(self.embeddings_folder),
        )
        return TrainLoader(
            builder,
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            workers=self.workers,
            pin_memory=self.pin_memory,
            epoch=0 if self.trainer is None else self.trainer.current_epoch,
            overfit=getattr(self.trainer, "overfit_batches", 0) > 0,
        )

    def val_dataloader(self) -> BatchLoader | ObjectLoader:
        """This rank's part of the validation set, of the kind asked for."""
        assert self.val_folder is not None
        rank, world_size = self._ranks
        images = ShardSet.open(self.val_folder)
        if self.val_kind == "objects":
            return ObjectLoader(
                EvaluationSet(images, self.val_limit), rank=rank, world_size=world_size, workers=self.workers
            )
        builder = SampleBuilder(images, image_size=self.image_size, embeddings=_embeddings(self.val_embeddings_folder))
        return BatchLoader(
            builder,
            batch_size=self.batch_size,
            rank=rank,
            world_size=world_size,
            workers=self.workers,
            limit=self.val_limit,
            pin_memory=self.pin_memory,
        )

    def test_dataloader(self) -> ObjectLoader:
        """This rank's objects of the test set; raises UserError without one."""
        if self.test_folder is None:
            raise UserError("data.test is not set: give the folder of the test set")
        rank, world_size = self._ranks
        return ObjectLoader(
            EvaluationSet(ShardSet.open(self.test_folder)), rank=rank, world_size=world_size, workers=self.workers
        )


def _embeddings(folder: str | None) -> EmbeddingSet | None:
    return None if folder is None else EmbeddingSet.open(folder)
