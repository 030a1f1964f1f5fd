"""What training, decoding and saving ask of an image encoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hrsam_lit.errors import UserError
from hrsam_lit.models.normalize import Normalize


class ImageEncoder(nn.Module):
    """An encoder: `forward(images, sizes)` takes uint8 RGB (B, 3, H, W) and returns a map (B, C, h, w).

    stride: input pixels a cell of the map; normalize: its input statistics; config: its constructor's arguments.
    A student also says how its output starts, its layers learn and its weights decay, as far as it can.
    """

    stride: int
    normalize: Normalize
    config: dict[str, Any]

    def init_output(self, mean: Tensor, std: Tensor) -> dict[str, float]:
        """Start the output at channel means and deviations, (C,) each; returns learning-rate factors by name."""
        raise UserError(f"{type(self).__name__} has no output norm: set model.start_at_teacher to false")

    def layer_scales(self, decay: float) -> dict[str, float]:
        """Learning-rate factor of each parameter by name; 1 where absent."""
        raise UserError(f"{type(self).__name__} has no layer-wise learning rates: set optimizer.layer_decay to 1")

    def no_weight_decay(self) -> set[str]:
        """Names of parameters, besides vectors, that weight decay spares."""
        return set()
