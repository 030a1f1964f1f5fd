"""HRSAM's released weights: the authors' key names to ours and back (reference: section 5.6)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from hrsam_lit.errors import UserError
from hrsam_lit.models.hrsam import HRSAM
from hrsam_lit.models.normalize import PIXEL_MEAN, PIXEL_STD

# Ours -> theirs; the first pattern that matches the whole beginning of a key wins.
_NAMES = (
    (r"joint_scans\.(\d+)\.", r"ms_mamba_blocks.\1."),
    (r"scans\.(\d+)\.", r"mamba_blocks.\1."),
    (r"taps\.(\d+)\.fuse_norm\.", r"multi_scale_fusion.\1.0."),
    (r"taps\.(\d+)\.proj\.", r"lateral_convs.\1.0."),
    (r"taps\.(\d+)\.norm\.", r"lateral_convs.\1.1."),
    (r"out_conv\.", "out_conv.0."),
    (r"out_norm\.", "out_conv.2."),
)
_IN_SCANS = (("in_proj.", "in_proj.0."), ("dt_bias", "ssm_proj_bias"), ("A_log", "As_log"))


def authors_key(key: str, plusplus: bool) -> str:
    """The authors' name, without the `backbone.` prefix, of one of our parameters."""
    for pattern, name in _NAMES:
        renamed, count = re.subn("^" + pattern, name, key)
        if not count:
            continue
        if "mamba_blocks" in renamed:
            if plusplus and renamed.startswith("mamba_blocks"):
                renamed = "ss_" + renamed
            for ours, theirs in _IN_SCANS:
                renamed = renamed.replace(f".{ours}", f".{theirs}")
            if renamed.endswith(".D"):
                renamed += "s"
        return renamed
    return key


def from_authors(
    state: Mapping[str, Any],
    *,
    colour: Literal["rgb", "bgr"],
    heads: int = 12,
    window: int = 16,
    taps: Sequence[int] = (2, 5, 8, 11),
    anchor: int = 512,
    **overrides: Any,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Our state dict and the arguments of `HRSAM` for the authors' encoder weights.

    state: flat, or inside `state_dict`; with or without `backbone.` prefixes; `neck.*`, `decode_head.*`
    and the rotary buffer are left alone. colour: channel order the weights were trained on (the
    released ones: "bgr"); their patch embedding and pixel statistics are turned round, so that the
    result takes RGB (with `bgr=True` the model turns its input instead). heads, window, taps and anchor
    cannot be seen in the weights; anchor is used only where they are HRSAM++'s; overrides: further
    arguments. Raises UserError naming every key that is missing, unexpected or of another shape.
    """
    flat = _encoder_part(state)
    arguments = _arguments(flat, heads=heads, window=window, taps=taps, anchor=anchor)
    arguments |= overrides
    turned = colour == "bgr" and not arguments.get("bgr", False)
    if turned:
        arguments = {"pixel_mean": PIXEL_MEAN[::-1], "pixel_std": PIXEL_STD[::-1], **arguments}
    with torch.device("meta"):
        expected = HRSAM(**arguments).state_dict()
    names = {key: authors_key(key, arguments["anchor"] is not None) for key in expected}
    converted, faults = {}, [f"{key} unexpected" for key in flat if key not in set(names.values())]
    for key, name in names.items():
        if name not in flat:
            faults.append(f"{name} missing")
            continue
        value = flat[name]
        if key.endswith(".gamma"):
            value = value.squeeze(-1)
        if value.shape != expected[key].shape:
            faults.append(f"{name} is {tuple(value.shape)}, not {tuple(expected[key].shape)}")
        converted[key] = value.float()
    if faults:
        raise UserError(f"not the authors' weights of HRSAM({arguments}): {'; '.join(faults)}")
    if turned:
        converted["patch_embed.proj.weight"] = converted["patch_embed.proj.weight"].flip(1)
    return converted, arguments


def load_authors(state: Mapping[str, Any], *, colour: Literal["rgb", "bgr"], **arguments: Any) -> HRSAM:
    """An encoder with the authors' weights; arguments as for `from_authors`."""
    converted, built = from_authors(state, colour=colour, **arguments)
    model = HRSAM(**built)
    model.load_state_dict(converted)
    return model


def to_authors(model: HRSAM, *, colour: Literal["rgb", "bgr"] = "bgr") -> dict[str, Tensor]:
    """The authors' flat state dict, `backbone.` prefix included; inverse of `load_authors`."""
    state = {}
    for key, value in model.state_dict().items():
        if key.endswith(".gamma"):
            value = value.unsqueeze(-1)
        if (colour == "bgr") != model.normalize.bgr and key == "patch_embed.proj.weight":
            value = value.flip(1)
        state[f"backbone.{authors_key(key, model.anchor is not None)}"] = value
    return state


def _encoder_part(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Encoder weights without prefix, wrapper and buffers."""
    wrapped = state.get("state_dict", state)
    prefixed = any(key.startswith("backbone.") for key in wrapped)
    flat = {
        key.removeprefix("backbone."): value
        for key, value in wrapped.items()
        if isinstance(value, Tensor) and (key.startswith("backbone.") or not prefixed)
    }
    others = ("neck.", "decode_head.", "rope.")
    return {key: value for key, value in flat.items() if not key.startswith(others)}


def _arguments(
    flat: Mapping[str, Tensor], *, heads: int, window: int, taps: Sequence[int], anchor: int
) -> dict[str, Any]:
    """What the shapes say about the constructor's arguments."""
    plusplus = any(key.startswith("ms_mamba_blocks.") for key in flat)
    scan = "ss_mamba_blocks.0." if plusplus else "mamba_blocks.0."
    try:
        width = flat["pos_embed"].shape[2]
        return {
            "depth": 1 + max(int(key.split(".")[1]) for key in flat if key.startswith("blocks.")),
            "width": width,
            "heads": heads,
            "window": window,
            "mlp_ratio": flat["blocks.0.mlp.fc1.weight"].shape[0] / width,
            "taps": tuple(taps),
            "state": flat[f"{scan}As_log"].shape[1],
            "cycles": flat[f"{scan}gamma"].shape[1],
            "out_channels": flat["out_conv.0.weight"].shape[0],
            "anchor": anchor if plusplus else None,
            "pos_grid": round((flat["pos_embed"].shape[1] - 1) ** 0.5),
        }
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"not the authors' HRSAM weights: {error} is not among their {len(flat)} keys") from None
