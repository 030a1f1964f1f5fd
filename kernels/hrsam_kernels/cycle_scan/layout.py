"""How the chunked scan cuts its work, and the memory it reuses.

B images, L steps, C channels, N states; K chunks of T steps an image, M = B * K chunks in all, m of them in
a range. Chunked tensors are time-major, (T, M, ...), so that step t of every chunk is one slab.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Numbers in one (T, m, N, C) buffer and in one step's (m, N, C) slab. On a CPU three buffers stay inside the
# third-level cache and a slab inside the second-level one; elsewhere few, large launches are better.
BUFFER, SLAB = 1 << 20, 3 << 14
BUFFER_ELSEWHERE = 1 << 28
KEPT = 1 << 25  # bytes of a buffer that a thread keeps between calls


@dataclass(frozen=True)
class Plan:
    """Cuts of one call: chunks of time, and ranges of chunks that are worked together."""

    images: int
    length: int
    chunks: int
    """K, chunks of an image."""
    steps: int
    """T, steps of a chunk; the last chunk of an image is filled up with steps that change nothing."""
    ranges: tuple[slice, ...]
    """Of the M chunks; a range's buffers bound the memory, and one range saves a recomputation."""

    @classmethod
    def make(cls, images: int, length: int, channels: int, states: int, device: torch.device) -> Plan:
        """Cuts for a (B, L, C) sequence with N states."""
        if device.type != "cpu":
            steps = -(-length // math.isqrt(2 * length))
            rows = max(1, BUFFER_ELSEWHERE // (steps * states * channels))
        else:
            rows = max(1, round(SLAB / (states * channels)))
            steps = round(BUFFER / (rows * states * channels))
            steps = min(length, max(8, min(steps, math.isqrt(length))))
        chunks = -(-length // steps)
        return cls(images, length, chunks, steps, _cut(images * chunks, rows))

    def split(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, L, C) -> (T, M, C), zero after the sequence's end: a zero step leaves the state as it is."""
        x = x.to(dtype)
        if self.chunks * self.steps > self.length:
            x = F.pad(x, (0, 0, 0, self.chunks * self.steps - self.length))
        x = x.unflatten(1, (self.chunks, self.steps)).permute(2, 0, 1, 3)
        return x.reshape(self.steps, self.images * self.chunks, -1).contiguous()

    def join(self, x: Tensor) -> Tensor:
        """(T, M, C) -> (B, L, C)."""
        return self.by_image(x, 1).permute(1, 2, 0, 3).flatten(1, 2)[:, : self.length]

    def by_image(self, x: Tensor, dim: int = 0) -> Tensor:
        """Split the dimension of the M chunks into (B, K)."""
        return x.unflatten(dim, (self.images, self.chunks))


def _cut(total: int, most: int) -> tuple[slice, ...]:
    """Even slices of at most `most`."""
    parts = -(-total // most)
    size = -(-total // parts)
    return tuple(slice(first, min(total, first + size)) for first in range(0, total, size))


class Scratch(threading.local):
    """Buffers a thread reuses: on a CPU, touching fresh pages costs more than the scan itself."""

    def __init__(self) -> None:
        self.kept: dict[int, Tensor] = {}

    def take(self, slot: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """An uninitialised tensor that holds until the same slot is taken again."""
        numbers = math.prod(shape)
        if type(like) is not Tensor or like.device.type != "cpu" or numbers * like.element_size() > KEPT:
            return like.new_empty(shape)
        memory = self.kept.get(slot)
        if memory is None or memory.dtype != like.dtype or memory.numel() < numbers:
            # Never an inference tensor: the next call may be outside inference mode and write to it.
            with torch.inference_mode(False):
                memory = self.kept[slot] = torch.empty(numbers, dtype=like.dtype, device=like.device)
        return memory[:numbers].view(shape)
