"""Parts of the HRSAM encoder: patch embedding, window block, cycle-scan block, multi-scale tap.

B images, N tokens of all scales of an image (each scale row-major, one after the other), C channels,
H W pixels, h w grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrsam_kernels.cycle_scan import cycle_scan
from hrsam_kernels.window_attention import window_attention

PATCH = 16  # pixels of a token's side; the same for every stem


class PatchEmbed(nn.Module):
    """Linear embedding of 16x16 patches, its weight in convolution layout: (B, 3, H, W) -> (B, h * w, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) with H and W multiples of 16 -> (B, h * w, C), row-major."""
        patches = images.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH)).permute(0, 2, 4, 1, 3, 5)
        return F.linear(patches.flatten(3).flatten(1, 2), self.proj.weight.flatten(1), self.proj.bias)


class ConvStem(nn.Module):
    """Overlapping convolutions in place of the patch embedding: (B, 3, H, W) -> (B, h * w, C).

    Strides 4, 2, 2 with kernels of twice the stride, so that every token stays centred on its patch.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(3, width // 4, 8, 4, 2),
            nn.GELU(),
            nn.Conv2d(width // 4, width // 2, 4, 2, 1),
            nn.GELU(),
            nn.Conv2d(width // 2, width, 4, 2, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) with H and W multiples of 16 -> (B, h * w, C), row-major."""
        return self.convs(images.contiguous(memory_format=torch.channels_last)).flatten(2).transpose(1, 2)


def drop_path(branch: Tensor, rate: float, per_token: bool) -> Tensor:
    """Drop a residual branch (B, N, C) of whole images or of single tokens, and scale up what is kept."""
    mask = branch.new_empty(branch.shape[0], branch.shape[1] if per_token else 1, 1)
    return branch * mask.bernoulli_(1 - rate).div_(1 - rate)


class WindowAttention(nn.Module):
    """Attention inside windows that one learnable vector completes (reference: HRSAM's flash Swin)."""

    def __init__(self, width: int, heads: int, window: int, rotary_scale: float) -> None:
        super().__init__()
        self.heads, self.window, self.rotary_scale = heads, window, rotary_scale
        self.padding = nn.Parameter(torch.zeros(1, width))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, maps: Sequence[tuple[int, int]], shifts: Sequence[int]) -> Tensor:
        """(B, N, C) normalised tokens of `maps` -> (B, N, C); windows never mix scales."""
        width = x.shape[-1]
        pad = F.linear(self.padding, self.qkv.weight[width:], self.qkv.bias[width:]).flatten()
        mixed = window_attention(
            self.qkv(x), pad, maps=maps, heads=self.heads, window=self.window, shifts=shifts,
            rotary_scale=self.rotary_scale,
        )  # fmt: skip
        return self.proj(mixed)


class Mlp(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.fc2(F.gelu(self.fc1(x)))


class WindowBlock(nn.Module):
    """Pre-norm transformer block on windows; `shifted` moves its windows by half a window."""

    def __init__(
        self,
        width: int,
        heads: int,
        window: int,
        mlp_ratio: float,
        *,
        shifted: bool,
        shift_single_window: bool,
        rotary_scale: float,
        drop_path: float,
        drop_path_per_token: bool,
    ) -> None:
        super().__init__()
        self.window, self.shifted, self.shift_single_window = window, shifted, shift_single_window
        self.drop_rate, self.drop_per_token = drop_path, drop_path_per_token
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window, rotary_scale)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def shifts(self, maps: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        """Shift of each map's windows in tokens; 0 for a map inside one window where that is asked for."""
        if not self.shifted:
            return (0,) * len(maps)
        whole = [self.shift_single_window or max(map_) > self.window for map_ in maps]
        return tuple(self.window // 2 if moved else 0 for moved in whole)

    def forward(self, x: Tensor, maps: Sequence[tuple[int, int]]) -> Tensor:
        """(B, N, C) tokens of `maps` -> (B, N, C)."""
        x = x + self._drop(self.attn(self.norm1(x), maps, self.shifts(maps)))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _drop(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_rate == 0:
            return branch
        return drop_path(branch, self.drop_rate, self.drop_per_token)


class CycleScanBlock(nn.Module):
    """Gated selective scan in raster order over a sequence repeated `cycles` times, with its own residual."""

    def __init__(self, width: int, states: int, cycles: int) -> None:
        super().__init__()
        self.states = states
        self.in_norm = nn.LayerNorm(width)
        self.in_proj = nn.Linear(width, 2 * width)
        self.ssm_proj = nn.Linear(width, width + 2 * states)  # rows: step size, B, C
        self.dt_bias = nn.Parameter(torch.empty(width))
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(width, 1))
        self.D = nn.Parameter(torch.ones(width))
        self.gamma = nn.Parameter(torch.ones(width, cycles))
        self.out_norm = nn.LayerNorm(width)
        self.out_proj = nn.Linear(width, width)
        nn.init.uniform_(self.ssm_proj.weight[:width], -(width**-0.5), width**-0.5)
        nn.init.zeros_(self.ssm_proj.bias)
        with torch.no_grad():
            steps = torch.empty(width).uniform_(math.log(1e-3), math.log(1e-1)).exp_().clamp_(min=1e-4)
            self.dt_bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # inverse of softplus

    def forward(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """(B, N, C) -> (B, N, C); `lengths`: the N tokens are separate sequences of these lengths."""
        width = x.shape[-1]
        u, gate = F.silu(self.in_proj(self.in_norm(x))).split(width, -1)
        step, B, C = self.ssm_proj(u).split((width, self.states, self.states), -1)
        step = F.softplus(step.float() + self.dt_bias.float())
        A = -self.A_log.float().exp()
        parts = zip(*(tensor.split(list(lengths), 1) for tensor in (u, step, B, C)), strict=True)
        scanned = [cycle_scan(u_, step_, A, B_, C_, self.D, self.gamma) for u_, step_, B_, C_ in parts]
        y = scanned[0] if len(scanned) == 1 else torch.cat(scanned, 1)
        return x + self.out_proj(gate * self.out_norm(y))


class Tap(nn.Module):
    """Linear without bias and LayerNorm that bring one tapped block's map to the output's channels."""

    def __init__(self, width: int, out_channels: int, scales: int) -> None:
        super().__init__()
        self.fuse_norm = nn.LayerNorm(width) if scales == 2 else None
        self.proj = nn.Linear(scales * width, out_channels, bias=False)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor, maps: Sequence[tuple[int, int]]) -> Tensor:
        """(B, N, C) tokens of `maps` -> (B, h, w, out_channels) on the first map's grid.

        An anchor map is enlarged bilinearly, then one shared LayerNorm serves both; channels are
        [full, anchor].
        """
        scales = zip(x.split([h * w for h, w in maps], 1), maps, strict=True)
        full, *rest = (tokens.unflatten(1, map_) for tokens, map_ in scales)
        if self.fuse_norm is None:
            return self.norm(self.proj(full))
        anchor = F.interpolate(rest[0].permute(0, 3, 1, 2), maps[0], mode="bilinear", align_corners=False)
        both = torch.stack((full, anchor.permute(0, 2, 3, 1)), 3)
        return self.norm(self.proj(self.fuse_norm(both).flatten(3)))
