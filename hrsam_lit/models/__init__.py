"""Encoders, SAM's decoder, and frozen teachers: plain modules that know no trainer, dataset or tracker."""

from hrsam_lit.models.hrsam import HRSAM, build_hrsam
from hrsam_lit.models.tinyvit import TinyViT

__all__ = ["HRSAM", "TinyViT", "build_hrsam"]
