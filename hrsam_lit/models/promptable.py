"""An encoder and SAM's decoder as one model that answers clicks and boxes.

B images, P prompts an image, C channels, h w the embedding's grid, H W the original image.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from hrsam_lit.geometry import Frame
from hrsam_lit.models.decoder import Masks, Prompts, SamDecoder
from hrsam_lit.models.encoder import ImageEncoder


class Promptable(nn.Module):
    """Encoder (B, 3, S, S) -> (B, 256, h, w), then SAM's decoder for any number of prompts.

    encoder: called with (images uint8 RGB, sizes) and normalising by its own statistics.
    image_size: side S of the square canvas an image is placed on; mode: padded or squashed onto it.
    first_click: the mask a single click gets: the best-scored of SAM's three, or the single-mask token
    that HRSAM trains. Every later prompt gets the single mask.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        decoder: SamDecoder,
        image_size: int = 1024,
        mode: Literal["pad", "squash"] = "pad",
        first_click: Literal["best_of_three", "single"] = "best_of_three",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.image_size = image_size
        self.mode = mode
        self.first_click = first_click

    def frame(self, image_hw: tuple[int, int]) -> Frame:
        """Where an image of this size lies on the model's canvas."""
        return Frame.pad(image_hw, self.image_size) if self.mode == "pad" else Frame.squash(image_hw, self.image_size)

    def encode(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Embeddings (B, C, h, w) of uint8 RGB images (B, 3, S, S) with valid areas `sizes` (B, 2)."""
        embeddings: Tensor = self.encoder(images, sizes)
        return embeddings

    def decode(self, embeddings: Tensor, canvas_hw: tuple[int, int], prompts: Prompts) -> Masks:
        """One mask a prompt by the `first_click` rule: logits (B, P, 1, 4h, 4w), scores (B, P, 1)."""
        clicks = 0 if prompts.points is None else prompts.points.shape[2]
        alone = clicks == 1 and prompts.boxes is None and prompts.logits is None
        if not (alone and self.first_click == "best_of_three"):
            masks: Masks = self.decoder(embeddings, canvas_hw, prompts)
            return masks
        masks = self.decoder(embeddings, canvas_hw, prompts, multimask=True)
        best = masks.scores.argmax(dim=2, keepdim=True)
        rows = best[..., None, None].expand(-1, -1, -1, *masks.logits.shape[-2:])
        return Masks(masks.logits.gather(2, rows), masks.scores.gather(2, best))

    @property
    def device(self) -> torch.device:
        """Where the decoder's weights are."""
        return next(self.decoder.parameters()).device


class Predictor:
    """A promptable model with one image set, in SAM's conventions: encode once, then ask many times."""

    def __init__(self, model: Promptable) -> None:
        self.model = model.eval()
        self.frame: Frame | None = None
        self.embedding: Tensor | None = None

    @torch.inference_mode()
    def set_image(self, image: np.ndarray) -> None:
        """Encode an RGB uint8 (H, W, 3) image."""
        height, width = image.shape[:2]
        self.frame = self.model.frame((height, width))
        pixels = self.frame.place_image(image)[None].to(self.model.device)
        sizes = torch.tensor([self.frame.resized_hw], device=self.model.device)
        self.embedding = self.model.encode(pixels, sizes)

    @torch.inference_mode()
    def predict(
        self,
        points: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        logits: Tensor | None = None,
    ) -> tuple[np.ndarray, float, Tensor]:
        """Mask of one object: bool (H, W), its predicted IoU, and low-resolution logits (4h, 4w).

        points: (K, 2) pixels (x, y) of the original image with labels (K,), 1 object, 0 background;
        box: (4,) x0 y0 x1 y1; logits: what the previous call returned.
        """
        assert self.frame is not None and self.embedding is not None, "set_image comes first"
        device = self.model.device
        prompts = Prompts()
        if points is not None and labels is not None:
            xy = torch.as_tensor(np.asarray(points), dtype=torch.float32, device=device)
            prompts.points = self.frame.points_to_canvas(xy)[None, None]
            prompts.labels = torch.as_tensor(np.asarray(labels), dtype=torch.long, device=device)[None, None]
        if box is not None:
            corners = torch.as_tensor(np.asarray(box), dtype=torch.float32, device=device)
            prompts.boxes = self.frame.boxes_to_canvas(corners)[None, None]
        if logits is not None:
            prompts.logits = logits[None, None]
        masks = self.model.decode(self.embedding, self.frame.canvas_hw, prompts)
        low = masks.logits[0, 0, 0]
        return (self.frame.restore(low) > 0).cpu().numpy(), float(masks.scores[0, 0, 0]), low
