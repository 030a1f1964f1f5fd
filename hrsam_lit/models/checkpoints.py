"""Models on disk: a folder with `model.safetensors` and `config.json`, and weights taken from elsewhere."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hrsam_lit.errors import UserError
from hrsam_lit.files import write_json
from hrsam_lit.models.decoder import SamDecoder
from hrsam_lit.models.encoder import ImageEncoder
from hrsam_lit.models.hrsam import HRSAM
from hrsam_lit.models.promptable import Promptable
from hrsam_lit.models.tinyvit import TinyViT

FORMAT = 1
ENCODERS: dict[str, type[ImageEncoder]] = {"HRSAM": HRSAM, "TinyViT": TinyViT}


def save_model(model: Promptable, folder: str | Path, provenance: Mapping[str, Any] | None = None) -> Path:
    """Write a model's folder, whole or not at all; an older one of that name is replaced.

    provenance: plain values kept in `config.json` (training run, teacher, versions).
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{kind}") for kind in ("new", "old"))
    fresh.mkdir()
    try:
        state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        save_file(state, fresh / "model.safetensors")
        config = {
            "format": FORMAT,
            "encoder": {"class": type(model.encoder).__name__, "arguments": model.encoder.config},
            "image_size": model.image_size,
            "mode": model.mode,
            "first_click": model.first_click,
            "provenance": dict(provenance or {}),
        }
        write_json(fresh / "config.json", config)
        if folder.exists():
            os.replace(folder, old)
        os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return folder


def load_model(folder: str | Path) -> Promptable:
    """Open a folder written by `save_model`; weights on the CPU, evaluation mode.

    Raises UserError where the folder, its format or its keys are not ours.
    """
    folder = Path(folder)
    config = read_config(folder)
    spec = config["encoder"]
    if spec["class"] not in ENCODERS:
        raise UserError(f"{folder}/config.json: encoder {spec['class']!r} is not one of {', '.join(ENCODERS)}")
    model = Promptable(
        ENCODERS[spec["class"]](**spec["arguments"]),
        SamDecoder(),
        image_size=config["image_size"],
        mode=config["mode"],
        first_click=config["first_click"],
    )
    take_state(model, read_safetensors(folder / "model.safetensors"), str(folder))
    return model.eval()


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of one of our model folders; UserError where it is none."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no model: config.json is missing") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error})") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT or "encoder" not in config:
        raise UserError(f"{path} does not describe a hrsam_lit model of format {FORMAT}")
    return config


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; UserError where it is missing, cut or not one."""
    try:
        return load_file(path)
    except (FileNotFoundError, SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}") from None


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A Lightning checkpoint, tensors and plain values only; nothing in it is ever executed."""
    try:
        with open(path, "rb") as file:
            whole = zipfile.is_zipfile(file)
        if not whole:  # what torch.save writes; anything else would reach the unpickler as bare bytes
            raise UserError(f"{path} is no checkpoint, or is cut short")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (pickle.UnpicklingError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path} is no checkpoint of tensors and plain values ({first})") from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path} is no Lightning checkpoint: it has no state_dict")
    return checkpoint


def read_weights(source: str | Path) -> dict[str, Tensor]:
    """Weights named `encoder.*` and `decoder.*` from a model folder or a Lightning checkpoint of ours."""
    source = Path(source)
    if source.is_dir():
        read_config(source)
        return read_safetensors(source / "model.safetensors")
    state = read_checkpoint(source)["state_dict"]
    return {key.removeprefix("model."): value for key, value in state.items()}


def init_encoder(encoder: ImageEncoder, source: str | Path) -> None:
    """Load an encoder's weights from a model folder or checkpoint; UserError where they are another model's."""
    state = {
        key.removeprefix("encoder."): value for key, value in read_weights(source).items() if key.startswith("encoder.")
    }
    take_state(encoder, state, str(source))


def load_decoder(source: str | Path) -> SamDecoder:
    """SAM's prompt encoder and mask decoder from a safetensors file, a teacher's folder or a model folder."""
    source = Path(source)
    if source.is_dir():
        choices = [source / "decoder.safetensors", source / "model.safetensors"]
        found = [path for path in choices if path.is_file()]
        if not found:
            raise UserError(f"{source} holds no SAM decoder: neither {choices[0].name} nor {choices[1].name} is there")
        path = found[0]
    else:
        path = source
    state = read_safetensors(path)
    if any(key.startswith("decoder.") for key in state):
        state = {key.removeprefix("decoder."): value for key, value in state.items() if key.startswith("decoder.")}
    decoder = SamDecoder()
    decoder.load_sam(state, str(path))
    return decoder.eval()


def take_state(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state` strictly; a UserError names `source` and the first keys that do not fit."""
    expected = module.state_dict()
    faults = [f"{key} missing" for key in expected if key not in state]
    faults += [f"{key} unexpected" for key in state if key not in expected]
    faults += [
        f"{key} is {tuple(state[key].shape)}, not {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UserError(f"{source} holds another model's weights: {'; '.join(faults[:3])}{more}")
    module.load_state_dict(state)
