"""Cycle-scan: a selective state-space scan over a sequence that is repeated R times."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from hrsam_kernels.cycle_scan.chunked import cycle_scan_chunked
from hrsam_kernels.cycle_scan.reference import cycle_scan_reference

__all__ = ["cycle_scan", "cycle_scan_chunked", "cycle_scan_reference"]


def cycle_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    gamma: Tensor,
    backend: Literal["auto", "reference", "chunked"] = "auto",
) -> Tensor:
    """Weighted sum over R cycles of h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t, y_t = C_t h_t + D u_t.

    The state starts at zero and is carried from each cycle into the next. L steps, C channels, N states.
    u: (B, L, C); delta: (B, L, C), step sizes, not negative (after softplus); A: (C, N), negative;
    B, C: (B, L, N); D: (C,); gamma: (C, R), weights of the cycles. Returns (B, L, C) in u's dtype.
    """
    assert u.shape == delta.shape, (u.shape, delta.shape)
    assert B.shape == C.shape == (*u.shape[:2], A.shape[1]), (B.shape, C.shape, u.shape, A.shape)
    assert len(A) == len(D) == len(gamma) == u.shape[2], (A.shape, D.shape, gamma.shape, u.shape)
    run = cycle_scan_reference if backend == "reference" else cycle_scan_chunked
    return run(u, delta, A, B, C, D, gamma)
