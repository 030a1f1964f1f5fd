"""Frozen teachers: a promptable model, where its weights came from, and how it sees an image."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from hrsam_lit.errors import UserError
from hrsam_lit.files import sha256
from hrsam_lit.geometry import Frame
from hrsam_lit.models.checkpoints import load_decoder
from hrsam_lit.models.decoder import DECODER_NORM_EPS, SamDecoder
from hrsam_lit.models.encoder import ImageEncoder
from hrsam_lit.models.normalize import Normalize
from hrsam_lit.models.onnx_weights import tinyvit_from_onnx
from hrsam_lit.models.promptable import Promptable

log = logging.getLogger(__name__)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class Teacher:
    """A frozen promptable model outside any module tree, so that no optimiser, checkpoint or EMA takes it.

    name: what a report calls it; weights_sha256: over its weight files; stride and channels: of its neck map.
    """

    def __init__(self, model: Promptable, name: str, weights_sha256: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.name = name
        self.weights_sha256 = weights_sha256
        self.stride = model.encoder.stride
        self.channels = model.decoder.channels

    def frame(self, image_hw: tuple[int, int]) -> Frame:
        """Where an image lies on the teacher's canvas."""
        return self.model.frame(image_hw)

    @torch.no_grad()
    def embed(self, images: Tensor, sizes: Tensor, precision: Literal["fp32", "bf16"] = "fp32") -> Tensor:
        """Neck maps (B, C, h, w) float32 of uint8 RGB images (B, 3, S, S) on the teacher's canvas."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return self.model.encode(images, sizes).float()

    def to(self, device: torch.device | str) -> Teacher:
        """Move the weights."""
        self.model.to(device)
        return self


class SamEncoder(ImageEncoder):
    """SAM's ViT image encoder of `transformers` behind the encoders' calling convention."""

    stride = 16

    def __init__(self, vision_encoder: nn.Module) -> None:
        super().__init__()
        self.normalize = Normalize()
        self.vision_encoder = vision_encoder

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Neck map (B, 256, 64, 64) of RGB images (B, 3, 1024, 1024), values 0..255."""
        output: Tensor = self.vision_encoder(self.normalize(images, sizes)).last_hidden_state
        return output


class OnnxEncoder(ImageEncoder):
    """Any ONNX image encoder run by onnxruntime on the CPU: for caching embeddings and for evaluation.

    The graph takes one normalised float32 image (1, 3, S, S) and returns the neck map first.
    """

    stride = 16

    def __init__(self, path: str | Path) -> None:
        import onnxruntime

        super().__init__()
        self.normalize = Normalize()
        self.path = str(path)
        self.session = onnxruntime.InferenceSession(self.path, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0]

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Neck maps (B, 256, h, w) of RGB images (B, 3, S, S), values 0..255."""
        if images.is_cuda:
            raise UserError(f"{self.path} runs on the CPU alone; cache its embeddings with `hrsam prep embed`")
        batch = self.normalize(images, sizes).numpy()
        maps = [self.session.run(None, {self.input.name: image[None]})[0] for image in batch]
        return torch.from_numpy(np.concatenate(maps))


def load_teacher(source: str | Path, decoder: str | Path | None = None) -> Teacher:
    """Open a real frozen teacher.

    source: a `transformers` SAM folder or hub id, a folder with `encoder.onnx` and `decoder.safetensors`
    (what `hrsam prep teacher` writes), or an ONNX encoder file with `decoder` naming its SAM decoder's weights.
    Raises UserError where no complete model is found: a teacher is never left with random weights.
    """
    path = Path(source)
    if path.suffix == ".onnx":
        if decoder is None:
            raise UserError(f"{path} is an encoder alone: name its SAM decoder weights too (--teacher-decoder FILE)")
        return _onnx_teacher(path, Path(decoder))
    if path.is_dir():
        if (path / "encoder.onnx").is_file():
            return _onnx_teacher(path / "encoder.onnx", Path(decoder or path / "decoder.safetensors"))
        return _sam_teacher(path, path.resolve().name)
    if HUB_ID.fullmatch(str(source)) and not path.exists():
        return _sam_teacher(_hub_folder(str(source)), str(source))
    raise UserError(f"teacher {source}: no such folder or file, and no hub id (organisation/name)")


def _hub_folder(repo_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(repo_id, allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"teacher {repo_id} could not be had from the hub ({reason}); give a local folder") from None


def _sam_teacher(folder: Path, name: str) -> Teacher:
    config_path = folder / "config.json"
    weights = sorted(folder.glob("*.safetensors"))
    if not config_path.is_file() or not weights:
        raise UserError(
            f"teacher {folder} holds no model: want config.json + model.safetensors of a SAM, "
            "or encoder.onnx + decoder.safetensors"
        )
    try:
        kind = json.loads(config_path.read_text(encoding="utf-8")).get("model_type")
    except json.JSONDecodeError as error:
        raise UserError(f"{config_path} is not JSON ({error})") from None
    if kind != "sam":
        raise UserError(f"teacher {folder} is a {kind!r} model; a 'sam' one is wanted")
    from transformers import SamConfig, SamModel

    config = SamConfig.from_pretrained(folder, local_files_only=True)
    config.mask_decoder_config.layer_norm_eps = DECODER_NORM_EPS
    model, info = SamModel.from_pretrained(
        folder, config=config, local_files_only=True, output_loading_info=True, dtype=torch.float32
    )
    missing = [key for key in info["missing_keys"] if "shared" not in key]
    if missing or info["mismatched_keys"]:
        raise UserError(f"teacher {folder} lacks weights: {', '.join(sorted(missing)[:3])} ...")
    decoder = SamDecoder()
    decoder.load_sam(model.state_dict(), str(folder))
    promptable = Promptable(SamEncoder(model.vision_encoder), decoder, image_size=config.vision_config.image_size)
    return Teacher(promptable, name, _hash(weights))


def _onnx_teacher(encoder: Path, decoder: Path) -> Teacher:
    for path in (encoder, decoder):
        if not path.exists():
            raise UserError(f"teacher file {path} is not there")
    module: ImageEncoder
    if _is_tinyvit(encoder):
        module = tinyvit_from_onnx(encoder)
    else:
        log.info("%s is no TinyViT: it runs on onnxruntime", encoder)
        module = OnnxEncoder(encoder)
    files = [encoder, decoder if decoder.is_file() else decoder / "model.safetensors"]
    return Teacher(Promptable(module, load_decoder(decoder)), f"{encoder.parent.name}/{encoder.stem}", _hash(files))


def _is_tinyvit(path: Path) -> bool:
    """Whether a graph is a TinyViT by the names its exporter left; a damaged file is named."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except DecodeError:
        raise UserError(f"{path} is no ONNX file, or is cut short") from None
    return {"layers.1.blocks.0.attn.qkv.bias", "layers.2.blocks.0.attn.qkv.bias"} <= {
        one.name for one in graph.initializer
    }


def _hash(files: list[Path]) -> str:
    return hashlib.sha256("".join(sha256(path) for path in files).encode()).hexdigest()
