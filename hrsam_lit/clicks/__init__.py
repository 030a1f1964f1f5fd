"""Simulated clicks: the rules of evaluation and the samplers of training."""

from hrsam_lit.clicks.rules import Click, next_click
from hrsam_lit.clicks.sampling import correction_rounds, sample_clicks

__all__ = ["Click", "correction_rounds", "next_click", "sample_clicks"]
