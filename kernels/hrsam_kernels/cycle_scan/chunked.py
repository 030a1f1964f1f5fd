"""The cycle-scan in one pass, chunk-parallel, with a backward that recomputes the states.

B images, L steps, C channels, N states, R cycles; K chunks of T steps, M = B * K; c channels of a block.
Chunked tensors are time-major, (T, M, ...), so that step t of every chunk is one contiguous slab, and
states are (..., N, c), so that every product runs along contiguous channels. README.md has the derivation.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hrsam_kernels.once import differentiable_once

_LOG2E = math.log2(math.e)  # exp2 is several times faster than exp in PyTorch's CPU kernels
# Numbers in one (T, M, N, c) buffer and in one step's (M, N, c) slab. On a CPU three buffers stay inside the
# third-level cache and a slab inside the second-level one; elsewhere few, large launches are better.
_BLOCK, _SLAB = 1 << 20, 3 << 14
_BLOCK_ELSEWHERE = 1 << 26
_KEPT = 1 << 26  # bytes of scratch a thread keeps between calls


class _Scratch(threading.local):
    """Buffers a thread reuses: on a CPU, touching fresh pages costs more than the scan itself."""

    def __init__(self) -> None:
        self.kept: dict[int, Tensor] = {}

    def take(self, slot: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
        numbers = math.prod(shape)
        if type(like) is not Tensor or like.device.type != "cpu" or numbers * like.element_size() > _KEPT:
            return like.new_empty(shape)
        memory = self.kept.get(slot)
        if memory is None or memory.dtype != like.dtype or memory.numel() < numbers:
            memory = self.kept[slot] = like.new_empty(numbers)
        return memory[:numbers].view(shape)


_scratch = _Scratch()


def _plan(images: int, length: int, channels: int, states: int, device: torch.device) -> tuple[int, int, int]:
    """Channels of a block, chunks K of an image and steps T of a chunk."""
    on_cpu = device.type == "cpu"
    blocks = max(1, round(channels * images * length * states / (_BLOCK if on_cpu else _BLOCK_ELSEWHERE)))
    width = min(channels, max(32, -(-channels // blocks)))
    chunks = math.isqrt(2 * length)
    if on_cpu:
        chunks = max(1, min(2 * chunks, round(_SLAB / (images * states * width))))
    steps = -(-length // chunks)
    return width, -(-length // steps), steps


def _to_chunks(x: Tensor, chunks: int, steps: int, dtype: torch.dtype) -> Tensor:
    """(B, L, c) -> (T, M, c), zero after the sequence's end: a zero step leaves the state as it is."""
    images, length, channels = x.shape
    x = x.to(dtype)
    if chunks * steps > length:
        x = F.pad(x, (0, 0, 0, chunks * steps - length))
    x = x.unflatten(1, (chunks, steps)).permute(2, 0, 1, 3)
    return x.reshape(steps, images * chunks, channels).contiguous()


def _from_chunks(x: Tensor, images: int, length: int) -> Tensor:
    """(T, M, c) -> (B, L, c)."""
    return x.unflatten(1, (images, -1)).permute(1, 2, 0, 3).flatten(1, 2)[:, :length]


def _decay(time: Tensor, rate2: Tensor, out: Tensor | None = None) -> Tensor:
    """exp(A time) as (..., N, c) for times (..., c) and rates A log2(e) of shape (N, c)."""
    return torch.mul(time.unsqueeze(-2), rate2, out=out).exp2_()


def _carry(local: Tensor, decay: Tensor, reverse: bool = False) -> tuple[Tensor, Tensor]:
    """Chain chunks: x <- local_k + decay_k x from zero; what enters each chunk (B, K, N, c), and the end."""
    images, chunks = local.shape[:2]
    states = local.new_empty(chunks + 1, images, *local.shape[2:])
    states[chunks if reverse else 0].zero_()
    steps = [states.unbind(0), local.unbind(1), decay.unbind(1)]
    if reverse:
        steps = [step[::-1] for step in steps]
    entering, own, factors = steps
    for k in range(chunks):
        torch.addcmul(own[k], factors[k], entering[k], out=entering[k + 1])
    return (states[1:] if reverse else states[:-1]).transpose(0, 1), entering[-1]


