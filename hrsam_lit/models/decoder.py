"""SAM's prompt encoder and mask decoder at any input size.

The layers and their weights are those of `transformers`; what is added is a rectangular canvas of any
size, and a batch of B images with P prompts each.

B images, P prompts an image, K points a prompt, M masks a prompt, C channels, h w the embedding's grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SamConfig
from transformers.models.sam.modeling_sam import SamMaskDecoder, SamPromptEncoder

from hrsam_lit.errors import UserError

# SAM's two-way transformer normalises with 1e-5; SamConfig's 1e-6 moves NoC by 0.1.
DECODER_NORM_EPS = 1e-5


@dataclass
class Prompts:
    """What a user asks of each of P objects on each of B images, in canvas pixels (x, y).

    points: float (B, P, K, 2) with labels: int (B, P, K), 1 object, 0 background, -1 no point.
    boxes: float (B, P, 4), corners x0 y0 x1 y1.
    logits: float (B, P, 4h, 4w), the low-resolution logits of the previous answer.
    """

    points: Tensor | None = None
    labels: Tensor | None = None
    boxes: Tensor | None = None
    logits: Tensor | None = None


@dataclass
class Masks:
    """M masks a prompt: logits (B, P, M, 4h, 4w) over the whole canvas, predicted IoU scores (B, P, M)."""

    logits: Tensor
    scores: Tensor


class PromptEncoder(SamPromptEncoder):
    """SAM's prompt encoder for a canvas whose long side is any number of pixels.

    Coordinates are divided by the canvas' long side, so that a rectangle is a crop of the padded square
    that SAM was trained on.
    """

    def forward(self, prompts: Prompts, grid: tuple[int, int], side: int) -> tuple[Tensor, Tensor]:
        """Sparse (B, P, tokens, C) and dense (B*P or 1, C, h, w) prompt embeddings."""
        # The parent adds half a pixel and divides by its own input size: meet it there.
        native = self.input_image_size / side
        sparse = []
        if prompts.points is not None:
            assert prompts.labels is not None, "points come with labels"
            points = (prompts.points + 0.5) * native - 0.5
            sparse.append(self._embed_points(points, prompts.labels, pad=prompts.boxes is None))
        if prompts.boxes is not None:
            sparse.append(self._embed_boxes((prompts.boxes + 0.5) * native - 0.5))
        assert sparse, "a prompt has points or a box"
        if prompts.logits is None:
            dense = self.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(1, -1, *grid)
        else:
            dense = self.mask_embed(prompts.logits.flatten(0, 1).unsqueeze(1))
        return torch.cat(sparse, dim=2), dense


class SamDecoder(nn.Module):
    """SAM's prompt encoder and mask decoder (Kirillov et al. 2023, appendix A) at any input size.

    The image's position code is SAM's 64 x 64 one; for another grid it is resized bilinearly to a square of
    the grid's long side and cropped, as HRSAM does it (arXiv 2407.02109).
    """

    def __init__(self, channels: int = 256) -> None:
        super().__init__()
        config = SamConfig(
            prompt_encoder_config={"hidden_size": channels},
            mask_decoder_config={"hidden_size": channels, "layer_norm_eps": DECODER_NORM_EPS},
            vision_config={"num_pos_feats": channels // 2},
        )
        config.mask_decoder_config._attn_implementation = "sdpa"
        self.channels = channels
        self.prompt_encoder = PromptEncoder(config)
        self.mask_decoder = SamMaskDecoder(config.mask_decoder_config)
        # Random Fourier features are SAM's constants.
        self.prompt_encoder.shared_embedding.positional_embedding.requires_grad_(False)

    def image_position(self, grid: tuple[int, int]) -> Tensor:
        """Position code (1, C, h, w) of an embedding grid whose long side spans the canvas' long side."""
        native = self.prompt_encoder.image_embedding_size[0]
        code = self.prompt_encoder.shared_embedding.positional_embedding
        centres = (torch.arange(native, device=code.device, dtype=code.dtype) + 0.5) / native
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        position = self.prompt_encoder.shared_embedding(torch.stack([x, y], dim=-1)).permute(2, 0, 1)[None]
        long = max(grid)
        if long != native:
            position = F.interpolate(position, (long, long), mode="bilinear", align_corners=False)
        return position[..., : grid[0], : grid[1]]

    def forward(
        self, embeddings: Tensor, canvas_hw: tuple[int, int], prompts: Prompts, multimask: bool = False
    ) -> Masks:
        """Masks for every prompt: the single-mask token, or the three of `multimask`.

        embeddings: (B, C, h, w) that cover a canvas of `canvas_hw` pixels.
        """
        count, _, *grid = embeddings.shape
        height, width = grid
        sparse, dense = self.prompt_encoder(prompts, (height, width), max(canvas_hw))
        per_image = sparse.shape[1]
        # One flat batch of B*P prompts: the decoder of transformers would add one dense prompt per image.
        logits, scores = self.mask_decoder(
            image_embeddings=embeddings.repeat_interleave(per_image, 0),
            image_positional_embeddings=self.image_position((height, width)).expand(count * per_image, -1, -1, -1),
            sparse_prompt_embeddings=sparse.flatten(0, 1).unsqueeze(1),
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
        )
        shape = (count, per_image)
        return Masks(logits.squeeze(1).unflatten(0, shape), scores.squeeze(1).unflatten(0, shape))

    def load_sam(self, state: Mapping[str, Tensor], source: str) -> None:
        """Take the prompt encoder and mask decoder out of a `transformers` SAM state dict.

        Raises UserError, naming `source`, where a key is missing, unexpected or of another shape.
        """
        prefixes = ("prompt_encoder.", "mask_decoder.")
        mine = {key: value for key, value in state.items() if key.startswith(prefixes)}
        code = "prompt_encoder.shared_embedding.positional_embedding"
        if code not in mine and "shared_image_embedding.positional_embedding" in state:
            mine[code] = state["shared_image_embedding.positional_embedding"]
        expected = self.state_dict()
        wrong = sorted(
            set(mine) ^ set(expected)
            | {key for key in set(mine) & set(expected) if mine[key].shape != expected[key].shape}
        )
        if wrong:
            shown = ", ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else "")
            raise UserError(f"{source} holds no SAM decoder: {shown} missing, unexpected or of another shape")
        self.load_state_dict(mine)
