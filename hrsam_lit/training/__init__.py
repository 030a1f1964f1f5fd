"""The LightningModules: distillation of an encoder, and mask training with simulated clicks."""

from hrsam_lit.training.distill import DistillModule
from hrsam_lit.training.optim import OptimizerConfig
from hrsam_lit.training.segment import LossWeights, SegmentModule

__all__ = ["DistillModule", "LossWeights", "OptimizerConfig", "SegmentModule"]