def _cycle_starts(end: Tensor, decay: Tensor, gamma: Tensor) -> list[Tensor]:
    """h_r* = P h_{r-1}* + h, the state each cycle starts from, R tensors (B, N, c)."""
    starts = [torch.zeros_like(end)]
    for _ in range(1, gamma.shape[1]):
        starts.append(torch.addcmul(end, decay, starts[-1]))
    return starts


def _weighted(starts: list[Tensor], gamma: Tensor) -> Tensor:
    """G = sum_r gamma_r h_r*."""
    total = starts[0] * gamma[:, 0]
    for cycle, start in enumerate(starts[1:], 1):
        total.addcmul_(start, gamma[:, cycle])
    return total


def _exclusive(sums: Tensor) -> Tensor:
    """Sums over earlier entries along dimension 1; never negative, so that no exponent is positive."""
    return F.pad(sums.cumsum(1)[:, :-1], (0, 0, 1, 0))


class _CycleScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, gamma: Tensor
    ) -> Tensor:
        images, length, channels = u.shape
        states = A.shape[1]
        dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
        width, chunks, steps = _plan(images, length, channels, states, u.device)
        rows = images * chunks
        with torch.autocast(u.device.type, enabled=False):
            delta_t = _to_chunks(delta, chunks, steps, dtype)
            u_t = _to_chunks(u, chunks, steps, dtype)
            B_t = _to_chunks(B, chunks, steps, dtype).unsqueeze(-1)
            C_t = _to_chunks(C, chunks, steps, dtype).flatten(0, 1).unsqueeze(1)
            rates = A.to(dtype).t() * _LOG2E
            total = gamma.to(dtype).sum(1)
            drive = u_t * delta_t
            spans = delta_t.sum(0).unflatten(0, (images, chunks))
            entering = u_t.new_empty(images, chunks, states, channels)
            ends = u_t.new_empty(images, states, channels)
            y = u_t * (D.to(dtype) * total)
            for first in range(0, channels, width):
                block = slice(first, min(channels, first + width))
                rate2, span, weights = rates[:, block].contiguous(), spans[..., block], gamma.to(dtype)[block]
                decay = _scratch.take(0, (steps, rows, states, rate2.shape[1]), u_t)
                _decay(delta_t[..., block], rate2, out=decay)
                inputs = drive[..., block].unsqueeze(2)
                state = u_t.new_zeros(decay.shape[1:])
                for a, x, b in zip(decay.unbind(0), inputs.unbind(0), B_t.unbind(0), strict=True):
                    state.mul_(a).addcmul_(x, b)
                entering[..., block], end = _carry(state.unflatten(0, (images, chunks)), _decay(span, rate2))
                ends[..., block] = end
                start = _weighted(_cycle_starts(end, _decay(span.sum(1), rate2), weights), weights)
                state = entering[..., block] * total[block]
                state.addcmul_(_decay(_exclusive(span), rate2), start.unsqueeze(1))
                state = state.flatten(0, 1)
                inputs = inputs * total[block]
                for a, x, b in zip(decay.unbind(0), inputs.unbind(0), B_t.unbind(0), strict=True):
                    state = a.mul_(state).addcmul_(x, b)  # the states take the decays' place
                y[..., block] += torch.bmm(C_t, decay.flatten(0, 1)).view(steps, rows, -1)
            ctx.save_for_backward(u, delta, A, B, C, D, gamma, entering, ends)
            return _from_chunks(y, images, length).to(u.dtype)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        u, delta, A, B, C, D, gamma, entering, ends = ctx.saved_tensors
        images, length, channels = u.shape
        states = A.shape[1]
        dtype = entering.dtype
        width, chunks, steps = _plan(images, length, channels, states, u.device)
        with torch.autocast(u.device.type, enabled=False):
            delta_t = _to_chunks(delta, chunks, steps, dtype)
            u_t = _to_chunks(u, chunks, steps, dtype)
            dy_t = _to_chunks(dy, chunks, steps, dtype)
            B_t = _to_chunks(B, chunks, steps, dtype)
            C_t = _to_chunks(C, chunks, steps, dtype)
            weights, skip, rates = gamma.to(dtype), D.to(dtype), A.to(dtype).t()
            total = weights.sum(1)
            dyu = (dy_t * u_t).sum((0, 1))
            du, ddelta = dy_t * (skip * total), torch.empty_like(delta_t)
            dB, dC = torch.zeros_like(B_t), torch.zeros_like(C_t)
            drates, dgamma = torch.empty_like(rates), skip.unsqueeze(1) * dyu.unsqueeze(1).expand_as(weights)
            for first in range(0, channels, width):
                block = slice(first, min(channels, first + width))
                du_b, ddelta_b, drates_b, dB_b, dC_b, dgamma_b = _block_backward(
                    u_t[..., block], delta_t[..., block], dy_t[..., block], B_t, C_t,
                    rates[:, block].contiguous(), weights[block], entering[..., block], ends[..., block],
                )  # fmt: skip
                du[..., block] += du_b
                ddelta[..., block] = ddelta_b
                drates[:, block] = drates_b
                dgamma[block] += dgamma_b
                dB += dB_b
                dC += dC_b
            grads = (
                _from_chunks(du, images, length),
                _from_chunks(ddelta, images, length),
                drates.t(),
                _from_chunks(dB, images, length),
                _from_chunks(dC, images, length),
                dyu * total,
                dgamma,
            )
        return tuple(grad.to(x.dtype) for grad, x in zip(grads, (u, delta, A, B, C, D, gamma), strict=True))


