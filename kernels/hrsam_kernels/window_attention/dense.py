"""Window attention as dense products: one a group of windows that hold equally many real tokens.

B images, N tokens of an image, C channels, H heads, d channels of a head; rows run through all images.
Padded positions are keys only: no padded query is ever computed, no mask, no roll.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hrsam_kernels.once import differentiable_once
from hrsam_kernels.window_attention.plan import WindowPlan, rotary_table, window_plan


def _turn(x: Tensor, table: Tensor) -> Tensor:
    """Rotate (..., C) channels, pairs interleaved, by complex factors (..., d / 2) in at least float32."""
    pairs = x.to(table.real.dtype).unflatten(-1, (-1, table.shape[-1], 2))
    if torch.compiler.is_compiling():  # exporters know no complex numbers
        a, b = pairs.unbind(-1)
        cos, sin = table.real.unsqueeze(-2), table.imag.unsqueeze(-2)
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * table.unsqueeze(-2))
    return turned.flatten(-3).to(x.dtype)


class _ToWindows(torch.autograd.Function):
    """Raster order to window order: rotated queries, and keys and values completed with padding."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, pad: Tensor, plan: WindowPlan, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens, width = qkv.shape[0] * qkv.shape[1], pad.shape[0] // 2
        ctx.plan, ctx.shape = plan, qkv.shape
        ctx.save_for_backward(table)
        qk = _turn(qkv[..., : 2 * width], table[plan.positions]).view(tokens, 2 * width)
        values = qkv.view(tokens, 3 * width)[:, 2 * width :]
        queries = qk[:, :width].index_select(0, plan.queries)
        keys = qk[:, width:]
        if len(plan.padded) == 0:
            return queries, keys.index_select(0, plan.keys), values.index_select(0, plan.keys)
        keys = torch.cat((keys, _turn(pad[:width].expand(len(table), -1), table)))
        values = torch.cat((values, pad[None, width:]))
        return (
            queries,
            keys.index_select(0, plan.keys),
            values.index_select(0, plan.keys.clamp(max=tokens)),
        )

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, dqueries: Tensor, dkeys: Tensor, dvalues: Tensor) -> tuple[Tensor, Tensor, None, None]:
        plan, (table,) = ctx.plan, ctx.saved_tensors
        images, tokens, width = ctx.shape[0], ctx.shape[1], dqueries.shape[1]
        back = table.conj().resolve_conj()
        dqkv = dqueries.new_empty(images * tokens, 3 * width)
        dqkv[:, :width] = dqueries.index_select(0, plan.query_of)
        dqkv[:, width : 2 * width] = dkeys.index_select(0, plan.key_of)
        dqkv[:, 2 * width :] = dvalues.index_select(0, plan.key_of)
        dqkv = dqkv.view(ctx.shape)
        dqkv[..., : 2 * width] = _turn(dqkv[..., : 2 * width], back[plan.positions])
        spots = plan.keys[plan.padded] - images * tokens
        turned = _turn(dkeys.index_select(0, plan.padded), back[spots]).sum(0)
        return dqkv, torch.cat((turned, dvalues.index_select(0, plan.padded).sum(0))), None, None


class _ToRaster(torch.autograd.Function):
    """Rows in window order to raster order: a permutation, whose gradient is the inverse one."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, plan: WindowPlan) -> Tensor:
        ctx.plan = plan
        return rows.index_select(0, plan.query_of)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.index_select(0, ctx.plan.queries), None


class _HalfAttention(torch.autograd.Function):
    """Softmax attention (W, Q, d) x (W, S, d) that keeps the probabilities, for 16-bit types on a CPU."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scale = q.shape[-1] ** -0.5
        scores = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=scale)
        weights = torch.softmax(scores, -1)
        ctx.save_for_backward(q, k, v, weights)
        return torch.bmm(weights, v)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, weights = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        dv = torch.bmm(weights.mT, grad)
        dscores = torch._softmax_backward_data(torch.bmm(grad, v.mT), weights, -1, weights.dtype)
        dq = torch.baddbmm(grad.new_empty(()), dscores, k, beta=0, alpha=scale)
        dk = torch.baddbmm(grad.new_empty(()), dscores.mT, q, beta=0, alpha=scale)
        return dq, dk, dv


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(W, H, Q, d) queries on (W, H, S, d) keys and values -> (W, H, Q, d), scale d^-0.5.

    On a CPU with bfloat16 units PyTorch's fused kernel is no faster in 16 bits than in float32; plain
    products were twice as fast forward, three to four times with the backward (README.md).
    """
    if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16):
        flat = (x.flatten(0, 1) for x in (q, k, v))
        return _HalfAttention.apply(*flat).unflatten(0, q.shape[:2])
    return F.scaled_dot_product_attention(q, k, v)


def window_attention_dense(
    qkv: Tensor,
    pad: Tensor,
    *,
    maps: Sequence[tuple[int, int]],
    heads: int,
    window: int,
    shifts: Sequence[int],
    rotary_scale: float = 0.5,
) -> Tensor:
    """Dense windows, grouped by their number of queries, each through one fused or plain product.

    Arguments as in `hrsam_kernels.window_attention.window_attention`; any floating dtype, softmax
    accumulated in float32 at least.
    """
    images, tokens = qkv.shape[:2]
    width = pad.shape[0] // 2
    plan = window_plan(tuple(maps), window, tuple(shifts), images, qkv.device)
    real = torch.complex128 if qkv.dtype == torch.float64 else torch.complex64
    table = rotary_table(window, width // heads, rotary_scale, real, qkv.device)
    queries, keys, values = _ToWindows.apply(qkv.contiguous(), pad.to(qkv.dtype), plan, table)
    size, out, q_at, k_at = window * window, [], 0, 0
    for windows, held in plan.groups:
        q = queries[q_at : q_at + windows * held].view(windows, held, heads, -1).transpose(1, 2)
        k, v = (x[k_at : k_at + windows * size].view(windows, size, heads, -1).transpose(1, 2) for x in (keys, values))
        out.append(_attend(q, k, v).transpose(1, 2).reshape(windows * held, width))
        q_at, k_at = q_at + windows * held, k_at + windows * size
    return _ToRaster.apply(torch.cat(out), plan).view(images, tokens, width)
