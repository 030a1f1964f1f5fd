"""The cycle-scan as it is defined: the sequence repeated R times, in plain loops."""

from __future__ import annotations

import torch
from torch import Tensor


def cycle_scan_reference(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, gamma: Tensor) -> Tensor:
    """Repeat the recurrence R times with the state carried over and sum the cycles' outputs.

    Shapes as in `hrsam_kernels.cycle_scan.cycle_scan`; any floating dtype, computed in that dtype;
    differentiable any number of times. Slow: it exists for tests.
    """
    images, length, channels = u.shape
    state = u.new_zeros(images, channels, A.shape[1])
    total = torch.zeros_like(u)
    for cycle in range(gamma.shape[1]):
        rows = []
        for t in range(length):
            decay = torch.exp(delta[:, t, :, None] * A)
            state = decay * state + (delta[:, t] * u[:, t])[..., None] * B[:, t, None, :]
            rows.append((state * C[:, t, None, :]).sum(-1) + D * u[:, t])
        total = total + gamma[:, cycle] * torch.stack(rows, 1)
    return total