def _block_backward(
    u: Tensor, delta: Tensor, dy: Tensor, B: Tensor, C: Tensor,
    rate: Tensor, gamma: Tensor, entering: Tensor, end: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of one block of channels; D's part and the skip path's share of du are the caller's.

    u, delta, dy (T, M, c); B, C (T, M, N); rate (N, c) = A; gamma (c, R); entering (B, K, N, c), the
    unweighted state that enters each chunk; end (B, N, c), the state after one pass.
    Returns du, ddelta (T, M, c), drate (N, c), dB, dC (T, M, N), dgamma (c, R).
    """
    steps, rows, width = u.shape
    images, chunks, states = entering.shape[:3]
    rate2, total = rate * _LOG2E, gamma.sum(1)
    drive, dy_total = u * delta, dy * total
    B_n, C_n = B.unsqueeze(-1), C.unsqueeze(-1)
    span = delta.sum(0).unflatten(0, (images, chunks))
    whole, over_chunk = _decay(span.sum(1), rate2), _decay(span, rate2)
    starts = _cycle_starts(end, whole, gamma)
    start = entering * total + _decay(_exclusive(span), rate2) * _weighted(starts, gamma).unsqueeze(1)

    # Forward in time: local states from zero (times the next decay) and the decaying start state.
    decay = _scratch.take(0, (steps + 1, rows, states, width), u)
    _decay(delta, rate2, out=decay[:-1])
    decayed = _scratch.take(1, (steps, rows, states, width), u)
    product = _scratch.take(2, (steps, rows, states, width), u)
    state, carried = torch.zeros_like(product[0]), start.flatten(0, 1)
    a_steps, x_steps, p_steps = decay.unbind(0), drive.unsqueeze(2).unbind(0), product.unbind(0)
    b_steps, c_steps = B_n.unbind(0), C_n.unbind(0)
    for a, x, b, z, p in zip(a_steps, x_steps, b_steps, decayed.unbind(0), p_steps, strict=False):
        torch.mul(a, state, out=z)
        torch.addcmul(z, x, b, out=state)
        carried = torch.mul(a, carried, out=p)
    flat_b, flat_c = B.flatten(0, 1).unsqueeze(1), C.flatten(0, 1).unsqueeze(1)
    flat = (steps * rows, 1, width)
    dC = torch.bmm(dy.reshape(flat), product.flatten(0, 1).mT)
    dC = dC.baddbmm_(dy_total.reshape(flat), decayed.flatten(0, 1).mT).view_as(C)
    dC.addcmul_(B, (dy_total * drive).sum(-1, keepdim=True))
    plain = torch.bmm(flat_c, decayed.flatten(0, 1)).view_as(u)
    plain = plain.addcmul_(drive, (B * C).sum(-1, keepdim=True))

    # Backward in time: local adjoints from zero, their product with the decaying start state.
    adjoint = torch.zeros_like(state)
    dy_steps = dy.unsqueeze(2).unbind(0)
    for t in range(steps - 1, -1, -1):
        adjoint.addcmul_(dy_steps[t], c_steps[t])
        p_steps[t].mul_(adjoint)
        adjoint.mul_(a_steps[t])
    adjoint = adjoint.unflatten(0, (images, chunks))
    dgamma_all = plain.mul_(dy).sum((0, 1)) + (adjoint * entering).sum((0, 1, 2))
    leaving, dstart = _carry(adjoint, over_chunk, reverse=True)

    # Through the start state G to the state after one pass and to the decay over it.
    dend, dwhole = torch.zeros_like(end), torch.zeros_like(end)
    dnext = torch.zeros_like(end)
    for cycle in range(gamma.shape[1] - 1, 0, -1):
        dnext = torch.addcmul(gamma[:, cycle] * dstart, whole, dnext)
        dend += dnext
        dwhole.addcmul_(dnext, starts[cycle - 1])
    dgamma = torch.stack([(dstart * s).sum((0, 1)) for s in starts], 1) + dgamma_all.unsqueeze(1)

    # Backward in time once more, now with what comes back into each chunk.
    after = _exclusive(span.flip(1)).flip(1)
    late = _decay(after, rate2) * dend.unsqueeze(1)
    a_steps[-1].copy_((leaving * total + late).flatten(0, 1))
    a_steps[-1].addcmul_(dy_total[-1].unsqueeze(1), c_steps[-1])
    dyt_steps = dy_total.unsqueeze(2).unbind(0)
    for t in range(steps - 1, 0, -1):  # the adjoints take the decays' place, one slab later
        a_steps[t].mul_(a_steps[t + 1]).addcmul_(dyt_steps[t - 1], c_steps[t - 1])
    adjoints = decay[1:]
    ddrive = torch.bmm(flat_b, adjoints.flatten(0, 1)).view_as(u)
    dB = torch.bmm(drive.reshape(flat), adjoints.flatten(0, 1).mT).view_as(B)

    # d log a_t, and what every step of a chunk or of the sequence shares.
    product.addcmul_(adjoints, decayed)
    of_chunk = over_chunk * (leaving * start + late * entering)
    of_all = whole * dwhole
    ddelta = torch.mul(product, rate, out=decayed).sum(2).unflatten(1, (images, chunks))
    ddelta += (of_chunk * rate).sum(2) + (of_all * rate).sum(1).unsqueeze(1)
    ddelta = ddelta.flatten(1, 2).addcmul_(ddrive, u)
    drate = torch.mul(product, delta.unsqueeze(2), out=decayed).sum((0, 1))
    drate += (of_chunk * span.unsqueeze(2)).sum((0, 1)) + (of_all * span.sum(1).unsqueeze(1)).sum(0)
    return ddrive.mul_(delta), ddelta, drate, dB, dC, dgamma


def cycle_scan_chunked(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, gamma: Tensor
) -> Tensor:
    """One scan from the weighted start state; shapes as in `hrsam_kernels.cycle_scan.cycle_scan`.

    State and exponentials are float32 (float64 for float64 input) whatever the input dtype and autocast.
    The backward recomputes the states from those at chunk boundaries; a second derivative is refused.
    """
    return _CycleScan.apply(u, delta, A, B, C, D, gamma)
