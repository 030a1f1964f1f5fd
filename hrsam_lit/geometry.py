"""Image frames: how an image lies on a model's canvas, and the way back.

H W: the image as its file has it. h w: any other grid. Points are (x, y) in pixels of the original
image; a canvas holds the resized image at its top left, padding is at the bottom and right.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """Where one image lies on a canvas.

    image_hw: size of the original image; resized_hw: its size on the canvas; canvas_hw: the canvas.
    """

    image_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    canvas_hw: tuple[int, int]

    @classmethod
    def pad(cls, image_hw: tuple[int, int], side: int, multiple: int | None = None) -> Frame:
        """Long side resized to `side`, padded to a square, or only up to a `multiple` of pixels."""
        scale = side / max(image_hw)
        h, w = (max(1, int(length * scale + 0.5)) for length in image_hw)
        if multiple is None:
            return cls(image_hw, (h, w), (side, side))
        return cls(image_hw, (h, w), (-(-h // multiple) * multiple, -(-w // multiple) * multiple))

    @classmethod
    def squash(cls, image_hw: tuple[int, int], side: int) -> Frame:
        """Stretched to a `side` x `side` square, as SAM 2 takes its input."""
        return cls(image_hw, (side, side), (side, side))

    @property
    def scale_xy(self) -> tuple[float, float]:
        """Canvas pixels per image pixel, (x, y)."""
        return self.resized_hw[1] / self.image_hw[1], self.resized_hw[0] / self.image_hw[0]

    def valid_cells(self, stride: int) -> tuple[int, int]:
        """Rows and columns of a stride-`stride` map that hold any image, not only padding."""
        return -(-self.resized_hw[0] // stride), -(-self.resized_hw[1] // stride)

    def points_to_canvas(self, points: Tensor) -> Tensor:
        """(..., 2) points (x, y) of the image -> the canvas (SAM's rule: multiply, no half pixel)."""
        return points * torch.tensor(self.scale_xy, dtype=points.dtype, device=points.device)

    def points_to_image(self, points: Tensor) -> Tensor:
        """Inverse of `points_to_canvas`."""
        return points / torch.tensor(self.scale_xy, dtype=points.dtype, device=points.device)

    def boxes_to_canvas(self, boxes: Tensor) -> Tensor:
        """(..., 4) boxes (x0, y0, x1, y1) of the image -> the canvas."""
        return self.points_to_canvas(boxes.unflatten(-1, (2, 2))).flatten(-2)

    def place_image(self, image: np.ndarray) -> Tensor:
        """RGB uint8 (H, W, 3) -> uint8 (3, canvas h, canvas w), bilinear, antialiased when shrinking."""
        assert (image.shape[:2], image.dtype) == (self.image_hw, np.uint8), (image.shape, image.dtype)
        canvas = torch.zeros(3, *self.canvas_hw, dtype=torch.uint8)
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        if self.resized_hw != self.image_hw:
            pixels = F.interpolate(pixels[None], self.resized_hw, mode="bilinear", antialias=True)[0]
        canvas[:, : self.resized_hw[0], : self.resized_hw[1]] = pixels
        return canvas

    def place_mask(self, mask: np.ndarray) -> Tensor:
        """Boolean (H, W) -> boolean (canvas h, canvas w), nearest; padding is False."""
        assert (mask.shape, mask.dtype) == (self.image_hw, bool), (mask.shape, mask.dtype)
        h, w = self.resized_hw
        resized = cv2.resize(mask.astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST_EXACT)
        canvas = torch.zeros(self.canvas_hw, dtype=torch.bool)
        canvas[:h, :w] = torch.from_numpy(resized.astype(bool))
        return canvas

    def restore(self, logits: Tensor) -> Tensor:
        """Logits (..., h, w) that cover the whole canvas -> (..., H, W) on the image, bilinear."""
        flat = logits.reshape(-1, 1, *logits.shape[-2:]).float()
        flat = F.interpolate(flat, self.canvas_hw, mode="bilinear", align_corners=False)
        flat = flat[..., : self.resized_hw[0], : self.resized_hw[1]]
        if self.resized_hw != self.image_hw:
            flat = F.interpolate(flat, self.image_hw, mode="bilinear", align_corners=False)
        return flat.reshape(*logits.shape[:-2], *self.image_hw)
