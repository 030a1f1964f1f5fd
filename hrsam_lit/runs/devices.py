"""What the machine at hand computes fast."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

Precision = Literal["bf16-mixed", "32-true"]


def fast_precision() -> Precision:
    """bf16 autocast where the hardware multiplies in bf16 (most GPUs; CPUs with avx512_bf16 or amx), else fp32."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except FileNotFoundError:  # not Linux
        return "32-true"
    return "bf16-mixed" if " avx512_bf16" in flags or " amx_bf16" in flags else "32-true"
