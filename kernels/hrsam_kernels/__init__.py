"""Tensor operators of HRSAM; they need nothing but PyTorch."""

from hrsam_kernels.cycle_scan import cycle_scan
from hrsam_kernels.window_attention import window_attention

__all__ = ["cycle_scan", "window_attention"]
