"""Distillation losses on feature maps, in whatever frames teacher and student see the image.

B images, C channels, h w the student's grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hrsam_lit.geometry import Frame


def on_student_grid(
    teacher_map: Tensor,
    teacher_frames: Sequence[Frame],
    student_frames: Sequence[Frame],
    grid: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Resample teacher maps (B, C, ht, wt) onto the student's grid (h, w) by where each cell lies in the image.

    Returns the target (B, C, h, w), zero outside the image, and the valid cells, bool (B, 1, h, w): those
    that hold any of the image. Bilinear; where both canvases agree it is the identity.
    """
    count, channels = teacher_map.shape[:2]
    target = teacher_map.new_zeros(count, channels, *grid)
    valid = torch.zeros(count, 1, *grid, dtype=torch.bool, device=teacher_map.device)
    for index, (source, frame) in enumerate(zip(teacher_frames, student_frames, strict=True)):
        rows, columns = (_cells(frame.resized_hw[axis], frame.canvas_hw[axis], grid[axis]) for axis in (0, 1))
        height, width = (
            _cells(source.resized_hw[axis], source.canvas_hw[axis], teacher_map.shape[2 + axis]) for axis in (0, 1)
        )
        crop = teacher_map[index : index + 1, :, :height, :width]
        same = (source.resized_hw, source.canvas_hw) == (frame.resized_hw, frame.canvas_hw)
        if not (same and grid == tuple(teacher_map.shape[2:])):
            crop = _resample(crop, source, frame, grid, (rows, columns), tuple(teacher_map.shape[2:]))
        target[index, :, :rows, :columns] = crop[0]
        valid[index, :, :rows, :columns] = True
    return target, valid


def _cells(resized: int, canvas: int, cells: int) -> int:
    """How many of `cells` along an axis hold any of the image."""
    return max(1, -(-resized * cells // canvas))


def _resample(
    crop: Tensor, source: Frame, frame: Frame, grid: tuple[int, int], kept: tuple[int, int], full: tuple[int, ...]
) -> Tensor:
    """Sample the teacher's un-padded map at the image positions of the student's kept cells."""
    axes = []
    for axis in (0, 1):
        centres = (torch.arange(kept[axis], device=crop.device, dtype=torch.float32) + 0.5) / grid[axis]
        in_image = centres * (frame.canvas_hw[axis] / frame.resized_hw[axis])
        in_teacher = in_image * (source.resized_hw[axis] / source.canvas_hw[axis]) * full[axis]
        axes.append(in_teacher / crop.shape[2 + axis] * 2 - 1)
    y, x = torch.meshgrid(axes[0], axes[1], indexing="ij")
    where = torch.stack([x, y], dim=-1)[None]
    sampled = F.grid_sample(crop.float(), where, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.to(crop.dtype)


def feature_mse(student: Tensor, target: Tensor, valid: Tensor, channel_std: Tensor | None = None) -> Tensor:
    """Mean squared error of each image, (B,) float32, over valid cells and channels.

    student, target: (B, C, h, w); valid: bool (B, 1, h, w). With `channel_std` (C,) each channel's error
    counts in units of the teacher's spread, so that quiet channels are learnt too.
    """
    difference = student.float() - target.float()
    if channel_std is not None:
        difference = difference / channel_std.float().clamp_min(1e-6).reshape(1, -1, 1, 1)
    squared = difference.square() * valid
    return squared.sum(dim=(1, 2, 3)) / (valid.sum(dim=(1, 2, 3)) * student.shape[1]).clamp_min(1)
