"""Losses: segmentation masks."""

from hrsam_lit.losses.masks import bce_loss, dice_loss, normalized_focal_loss

__all__ = ["bce_loss", "dice_loss", "normalized_focal_loss"]
