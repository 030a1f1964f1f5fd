"""The cycle-scan in one pass, chunk-parallel, with a backward that recomputes the states.

Names as in layout.py; R cycles, m chunks of a range. States are (..., N, C), so that every product runs
along contiguous channels. README.md has the derivation.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hrsam_kernels.cycle_scan.layout import Plan, Scratch
from hrsam_kernels.once import differentiable_once

_LOG2E = math.log2(math.e)  # exp2 is several times faster than exp in PyTorch's CPU kernels
_scratch = Scratch()


def _decay(time: Tensor, rate: Tensor, out: Tensor | None = None) -> Tensor:
    """exp(A time), (..., N, C), for times (..., C) and rates A of shape (N, C)."""
    return torch.mul(time.unsqueeze(-2), rate * _LOG2E, out=out).exp2_()


def _carry(local: Tensor, decay: Tensor, reverse: bool = False) -> tuple[Tensor, Tensor]:
    """Chain chunks: x <- local_k + decay_k x from zero; what enters each chunk (B, K, N, C), and the end."""
    images, chunks = local.shape[:2]
    states = local.new_empty(chunks + 1, images, *local.shape[2:])
    states[chunks if reverse else 0].zero_()
    parts = [states.unbind(0), local.unbind(1), decay.unbind(1)]
    entering, own, factors = [part[::-1] for part in parts] if reverse else parts
    for k in range(chunks):
        torch.addcmul(own[k], factors[k], entering[k], out=entering[k + 1])
    return (states[1:] if reverse else states[:-1]).transpose(0, 1), entering[-1]


def _cycle_starts(end: Tensor, decay: Tensor, gamma: Tensor) -> list[Tensor]:
    """h_r* = P h_{r-1}* + h, the state each cycle starts from, R tensors (B, N, C)."""
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


def _earlier(sums: Tensor) -> Tensor:
    """Sums over earlier entries along dimension 1; never negative, so that no exponent is positive."""
    return F.pad(sums.cumsum(1)[:, :-1], (0, 0, 1, 0))


def _over_states(weights: Tensor, states: Tensor) -> Tensor:
    """Sum over N: (T, m, N) weights of (T, m, N, C) states -> (T, m, C)."""
    summed = torch.bmm(weights.flatten(0, 1).unsqueeze(1), states.flatten(0, 1))
    return summed.view(*states.shape[:2], -1)


def _over_channels(weights: Tensor, states: Tensor) -> Tensor:
    """Sum over C: (T, m, C) weights of (T, m, N, C) states -> (T, m, N)."""
    summed = torch.bmm(weights.flatten(0, 1).unsqueeze(1), states.flatten(0, 1).mT)
    return summed.view(*states.shape[:2], -1)


class _CycleScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, gamma: Tensor
    ) -> Tensor:
        dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
        images, length, channels = u.shape
        ctx.plan = plan = Plan.make(images, length, channels, A.shape[1], u.device)
        with torch.autocast(u.device.type, enabled=False):
            u_t, delta_t, B_t, C_t = (plan.split(x, dtype) for x in (u, delta, B, C))
            rate, weights = A.to(dtype).t().contiguous(), gamma.to(dtype)
            y, entering, end = _forward(plan, u_t, delta_t, B_t, C_t, rate, weights)
            y.addcmul_(u_t, D.to(dtype) * weights.sum(1))
            ctx.save_for_backward(u, delta, A, B, C, D, gamma, entering, end)
            return plan.join(y).to(u.dtype)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        u, delta, A, B, C, D, gamma, entering, end = ctx.saved_tensors
        plan, dtype = ctx.plan, entering.dtype
        with torch.autocast(u.device.type, enabled=False):
            u_t, delta_t, dy_t, B_t, C_t = (plan.split(x, dtype) for x in (u, delta, dy, B, C))
            rate, weights, skip = A.to(dtype).t().contiguous(), gamma.to(dtype), D.to(dtype)
            total = weights.sum(1)
            du, ddelta, dB, dC, drate, dgamma = _backward(
                plan, u_t, delta_t, dy_t, B_t, C_t, rate, weights, entering, end
            )
            through = (dy_t * u_t).sum((0, 1))
            du.addcmul_(dy_t, skip * total)
            dgamma += (skip * through).unsqueeze(1)
            back = (plan.join(du), plan.join(ddelta), drate.t(), plan.join(dB), plan.join(dC))
        inputs = (u, delta, A, B, C, D, gamma)
        return tuple(grad.to(x.dtype) for grad, x in zip((*back, through * total, dgamma), inputs, strict=True))


def _forward(
    plan: Plan, u: Tensor, delta: Tensor, B: Tensor, C: Tensor, rate: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted output of all cycles, without the skip path.

    u, delta (T, M, C); B, C (T, M, N); rate (N, C) = A; gamma (C, R). Returns y (T, M, C), the unweighted
    state that enters each chunk (B, K, N, C), and that after one pass (B, N, C).
    """
    total, inputs, per_state = gamma.sum(1), (u * delta).unsqueeze(2), B.unsqueeze(-1)
    span = plan.by_image(delta.sum(0))
    local = u.new_zeros(u.shape[1], *rate.shape)
    for m in plan.ranges:
        decay = _decays(delta[:, m], rate)
        state = local[m]
        for a, x, b in zip(decay.unbind(0), inputs[:, m].unbind(0), per_state[:, m].unbind(0), strict=True):
            state.mul_(a).addcmul_(x, b)
    entering, end = _carry(plan.by_image(local), _decay(span, rate))
    first = _weighted(_cycle_starts(end, _decay(span.sum(1), rate), gamma), gamma)
    start = _decay(_earlier(span), rate).mul_(first.unsqueeze(1)).addcmul_(entering, total).flatten(0, 1)
    inputs, y = inputs * total, torch.empty_like(u)
    for m in plan.ranges:
        if len(plan.ranges) > 1:
            decay = _decays(delta[:, m], rate)
        state = start[m]
        for a, x, b in zip(decay.unbind(0), inputs[:, m].unbind(0), per_state[:, m].unbind(0), strict=True):
            state = a.mul_(state).addcmul_(x, b)  # the states take the decays' place
        y[:, m] = _over_states(C[:, m], decay)
    return y, entering, end


