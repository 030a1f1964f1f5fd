"""Loaders whose batches depend neither on workers nor on ranks, and that resume at the very next batch."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any, Generic, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from hrsam_lit.data.batch import Batch
from hrsam_lit.data.dataset import EvaluationItem, EvaluationSet, SampleBuilder, collate
from hrsam_lit.data.order import GlobalOrder
from hrsam_lit.errors import UserError

T = TypeVar("T")


@dataclass
class _Mistake:
    """A UserError on its way out of a worker: raised there, torch would bury it in a traceback."""

    message: str


class _Stream(IterableDataset, Generic[T]):
    """build(start), ..., build(stop - 1); worker w of W builds every W-th, which torch hands out in turn."""

    def __init__(self, build: Callable[[int], T], start: int, stop: int) -> None:
        self.build, self.start, self.stop = build, start, stop

    def __iter__(self) -> Iterator[T | _Mistake]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number in range(self.start + first, self.stop, step):
            try:
                built: T | _Mistake = self.build(number)
            except UserError as error:
                built = _Mistake(str(error))
            yield built


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(1)  # workers are the parallelism


def _same(value: T) -> T:
    return value


def _clean_processes() -> BaseContext:
    """Processes that inherit no threads: OpenCV, torch and W&B hold locks that a plain fork would copy, held."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hrsam_lit.data.loader"])
    return context


def _load(build: Callable[[int], T], start: int, stop: int, workers: int, pin_memory: bool) -> Iterator[T]:
    loader = DataLoader(
        _Stream(build, start, stop),
        batch_size=None,
        collate_fn=_same,
        num_workers=workers,
        worker_init_fn=_start_worker,
        pin_memory=pin_memory,
        multiprocessing_context=_clean_processes() if workers else None,
        generator=torch.Generator(),
    )  # or it would draw from the model's random stream
    for item in loader:
        if isinstance(item, _Mistake):
            raise UserError(item.message)
        yield item


def check_ranks(batch_size: int, workers: int, rank: int, world_size: int) -> None:
    """Raise UserError for sizes no loader can serve."""
    if batch_size < 1 or workers < 0:
        raise UserError(f"batch_size={batch_size}, workers={workers}: at least 1 and 0 are needed")
    assert 0 <= rank < world_size, (rank, world_size)


class TrainLoader:
    """Endless epochs of training batches: iterate once an epoch.

    batch_size: samples a rank; a global batch has batch_size * world_size samples and depends only on
    (data, seed, epoch, its number). Iteration goes on where the state says: after `load_state_dict`, or
    after an epoch that was left early, the next batch is the first one not handed out yet. overfit: every
    iteration starts again with the first batch of epoch 0.
    """

    def __init__(
        self,
        builder: SampleBuilder,
        *,
        batch_size: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        block: int = 64,
        epoch: int = 0,
        overfit: bool = False,
        pin_memory: bool = False,
    ) -> None:
        check_ranks(batch_size, workers, rank, world_size)
        self.builder, self.batch_size, self.seed = builder, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.workers, self.block, self.pin_memory = workers, block, pin_memory
        self.overfit = overfit
        self._epoch, self._batch = epoch, 0

    def __len__(self) -> int:
        return math.ceil(len(self.builder.images) / (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[Batch]:
        if self.overfit:
            self._epoch, self._batch = 0, 0
        elif self._batch >= len(self):
            self._epoch, self._batch = self._epoch + 1, 0
        order = GlobalOrder(self.builder.images.shard_sizes, self.seed, self._epoch, self.block)
        build = _TrainBatch(self.builder, order, self.batch_size, self.rank, self.world_size)
        for batch in _load(build, self._batch, len(self), self.workers, self.pin_memory):
            self._batch += 1  # before the batch is used: a checkpoint taken during its step counts it
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and how many of its batches were handed out."""
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue behind the batches that `state` counts; raises UserError where the epoch has fewer."""
        if not 0 <= state["batch"] <= len(self):
            raise UserError(
                f"the checkpoint stands at batch {state['batch']} of an epoch that now has "
                f"{len(self)}: resume with the same data, batch_size and number of devices"
            )
        self._epoch, self._batch = int(state["epoch"]), int(state["batch"])


@dataclass
class _TrainBatch:
    builder: SampleBuilder
    order: GlobalOrder
    batch_size: int
    rank: int
    world_size: int

    def __call__(self, number: int) -> Batch:
        samples = self.order.batch(number, self.batch_size * self.world_size, self.rank, self.world_size)
        return collate([self.builder(int(index), self.order.epoch) for index in samples])


class BatchLoader:
    """The first `limit` samples of a builder in order, each once: validation by batches.

    Every rank has as many batches; a sample that only fills a place has weight 0.
    """

    def __init__(
        self,
        builder: SampleBuilder,
        *,
        batch_size: int = 1,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        limit: int | None = None,
        pin_memory: bool = False,
    ) -> None:
        check_ranks(batch_size, workers, rank, world_size)
        self.builder, self.batch_size, self.rank, self.world_size = builder, batch_size, rank, world_size
        self.workers, self.pin_memory = workers, pin_memory
        self.samples = len(builder.images) if limit is None else min(limit, len(builder.images))

    def __len__(self) -> int:
        return math.ceil(self.samples / (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[Batch]:
        return _load(self._build, 0, len(self), self.workers, self.pin_memory)

    def _build(self, number: int) -> Batch:
        start = (number * self.world_size + self.rank) * self.batch_size
        real = [index for index in range(start, start + self.batch_size) if index < self.samples]
        samples = [self.builder(index) for index in real or [0]]
        batch = collate(samples)
        if not real:
            batch.weight.zero_()
        return batch


class ObjectLoader:
    """The items of an evaluation set, each once; a rank takes whole images.

    Raises UserError where some rank would get none.
    """

    def __init__(self, items: EvaluationSet, *, rank: int = 0, world_size: int = 1, workers: int = 0) -> None:
        check_ranks(1, workers, rank, world_size)
        groups = items.groups()
        if len(groups) < world_size:
            raise UserError(
                f"{items.images.folder}: {len(groups)} images to evaluate on {world_size} devices; use fewer devices"
            )
        self.items, self.workers = items, workers
        self.numbers = [number for group in groups[rank::world_size] for number in group]

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[EvaluationItem]:
        return _load(self._build, 0, len(self), self.workers, False)

    def _build(self, number: int) -> EvaluationItem:
        return self.items[self.numbers[number]]
