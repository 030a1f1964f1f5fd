"""Distil a frozen Segment Anything teacher into a small, fast, high-resolution student."""

import os

# albumentations asks the package index for its newest version on import; every worker would.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__version__ = "0.1.0"