def _decays(delta: Tensor, rate: Tensor) -> Tensor:
    """exp(A delta) of every step, (T, m, N, C), in scratch memory."""
    return _decay(delta, rate, _scratch.take(0, (*delta.shape[:2], *rate.shape), delta))


def _backward(
    plan: Plan, u: Tensor, delta: Tensor, dy: Tensor, B: Tensor, C: Tensor,
    rate: Tensor, gamma: Tensor, entering: Tensor, end: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of `_forward` in u, delta (T, M, C), B, C (T, M, N), rate (N, C) and gamma (C, R).

    entering and end are what it returned; dy (T, M, C).
    """
    total = gamma.sum(1)
    span = plan.by_image(delta.sum(0))
    whole, over_chunk = _decay(span.sum(1), rate), _decay(span, rate)
    starts = _cycle_starts(end, whole, gamma)
    first = _weighted(starts, gamma)
    start = _decay(_earlier(span), rate).mul_(first.unsqueeze(1)).addcmul_(entering, total)
    ranges = [_Range(u[:, m], delta[:, m], dy[:, m], B[:, m], C[:, m], rate, total) for m in plan.ranges]
    again = len(ranges) > 1

    # Local adjoints from zero give, chained over chunks, what comes back into each chunk and into G.
    adjoint = torch.empty_like(start)
    for m, part in zip(plan.ranges, ranges, strict=True):
        part.decays()
        if not again:
            part.replay(start.flatten(0, 1)[m])
        adjoint.flatten(0, 1)[m] = part.local_adjoint()
    leaving, dfirst = _carry(adjoint, over_chunk, reverse=True)

    # Through G to the state after one pass and to the decay over it.
    dend, dwhole, dnext = (torch.zeros_like(end) for _ in range(3))
    for cycle in range(gamma.shape[1] - 1, 0, -1):
        dnext = torch.addcmul(gamma[:, cycle] * dfirst, whole, dnext)
        dend += dnext
        dwhole.addcmul_(dnext, starts[cycle - 1])
    late = _decay(_earlier(span.flip(1)).flip(1), rate).mul_(dend.unsqueeze(1))
    coming = torch.addcmul(late, leaving, total).flatten(0, 1)

    du, ddelta = torch.empty_like(u), torch.empty_like(u)
    dB, dC = torch.empty_like(B), torch.empty_like(C)
    drate, dtotal = torch.zeros_like(rate), (adjoint * entering).sum((0, 1, 2))
    for m, part in zip(plan.ranges, ranges, strict=True):
        if again:
            part.decays()
            part.replay(start.flatten(0, 1)[m])
            part.local_adjoint()
        du[:, m], ddelta[:, m], dB[:, m], drate_m = part.gradients(coming[m])
        dC[:, m] = part.dC
        drate += drate_m
        dtotal += part.dtotal

    # What every step of a chunk, and every step of the sequence, shares in d log a.
    of_chunk = over_chunk * torch.addcmul(leaving * start, late, entering)
    of_all = whole * dwhole
    ddelta += ((of_chunk * rate).sum(2) + (of_all * rate).sum(1).unsqueeze(1)).flatten(0, 1)
    drate += (of_chunk * span.unsqueeze(2)).sum((0, 1)) + (of_all * span.sum(1).unsqueeze(1)).sum(0)
    dgamma = torch.stack([(dfirst * state).sum((0, 1)) for state in starts], 1) + dtotal.unsqueeze(1)
    return du, ddelta, dB, dC, drate, dgamma


class _Range:
    """Chunks that one backward sweep works together: u, delta, dy (T, m, C); B, C (T, m, N)."""

    def __init__(self, u: Tensor, delta: Tensor, dy: Tensor, B: Tensor, C: Tensor, rate: Tensor, total: Tensor) -> None:
        self.u, self.delta, self.dy, self.B, self.C, self.rate = u, delta, dy, B, C, rate
        self.drive, self.dy_total = u * delta, dy * total
        self.shape = (*u.shape[:2], *rate.shape)

    def decays(self) -> None:
        """exp(A delta) of every step, and one slab more."""
        self.decay = _scratch.take(0, (self.shape[0] + 1, *self.shape[1:]), self.u)
        _decay(self.delta, self.rate, out=self.decay[:-1])
        self.product: Tensor | None = None

    def replay(self, start: Tensor) -> None:
        """Forward in time: local states from zero (times the next decay) and the decaying start state."""
        self.decayed, product = (_scratch.take(slot, self.shape, self.u) for slot in (1, 2))
        state, carried = torch.zeros_like(start), start
        steps = (self.decay, self.drive.unsqueeze(2), self.B.unsqueeze(-1), self.decayed, product)
        for a, x, b, z, p in zip(*(part.unbind(0) for part in steps), strict=False):
            torch.mul(a, state, out=z)
            torch.addcmul(z, x, b, out=state)
            carried = torch.mul(a, carried, out=p)
        dC = _over_channels(self.dy, product) + _over_channels(self.dy_total, self.decayed)
        self.dC = dC.addcmul_(self.B, (self.dy_total * self.drive).sum(-1, keepdim=True))
        y = _over_states(self.C, self.decayed).addcmul_(self.drive, (self.B * self.C).sum(-1, keepdim=True))
        self.dtotal = y.mul_(self.dy).sum((0, 1))
        self.product = product

    def local_adjoint(self) -> Tensor:
        """Backward in time from zero: the adjoint (m, N, C) at the chunks' start; times the start state."""
        adjoint = torch.zeros_like(self.decay[0])
        slots = self.product.unbind(0) if self.product is not None else (None,) * self.shape[0]
        steps = (
            self.decay[:-1].unbind(0),
            self.dy.unsqueeze(2).unbind(0),
            self.C.unsqueeze(-1).unbind(0),
            slots,
        )
        for a, g, c, p in reversed(list(zip(*steps, strict=True))):
            adjoint.addcmul_(g, c)
            if p is not None:
                p.mul_(adjoint)
            adjoint.mul_(a)
        return adjoint

    def gradients(self, coming: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Backward in time from what comes back into the chunks: du, ddelta, dB, drate."""
        assert self.product is not None
        slots = self.decay.unbind(0)
        grads, per_state = self.dy_total.unsqueeze(2).unbind(0), self.C.unsqueeze(-1).unbind(0)
        torch.addcmul(coming, grads[-1], per_state[-1], out=slots[-1])
        for t in range(self.shape[0] - 1, 0, -1):  # the adjoints take the decays' place, one slab later
            slots[t].mul_(slots[t + 1]).addcmul_(grads[t - 1], per_state[t - 1])
        adjoints = self.decay[1:]
        ddrive, dB = _over_states(self.B, adjoints), _over_channels(self.drive, adjoints)
        dlog = self.product.addcmul_(adjoints, self.decayed)
        ddelta = torch.mul(dlog, self.rate, out=self.decayed).sum(2).addcmul_(ddrive, self.u)
        drate = torch.mul(dlog, self.delta.unsqueeze(2), out=self.decayed).sum((0, 1))
        return ddrive.mul_(self.delta), ddelta, dB, drate


def cycle_scan_chunked(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, gamma: Tensor) -> Tensor:
    """One scan from the weighted start state; shapes as in `hrsam_kernels.cycle_scan.cycle_scan`.

    State and exponentials are float32 (float64 for float64 input) whatever the input dtype and autocast.
    The backward recomputes the states from those at chunk boundaries; a second derivative is refused.
    """
    return _CycleScan.apply(u, delta, A, B, C, D, gamma)
