"""Input normalisation as a part of each model, so that a batch stays uint8.

B images, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hrsam_lit.errors import UserError

# ImageNet's statistics on the 0..255 scale, R, G, B: SAM's, and so every student's.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class Normalize(nn.Module):
    """RGB 0..255 -> (image - mean) / std in float32, with exact zeros outside each image.

    mean, std: one number a channel on the 0..255 scale. Both are buffers that no checkpoint holds:
    they follow the constructor's arguments, not the weights. bgr: the model sees the channels in the
    order B, G, R while `mean` and `std` keep theirs, as HRSAM's authors fed theirs. Raises UserError
    where mean and std do not fit each other.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = PIXEL_MEAN, std: Sequence[float] = PIXEL_STD, bgr: bool = False) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise UserError(
                f"pixel_mean {tuple(mean)} and pixel_std {tuple(std)}: give one number a channel, std above 0"
            )
        self.bgr = bgr
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Images uint8 or float (B, 3, H, W) in 0..255 -> float32 (B, 3, H, W).

        sizes: int64 (B, 2), valid height and width at the top left; `None` means every pixel is
        valid. Padding is zero after normalisation, as SAM pads, whatever the batch holds there.
        """
        assert images.ndim == 4, images.shape
        assert images.shape[1] == len(self.mean), images.shape
        if self.bgr:
            images = images.flip(1)
        normal = (images.float() - self.mean) / self.std
        if sizes is None:
            return normal
        assert sizes.shape == (len(images), 2), (sizes.shape, images.shape)
        rows = torch.arange(images.shape[2], device=images.device) < sizes[:, 0, None]
        columns = torch.arange(images.shape[3], device=images.device) < sizes[:, 1, None]
        inside = rows[:, None, :, None] & columns[:, None, None, :]
        return normal.masked_fill_(~inside, 0.0)
