"""The order of training samples, by arithmetic: any batch of any epoch without the ones before it.

The shards are permuted and laid end to end, the row is cut into blocks, the blocks are permuted, and each
pool of neighbouring blocks is permuted sample by sample. So a batch mixes samples of many places, while a
pool touches only as many places as it has blocks. Everything follows from (seed, epoch).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


class GlobalOrder:
    """Every sample once an epoch, in an order that depends on nothing but the sizes, the seed and the epoch.

    shard_sizes: samples of each shard; block: samples of a block; pool: blocks mixed with one another.
    """

    def __init__(
        self, shard_sizes: Sequence[int] | np.ndarray, seed: int, epoch: int, block: int = 64, pool: int = 64
    ) -> None:
        sizes = np.asarray(shard_sizes, np.int64)
        assert sizes.sum() > 0, "an order needs samples"
        assert min(seed, epoch, block - 1, pool - 1) >= 0, (seed, epoch, block, pool)
        self.seed, self.epoch, self.block, self.pool = seed, epoch, block, pool
        self.samples = int(sizes.sum())
        shards = self._permutation(len(sizes), 0)
        self._starts = (np.cumsum(sizes) - sizes)[shards]  # first sample of each shard, in permuted order
        self._ends = np.cumsum(sizes[shards])
        blocks = -(-self.samples // block)
        self._blocks = self._permutation(blocks, 1)
        self._short = blocks * block - self.samples  # samples that the last block lacks
        self._short_ends = int(np.flatnonzero(self._blocks == blocks - 1)[0] + 1) * block - self._short
        self._pools: dict[int, np.ndarray] = {}

    def _permutation(self, length: int, *purpose: int) -> np.ndarray:
        return np.random.default_rng((self.seed, self.epoch, *purpose)).permutation(length)

    def __len__(self) -> int:
        return self.samples

    def indices(self, start: int, stop: int) -> np.ndarray:
        """Samples at positions [start, stop), int64; past the end the epoch repeats from its start."""
        assert 0 <= start < stop, (start, stop)
        places = np.concatenate(list(self._mixed(start, stop)))
        # The short block holds fewer samples: behind it, places are shifted so that all blocks look full.
        full = np.where(places < self._short_ends, places, places + self._short)
        row = self._blocks[full // self.block] * self.block + full % self.block
        shard = np.searchsorted(self._ends, row, "right")
        before = np.where(shard > 0, self._ends[shard - 1], 0)
        return self._starts[shard] + row - before

    def _mixed(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """The places start .. stop - 1, each exchanged for another of its pool."""
        length = self.block * self.pool
        while start < stop:
            number, first = divmod(start % self.samples, length)
            pool = self._pool(number)
            taken = pool[first : first + stop - start]
            yield number * length + taken
            start += len(taken)

    def _pool(self, number: int) -> np.ndarray:
        if number not in self._pools:
            while len(self._pools) >= 2:  # batches walk forward: the pool in use and its neighbour
                del self._pools[next(iter(self._pools))]
            length = self.block * self.pool
            self._pools[number] = self._permutation(min(length, self.samples - number * length), 2, number)
        return self._pools[number]

    def batches(self, size: int) -> int:
        """Global batches of an epoch."""
        return -(-self.samples // size)

    def repeats(self, size: int) -> int:
        """Samples of the last global batch that came before in the epoch."""
        return self.batches(size) * size - self.samples

    def batch(self, number: int, size: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """Samples of global batch `number` (of `size`) that one rank takes, int64 (size / world_size,)."""
        assert size % world_size == 0, (size, world_size)
        assert 0 <= rank < world_size, (rank, world_size)
        share = size // world_size
        start = number * size + rank * share
        return self.indices(start, start + share)
