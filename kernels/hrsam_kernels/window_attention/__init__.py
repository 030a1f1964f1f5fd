"""Window attention in which only keys and values are padded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from hrsam_kernels.window_attention.dense import window_attention_dense
from hrsam_kernels.window_attention.reference import window_attention_reference

__all__ = ["window_attention", "window_attention_dense", "window_attention_reference"]


def window_attention(
    qkv: Tensor,
    pad: Tensor,
    *,
    maps: Sequence[tuple[int, int]],
    heads: int,
    window: int,
    shifts: Sequence[int],
    rotary_scale: float = 0.5,
    backend: Literal["auto", "reference", "dense"] = "auto",
) -> Tensor:
    """Attention inside the windows of one or more token maps -> (B, N, C), tokens in the same order.

    qkv: (B, N, 3C), queries, keys and values, each head-major; N = sum of h * w, each map row-major.
    pad: (2C,), the padding vector's key (before rotation) and value; it stands at every position of a
    window that holds no token, is never a query and never masked.
    maps: (h, w) of each scale; windows never mix scales. window: side in tokens. shifts: of each map's
    windows, in tokens: 0, or e.g. window // 2. rotary_scale: factor on positions.
    The head size must be divisible by 4 (row and column halves of interleaved pairs).
    """
    assert qkv.shape[-1] * 2 == pad.shape[0] * 3, (qkv.shape, pad.shape)
    assert qkv.shape[1] == sum(h * w for h, w in maps), (qkv.shape, maps)
    assert pad.shape[0] % (8 * heads) == 0, (pad.shape, heads)
    assert all(0 <= shift < window for shift in shifts), (shifts, window)
    run = window_attention_reference if backend == "reference" else window_attention_dense
    return run(qkv, pad, maps=maps, heads=heads, window=window, shifts=shifts, rotary_scale=rotary_scale)
