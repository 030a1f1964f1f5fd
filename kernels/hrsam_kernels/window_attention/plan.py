"""Which token is whose query and key: integer tables of shifted windows that are completed with padding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

THETA = 10000.0  # base of the rotary frequencies


@dataclass(frozen=True)
class WindowPlan:
    """Tables for B images of N tokens each, M windows of S = window² keys.

    Windows with equally many real tokens stand together, so that each such group is one dense product.
    Rows count through all images: token n of image b is row b * N + n; rows from B * N on are padding.
    """

    queries: Tensor
    """(B * N,) rows in window order."""
    query_of: Tensor
    """(B * N,) inverse of `queries`: where each token's query lies."""
    keys: Tensor
    """(M * S,) row of every key; B * N + p where position p of the window is padding."""
    key_of: Tensor
    """(B * N,) where each token's key lies."""
    padded: Tensor
    """Which of the M * S keys are padding."""
    positions: Tensor
    """(N,) position inside its window, row-major, of each token of one image."""
    groups: tuple[tuple[int, int], ...]
    """(windows, queries in each) of every group, in the order of `queries` and `keys`."""


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # a table made during validation serves training too
def window_plan(
    maps: tuple[tuple[int, int], ...], window: int, shifts: tuple[int, ...], images: int, device: torch.device
) -> WindowPlan:
    """Tables for `images` images with token maps of the (h, w) in `maps`, one after the other, row-major.

    shifts: of each map's windows. Padding goes first to the top and left, (window - shift) mod window,
    then to the bottom and right up to whole windows; windows never hold tokens of two maps or images.
    """
    owners, positions, windows = [], [], 0
    for (h, w), shift in zip(maps, shifts, strict=True):
        lead = (window - shift) % window
        rows, columns = torch.arange(h) + lead, torch.arange(w) + lead
        across = -(-(w + lead) // window)
        owner = windows + rows[:, None] // window * across + columns // window
        owners.append(owner.flatten())
        positions.append((rows[:, None] % window * window + columns % window).flatten())
        windows += -(-(h + lead) // window) * across
    position = torch.cat(positions)
    tokens, size = len(position), window * window
    owner = (torch.cat(owners) + windows * torch.arange(images)[:, None]).flatten()
    counts = torch.bincount(owner, minlength=images * windows)
    order = torch.argsort(counts, stable=True)
    slot = torch.argsort(order)[owner] * size + position.repeat(images)  # each token's place among all keys
    keys = images * tokens + torch.arange(size).repeat(images * windows)
    keys[slot] = torch.arange(images * tokens)
    queries = torch.argsort(slot)
    held, members = torch.unique_consecutive(counts[order], return_counts=True)
    padded = (keys >= images * tokens).nonzero().flatten()
    return WindowPlan(
        queries.to(device),
        torch.argsort(queries).to(device),
        keys.to(device),
        slot.to(device),
        padded.to(device),
        position.to(device),
        tuple(zip(members.tolist(), held.tolist(), strict=True)),
    )


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def rotary_table(window: int, head_dim: int, scale: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """exp(-i angle) at each position of a window, complex (window², head_dim / 2).

    The first half of the pairs encodes the row, the second the column. Only offsets inside a window
    matter, so one table serves every window of every map.
    """
    pairs = head_dim // 4
    frequency = THETA ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    angle = torch.arange(window, dtype=torch.float64)[:, None] * scale * frequency
    rows, columns = angle[:, None].expand(-1, window, -1), angle[None].expand(window, -1, -1)
    angle = torch.cat((rows, columns), -1).flatten(0, 1)
    return torch.polar(torch.ones_like(angle), -angle).to(device=device, dtype=dtype)
