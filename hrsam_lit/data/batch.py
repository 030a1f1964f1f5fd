"""The one batch every stage takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from hrsam_lit.geometry import Frame


@dataclass
class Batch:
    """B images on one canvas size, with what a stage needs beside them; `None` where it needs nothing.

    keys: B sample names; frames: B frames of the images on the canvas.
    images: uint8 (B, 3, H, W), RGB, zero outside each image; models normalise, batches do not.
    sizes: int64 (B, 2), height and width of the un-padded area.
    weight: float32 (B,), 0 for a sample that stands in for an unreadable one.
    masks: bool (B, P, H, W) and present: bool (B, P), which of the P slots hold an object.
    ignore: bool (B, H, W), pixels that count neither as object nor as background.
    embeddings: float16 or float32 (B, C, h, w) on the teacher's grid, zero outside each image;
    embedding_frames: B frames of the images on the teacher's canvas.
    """

    keys: list[str]
    frames: list[Frame]
    images: Tensor
    sizes: Tensor
    weight: Tensor
    masks: Tensor | None = None
    present: Tensor | None = None
    ignore: Tensor | None = None
    embeddings: Tensor | None = None
    embedding_frames: list[Frame] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with every tensor on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in pinned memory (called by the DataLoader's pinning thread)."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **changed)
