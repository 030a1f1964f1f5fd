"""AdamW with layer-wise learning rates, and warm-up schedules that know their length from the config."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.nn import Parameter
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from hrsam_lit.errors import UserError
from hrsam_lit.models.encoder import ImageEncoder


@dataclass
class OptimizerConfig:
    """AdamW and its schedule; the defaults are HRSAM's distillation (reference: its released configs).

    lr: peak learning rate. layer_decay: factor a block below the last (1.0 is off; encoders say which
    parameters belong to which block). no_decay: what weight decay spares: "encoder", what the encoder names
    besides all vectors; "vectors", vectors and biases alone; "nothing". warmup_steps: linear from near zero;
    schedule: how the rate then falls to zero at the last step. decoder_lr: the decoder's learning rate,
    `lr` where it is null.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    no_decay: Literal["encoder", "vectors", "nothing"] = "encoder"
    warmup_steps: int = 1500
    schedule: Literal["linear", "cosine"] = "linear"
    decoder_lr: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"optimizer.layer_decay is {self.layer_decay}; it lies in (0, 1]")
        if self.lr <= 0 or self.warmup_steps < 0:
            raise UserError(f"optimizer.lr {self.lr} must be positive, optimizer.warmup_steps not negative")


def build_optimizer(
    encoder: ImageEncoder,
    decoder: nn.Module | None,
    config: OptimizerConfig,
    total_steps: int,
    factors: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Lightning's optimiser dictionary for an encoder and, where it is trained, a decoder.

    factors: further learning-rate factors of the encoder's parameters, by name.
    """
    if total_steps <= 0:
        raise UserError("trainer.max_steps must be set: the schedule's length is part of the config")
    groups: dict[tuple[float, float], list[Parameter]] = {}
    for rate, decay, parameter in _assign(encoder, decoder, config, factors or {}):
        groups.setdefault((rate, decay), []).append(parameter)
    optimizer = AdamW(
        [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()],
        lr=config.lr,
        betas=config.betas,
    )
    factor = schedule_factor(config, total_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}


def schedule_factor(config: OptimizerConfig, total_steps: int) -> Callable[[int], float]:
    """The factor on the peak learning rate at each optimiser step."""
    warmup = min(config.warmup_steps, total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return 1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2

    return factor


def _assign(
    encoder: ImageEncoder, decoder: nn.Module | None, config: OptimizerConfig, factors: Mapping[str, float]
) -> list[tuple[float, float, Parameter]]:
    """(learning rate, weight decay, parameter) of everything that is trained."""
    spared: set[str] = encoder.no_weight_decay() if config.no_decay == "encoder" else set()
    scales: dict[str, float] = encoder.layer_scales(config.layer_decay) if config.layer_decay < 1 else {}
    assigned = []
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            vector = parameter.ndim <= 1 and config.no_decay != "nothing"
            decay = 0.0 if vector or name in spared else config.weight_decay
            assigned.append((config.lr * scales.get(name, 1.0) * factors.get(name, 1.0), decay, parameter))
    for _, parameter in decoder.named_parameters() if decoder is not None else ():
        if parameter.requires_grad:
            vector = parameter.ndim <= 1 and config.no_decay != "nothing"
            assigned.append((config.decoder_lr or config.lr, 0.0 if vector else config.weight_decay, parameter))
    return assigned
