"""HRSAM and HRSAM++: one encoder class; the anchor map makes it HRSAM++ (arXiv 2407.02109).

B images, H W pixels, h w token grid, N tokens of all scales, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hrsam_lit.errors import UserError
from hrsam_lit.models.arguments import keeps_arguments
from hrsam_lit.models.encoder import ImageEncoder
from hrsam_lit.models.layers import PATCH, ConvStem, CycleScanBlock, PatchEmbed, Tap, WindowBlock
from hrsam_lit.models.normalize import PIXEL_MEAN, PIXEL_STD, Normalize

SIZES: dict[str, dict[str, Any]] = {
    "base": {},
    "tiny": {
        "depth": 8,
        "width": 192,
        "heads": 3,
        "taps": (1, 3, 5, 7),
        "state": 8,
        "upsample": 2,
        "shift_single_window": False,
    },
}
"""Arguments of `HRSAM` by name: "base" is the paper's only size, "tiny" trains on a CPU."""


class HRSAM(ImageEncoder):
    """Image encoder of shifted windows and cycle-scans: (B, 3, H, W) pixels -> (B, out_channels, h, w).

    depth, width, heads, mlp_ratio: of the transformer; window: its side in tokens, every odd block's
    windows are shifted by half. taps: 0-based blocks whose maps are summed into the output; each is
    preceded by a cycle-scan of `state` states and `cycles` cycles. anchor: long side in pixels of a
    small second scale (HRSAM++), which adds a scan over both scales after each tap; None for HRSAM.
    pos_grid: side of the stored position embedding, resized bilinearly to every scale's grid.
    drop_path: rate at the last block, rising linearly from 0; per image, or per token as HRSAM was
    trained. shift_single_window: shift a map that lies inside one window too (False: later releases).
    rotary_scale: factor on rotary positions. stem: 16x16 patches, or three convolutions. upsample: the
    summed map is enlarged bilinearly by this before the output convolution. checkpoint_blocks: keep no
    activations inside blocks, recompute them. bgr: the channels are fed in the order B, G, R, as the
    authors' were; pixel_mean, pixel_std: of the channels in the order they are fed, on the 0..255 scale.
    """

    @keeps_arguments
    def __init__(
        self,
        *,
        depth: int = 12,
        width: int = 768,
        heads: int = 12,
        window: int = 16,
        mlp_ratio: float = 4.0,
        taps: Sequence[int] = (2, 5, 8, 11),
        state: int = 32,
        cycles: int = 3,
        out_channels: int = 256,
        anchor: int | None = None,
        pos_grid: int = 14,
        drop_path: float = 0.0,
        drop_path_per_token: bool = False,
        shift_single_window: bool = True,
        rotary_scale: float = 0.5,
        stem: Literal["patch", "conv"] = "patch",
        upsample: int = 1,
        checkpoint_blocks: bool = False,
        bgr: bool = False,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
    ) -> None:
        super().__init__()
        _check(depth, width, heads, window, taps, state, cycles, anchor, drop_path, stem, upsample)
        scales = 1 if anchor is None else 2
        self.anchor, self.upsample, self.checkpoint_blocks = anchor, upsample, checkpoint_blocks
        self.stride = PATCH // upsample
        self.pos_grid = pos_grid
        self.tap_of = {block: number for number, block in enumerate(taps)}
        self.normalize = Normalize(pixel_mean, pixel_std, bgr)
        # Slot 0 is MAE's class token: stored, never used.
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + pos_grid**2, width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.patch_embed = PatchEmbed(width) if stem == "patch" else ConvStem(width)
        self.blocks = nn.ModuleList(
            WindowBlock(
                width,
                heads,
                window,
                mlp_ratio,
                shifted=bool(block % 2),
                shift_single_window=shift_single_window,
                rotary_scale=rotary_scale,
                drop_path=drop_path * block / max(1, depth - 1),
                drop_path_per_token=drop_path_per_token,
            )
            for block in range(depth)
        )
        self.scans = nn.ModuleList(CycleScanBlock(width, state, cycles) for _ in taps)
        self.joint_scans = nn.ModuleList(CycleScanBlock(width, state, cycles) for _ in taps if scales == 2)
        self.taps = nn.ModuleList(Tap(width, out_channels, scales) for _ in taps)
        self.out_conv = nn.Conv2d(out_channels, out_channels, 3, padding=1, groups=out_channels, bias=False)
        self.out_norm = nn.LayerNorm(out_channels)

    def forward(self, images: Tensor, sizes: Tensor | None = None, anchor_images: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W), uint8 or float RGB in 0..255 -> float32 (B, out_channels, H/stride, W/stride).

        sizes: int64 (B, 2), valid height and width at the top left, None where there is no padding.
        anchor_images: (B, 3, a, b), the same images placed small by the same rule, in place of the
        anchor made here from the padded input. Raises UserError where H or W is no multiple of 16.
        """
        if anchor_images is None:
            return self.encode(self.normalize(images, sizes))
        anchor_sizes = None
        if sizes is not None:
            ratio = max(anchor_images.shape[2:]) / max(images.shape[2:])
            anchor_sizes = (sizes * ratio + 0.5).long().clamp(min=1)
        return self.encode(self.normalize(images, sizes), self.normalize(anchor_images, anchor_sizes))

    def encode(self, x: Tensor, anchor: Tensor | None = None) -> Tensor:
        """Normalised, padded (B, 3, H, W) -> (B, out_channels, H/stride, W/stride).

        anchor: normalised, padded small view (B, 3, a, b); by default x is resized bilinearly, without
        antialiasing, to `anchor` pixels on its long side and, to keep its shape, on the other side in
        proportion, rounded up to a multiple of 16.
        """
        views = [x]
        if self.anchor is not None:
            views.append(self._small(x) if anchor is None else anchor)
        elif anchor is not None:
            raise UserError("anchor images were given, but this encoder's `anchor` is null: set it (HRSAM++)")
        maps = tuple(_grid(view) for view in views)
        embedded = zip(map(self.patch_embed, views), map(self._positions, maps), strict=True)
        x = torch.cat([tokens + positions for tokens, positions in embedded], 1)
        lengths = tuple(h * w for h, w in maps)
        total: Tensor | None = None
        for number, block in enumerate(self.blocks):
            tap = self.tap_of.get(number)
            if tap is not None:
                x = self._run(self.scans[tap], x, lengths)
            x = self._run(block, x, maps)
            if tap is None:
                continue
            if self.anchor is not None:
                x = self._run(self.joint_scans[tap], x, (sum(lengths),))
            tapped = self.taps[tap](x, maps)
            total = tapped if total is None else total + tapped
        assert total is not None
        fused = total.permute(0, 3, 1, 2)
        if self.upsample > 1:
            fused = F.interpolate(fused, scale_factor=self.upsample, mode="bilinear", align_corners=False)
        fused = self.out_conv(fused).permute(0, 2, 3, 1).float()
        with torch.autocast(fused.device.type, enabled=False):
            return self.out_norm(fused).permute(0, 3, 1, 2).contiguous()

    @torch.no_grad()
    def init_output(self, mean: Tensor, std: Tensor) -> dict[str, float]:
        """Start the output at the teacher's channel mean and standard deviation, (out_channels,) each.

        Returns the output norm's learning-rate factors, the mean deviation: Adam's steps do not know how small
        these weights are, and at the full rate they fall to zero (predicting the mean) before a map is learnt.
        """
        self.out_norm.bias.copy_(mean)
        self.out_norm.weight.copy_(std)
        return dict.fromkeys(("out_norm.weight", "out_norm.bias"), float(std.mean()))

    def layer_ids(self) -> dict[str, int]:
        """Depth of each parameter for layer-wise learning rates: i in block i, elsewhere `depth` (exempt)."""
        names = (name for name, _ in self.named_parameters())
        return {name: int(name.split(".")[1]) if name.startswith("blocks.") else len(self.blocks) for name in names}

    def layer_scales(self, decay: float) -> dict[str, float]:
        """Learning-rate factor decay^(depth - i) of each parameter of block i; 1 for all others."""
        return {name: decay ** (len(self.blocks) - depth) for name, depth in self.layer_ids().items()}

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should spare: all vectors, and the tables below."""
        tables = ("pos_embed", "padding", "A_log", "gamma")
        return {name for name, value in self.named_parameters() if value.ndim < 2 or name.rsplit(".", 1)[-1] in tables}

    def _run(self, module: Callable[..., Tensor], x: Tensor, layout: Sequence[Any]) -> Tensor:
        if self.checkpoint_blocks and self.training and torch.is_grad_enabled():
            return checkpoint(module, x, layout, use_reentrant=False)
        return module(x, layout)

    def _small(self, x: Tensor) -> Tensor:
        """The anchor made from the padded input."""
        assert self.anchor is not None
        long = max(x.shape[2:])
        h, w = (-(-self.anchor * side // (long * PATCH)) * PATCH for side in x.shape[2:])
        return F.interpolate(x, (h, w), mode="bilinear", align_corners=False)

    def _positions(self, map_: tuple[int, int]) -> Tensor:
        """Position embedding on a grid: (1, h * w, C)."""
        grid = self.pos_embed[:, 1:].unflatten(1, (self.pos_grid, self.pos_grid)).permute(0, 3, 1, 2)
        resized = F.interpolate(grid, map_, mode="bilinear", align_corners=False)
        return resized.flatten(2).transpose(1, 2)


def build_hrsam(size: str, **overrides: Any) -> HRSAM:
    """An encoder of one of `SIZES`, with any constructor argument overridden."""
    if size not in SIZES:
        raise UserError(f"encoder size {size!r} is not one of {', '.join(SIZES)}")
    return HRSAM(**{**SIZES[size], **overrides})


def _grid(x: Tensor) -> tuple[int, int]:
    """Token grid of a view; UserError where its sides are no multiples of the patch."""
    height, width = x.shape[2:]
    if height % PATCH or width % PATCH:
        raise UserError(f"encoder input of {height} x {width} pixels: pad both sides to a multiple of {PATCH}")
    return height // PATCH, width // PATCH


def _check(
    depth: int, width: int, heads: int, window: int, taps: Sequence[int], state: int, cycles: int,
    anchor: int | None, drop_path: float, stem: str, upsample: int,
) -> None:  # fmt: skip
    """Refuse arguments that contradict each other, naming the key."""
    if width % (4 * heads):
        raise UserError(f"encoder width {width}: with heads {heads} it must be a multiple of {4 * heads}")
    if window < 2 or window % 2:
        raise UserError(f"encoder window {window}: half a window is the shift, so it must be even")
    if not taps or list(taps) != sorted(set(taps)) or not 0 <= taps[0] <= taps[-1] < depth:
        raise UserError(f"encoder taps {tuple(taps)}: give increasing block numbers from 0 to {depth - 1}")
    if min(state, cycles) < 1:
        raise UserError(f"encoder state {state} and cycles {cycles} must be at least 1")
    if anchor is not None and (anchor < PATCH or anchor % PATCH):
        raise UserError(f"encoder anchor {anchor}: give a multiple of {PATCH} pixels, or null for HRSAM")
    if not 0 <= drop_path < 1:
        raise UserError(f"encoder drop_path {drop_path} must lie in [0, 1)")
    if stem not in ("patch", "conv") or (stem == "conv" and width % 8):
        raise UserError(f"encoder stem {stem!r} with width {width}: 'patch', or 'conv' with a multiple of 8")
    if upsample not in (1, 2, 4):
        raise UserError(f"encoder upsample {upsample}: 1, 2 or 4")
