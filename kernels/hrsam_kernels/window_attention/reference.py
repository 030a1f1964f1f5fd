"""Window attention with padded keys as it is defined: a loop over windows of an explicitly padded map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

THETA = 10000.0


def _rotate(x: Tensor, row: int, column: int, scale: float) -> Tensor:
    """Turn each pair (a, b) of a head (H, d) by minus its angle at a position of the padded map."""
    pairs = x.shape[-1] // 4
    frequency = THETA ** (-2 * torch.arange(pairs, dtype=x.dtype, device=x.device) / (2 * pairs))
    angle = torch.cat((row * scale * frequency, column * scale * frequency))
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = (a * angle.cos() + b * angle.sin(), b * angle.cos() - a * angle.sin())
    return torch.stack(turned, -1).flatten(-2)


def window_attention_reference(
    qkv: Tensor,
    pad: Tensor,
    *,
    maps: Sequence[tuple[int, int]],
    heads: int,
    window: int,
    shifts: Sequence[int],
    rotary_scale: float = 0.5,
) -> Tensor:
    """Every window by itself, padding written out, rotary positions counted on the whole padded map.

    Arguments as in `hrsam_kernels.window_attention.window_attention`; computed in the inputs' dtype.
    Slow: it exists for tests.
    """
    width = pad.shape[0] // 2
    pad_key, pad_value = pad.view(2, heads, width // heads)
    images = []
    for image in qkv.unflatten(-1, (3, heads, -1)):
        rows: list[Tensor] = []
        first = 0
        for (h, w), shift in zip(maps, shifts, strict=True):
            lead = (window - shift) % window
            out: dict[int, Tensor] = {}
            for top in range(0, h + lead, window):
                for left in range(0, w + lead, window):
                    tokens, queries, keys, values = [], [], [], []
                    for row in range(top, top + window):
                        for column in range(left, left + window):
                            y, x = row - lead, column - lead
                            real = 0 <= y < h and 0 <= x < w
                            q, k, v = image[first + y * w + x] if real else (None, pad_key, pad_value)
                            if q is not None:
                                tokens.append(y * w + x)
                                queries.append(_rotate(q, row, column, rotary_scale))
                            keys.append(_rotate(k, row, column, rotary_scale))
                            values.append(v)
                    scores = torch.einsum("qhd,khd->hqk", torch.stack(queries), torch.stack(keys))
                    weights = (scores * (width // heads) ** -0.5).softmax(-1)
                    mixed = torch.einsum("hqk,khd->qhd", weights, torch.stack(values))
                    out.update(zip(tokens, mixed.flatten(1), strict=True))
            rows += [out[token] for token in range(h * w)]
            first += h * w
        images.append(torch.stack(rows))
    return torch.stack(images)
