"""Augmentation by albumentations: a sample's changes follow from (seed, epoch, sample) alone."""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hrsam_lit.errors import UserError

# Colour distortion of HRSAM's configs (colaug): brightness +-32 of 255, contrast and saturation 0.5-1.5,
# hue +-18 of OpenCV's 180 steps, each with probability 0.5.
_COLOUR: list[dict[str, Any]] = [
    {"name": "RandomBrightnessContrast", "brightness_limit": 32 / 255, "contrast_limit": 0.0, "p": 0.5},
    {"name": "RandomBrightnessContrast", "brightness_limit": 0.0, "contrast_limit": 0.5, "p": 0.5},
    {
        "name": "ColorJitter",
        "brightness": (1, 1),
        "contrast": (1, 1),
        "saturation": (0.5, 1.5),
        "hue": (0, 0),
        "p": 0.5,
    },
    {
        "name": "ColorJitter",
        "brightness": (1, 1),
        "contrast": (1, 1),
        "saturation": (1, 1),
        "hue": (-18 / 180, 18 / 180),
        "p": 0.5,
    },
]
PRESETS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "distill": _COLOUR,
    "finetune": [{"name": "HorizontalFlip", "p": 0.5}, *_COLOUR],
}


class Augmentation:
    """A preset by name, or albumentations transforms in order, each {"name": class, argument: value, ...}.

    changes_view: whether any of them moves pixels, so that a cached embedding would no longer fit.
    Raises UserError for an unknown preset, transform, argument or value.
    """

    def __init__(self, preset: str | Sequence[Mapping[str, Any]] = "none") -> None:
        if isinstance(preset, str):
            if preset not in PRESETS:
                raise UserError(f"augment={preset!r}: one of {', '.join(PRESETS)} is needed")
            preset = PRESETS[preset]
        self._pipeline: Any = None
        self.changes_view = False
        if preset:
            import albumentations  # takes more than a second

            transforms = [_transform(albumentations, dict(one)) for one in preset]
            self._pipeline = albumentations.Compose(transforms)
            colour = albumentations.ImageOnlyTransform
            self.changes_view = not all(isinstance(one, colour) for one in transforms)

    def __call__(
        self, image: np.ndarray, masks: list[np.ndarray], seed: tuple[int, ...]
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """RGB uint8 (H, W, 3) and boolean (H, W) masks, changed together as `seed` says."""
        if self._pipeline is None:
            return image, masks
        first, second = np.random.SeedSequence(seed).generate_state(2)
        # Not set_random_seed: it gives every transform the same stream, so that all are applied or none.
        self._pipeline.set_random_state(np.random.default_rng(first), random.Random(int(second)))
        values = {"image": image, **({"masks": [mask.astype(np.uint8) for mask in masks]} if masks else {})}
        changed = self._pipeline(**values)
        masks = [mask.astype(bool) for mask in changed.get("masks", ())]
        return np.ascontiguousarray(changed["image"]), masks


def _transform(library: Any, arguments: dict[str, Any]) -> Any:
    name = arguments.pop("name", None)
    kind = getattr(library, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, library.BasicTransform)):
        raise UserError(f"augment: {name!r} is no albumentations transform; give its class name as 'name'")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a misspelt argument is only a warning there
        try:
            return kind(**arguments)
        except (UserWarning, ValueError, TypeError) as error:
            raise UserError(f"augment: {name}: {' '.join(str(error).split())}") from error
