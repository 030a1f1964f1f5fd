"""The HRSAM / HRSAM++ encoder: golden outputs of the authors' code, counts, batches, options."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from hrsam_kernels.cycle_scan import chunked
from hrsam_kernels.window_attention import plan
from hrsam_lit.errors import UserError
from hrsam_lit.models.authors import load_authors
from hrsam_lit.models.hrsam import HRSAM, build_hrsam

SMALL = {
    "depth": 4,
    "width": 16,
    "heads": 2,
    "window": 4,
    "taps": (1, 3),
    "state": 3,
    "cycles": 2,
    "out_channels": 8,
    "pos_grid": 4,
}


def small(**options):
    """A tiny encoder whose every parameter is random, so that each one shows in the output."""
    model = HRSAM(**{**SMALL, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture(params=["hrsam_square", "hrsam_plusplus_square"])
def golden(request, shared):
    with safe_open(shared / "golden" / f"{request.param}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    weights = {key[8:]: value for key, value in tensors.items() if key.startswith("weights.")}
    asked = {"heads": config["heads"], "window": config["ws"], "taps": config["out_idx"]}
    model = load_authors(weights, colour="rgb", anchor=config.get("down", [512])[0], **asked)
    return model.eval(), tensors["input"], tensors["output"]


def test_output_equals_the_authors_encoder(golden):
    model, x, output = golden
    with torch.no_grad():
        torch.testing.assert_close(model.encode(x), output, rtol=0, atol=2e-5)


def test_a_wrong_norm_epsilon_would_be_seen(golden):
    model, x, output = golden
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    with torch.no_grad():
        assert (model.encode(x) - output).abs().max() > 2e-5


@pytest.mark.parametrize(
    ("anchor", "total", "parts"),
    [
        (None, 96_369_152, {"scans": 9_772_288, "joint_scans": 0, "taps": 788_480}),
        (512, 106_934_016, {"scans": 9_772_288, "joint_scans": 9_772_288, "taps": 1_574_912 + 6_144}),
    ],
)
def test_parameter_counts_of_the_paper(anchor, total, parts):
    with torch.device("meta"):
        model = HRSAM(anchor=anchor)

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    assert count(model) == total
    assert count(model.patch_embed) == 590_592
    assert model.pos_embed.numel() == 151_296
    assert count(model.blocks) == 85_063_680
    assert count(model.out_conv) + count(model.out_norm) == 2_816
    assert {name: count(getattr(model, name)) for name in parts} == parts


def test_tiny_is_small():
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in build_hrsam("tiny", anchor=256).parameters()) < 6e6


@settings(max_examples=15, deadline=None)
@given(
    images=st.integers(1, 8),
    h=st.integers(1, 7),
    w=st.integers(1, 7),
    anchor=st.sampled_from([None, 32, 48]),
    seed=st.integers(0, 2**31),
)
def test_every_image_of_a_batch_gets_its_own_result(images, h, w, anchor, seed):
    torch.manual_seed(seed)
    model = small(anchor=anchor)
    x = torch.randn(images, 3, 16 * h, 16 * w)
    with torch.no_grad():
        together = model.encode(x)
        assert together.shape == (images, 8, h, w)
        alone = torch.cat([model.encode(image[None]) for image in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"anchor": 32}, {"anchor": 48, "stem": "conv", "upsample": 2}], ids=str)
def test_gradient_reaches_every_parameter(options):
    model = small(**options).train()
    model(torch.randint(0, 256, (2, 3, 80, 112), dtype=torch.uint8)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert model.pos_embed.grad[:, 0].abs().max() == 0  # the class token's slot is not used


@pytest.mark.parametrize(("upsample", "stride"), [(1, 16), (2, 8), (4, 4)])
def test_stride(upsample, stride):
    model = small(upsample=upsample)
    assert model.stride == stride
    assert model(torch.zeros(1, 3, 48, 80)).shape == (1, 8, 48 // stride, 80 // stride)


def test_odd_blocks_are_shifted_and_scans_come_before_taps():
    model = HRSAM(**{**SMALL, "anchor": 32})
    assert [block.shifted for block in model.blocks] == [False, True, False, True]
    called = []
    for name, module in model.named_modules():
        if name.split(".")[0] in ("blocks", "scans", "joint_scans", "taps") and name.count(".") == 1:
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    model(torch.zeros(1, 3, 64, 64))
    stages = [
        ["blocks.0", "scans.0", "blocks.1", "joint_scans.0", "taps.0"],
        ["blocks.2", "scans.1", "blocks.3", "joint_scans.1", "taps.1"],
    ]
    assert called == stages[0] + stages[1]


def test_drop_path_rises_linearly_to_the_last_block():
    model = HRSAM(**{**SMALL, "drop_path": 0.3, "drop_path_per_token": True})
    assert [block.drop_rate for block in model.blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert all(block.drop_per_token for block in model.blocks)


def test_forward_normalises_and_blanks_the_padding():
    model = small(anchor=32)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    sizes = torch.tensor([[64, 40], [33, 64]])
    mean, std = torch.tensor(model.config["pixel_mean"]), torch.tensor(model.config["pixel_std"])
    x = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    x[0, :, :, 40:] = 0
    x[1, :, 33:] = 0
    torch.testing.assert_close(model(images, sizes), model.encode(x), rtol=1e-4, atol=1e-4)


def test_the_default_anchor_is_the_padded_input_resized():
    model = small(anchor=32)
    x = torch.randn(2, 3, 64, 64)
    view = torch.nn.functional.interpolate(x, (32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model.encode(x), model.encode(x, view))


@pytest.mark.parametrize(
    ("hw", "expected"),
    [((64, 64), (32, 32)), ((64, 128), (16, 32)), ((80, 64), (32, 32)), ((160, 32), (32, 16))],
)
def test_the_default_anchor_keeps_the_aspect_ratio(hw, expected):
    assert small(anchor=32)._small(torch.zeros(1, 3, *hw)).shape[2:] == expected


def test_anchor_images_are_normalised_with_their_own_valid_area():
    model = small(anchor=32)
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    anchor = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8)
    sizes = torch.tensor([[64, 40]])
    expected = model.encode(model.normalize(images, sizes), model.normalize(anchor, torch.tensor([[48, 30]])))
    torch.testing.assert_close(model(images, sizes, anchor), expected)
    junk = anchor.clone()
    junk[..., 30:] = 255
    torch.testing.assert_close(model(images, sizes, junk), expected)


def test_the_anchor_reaches_the_output():
    model = small(anchor=32)
    x = torch.randn(1, 3, 64, 64)
    views = torch.randn(2, 1, 3, 32, 32)
    assert not torch.allclose(model.encode(x, views[0]), model.encode(x, views[1]))


def test_checkpointed_blocks_give_the_same_gradients():
    plain = small(anchor=32).train()
    saving = HRSAM(**{**SMALL, "anchor": 32, "checkpoint_blocks": True}).train()
    saving.load_state_dict(plain.state_dict())
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    for model in (plain, saving):
        model(images).square().sum().backward()
    for (name, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, msg=name)


@pytest.mark.parametrize("amp", [False, True])
def test_training_after_prediction(amp):
    """Tables and scratch memory made under inference mode serve training."""
    plan.window_plan.cache_clear()
    plan.rotary_table.cache_clear()
    chunked._scratch.kept.clear()
    model, images = small(anchor=32), torch.randint(0, 256, (1, 3, 48, 80), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        with torch.inference_mode():
            predicted = model(images)
        trained = model.train()(images)
    torch.testing.assert_close(trained.detach(), predicted.clone())
    trained.sum().backward()


def test_tiny_runs_on_a_rectangle():
    model = build_hrsam("tiny", anchor=64)
    assert model.stride == 8
    assert model(torch.zeros(1, 3, 64, 96, dtype=torch.uint8)).shape == (1, 256, 8, 12)


def test_bfloat16_autocast_stays_near_float32_and_returns_float32():
    model = small(anchor=32)
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            low = model(images)
    assert low.dtype == torch.float32
    assert (low - exact).norm() / exact.norm() < 0.03


def test_the_output_starts_at_the_teachers_statistics():
    model = HRSAM(**SMALL)
    mean, std = torch.randn(8) * 0.1, torch.rand(8) * 0.1 + 0.05
    model.init_output(mean, std)
    maps = model(torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8))
    cells = maps.permute(0, 2, 3, 1).flatten(0, 2)
    standard = (cells - mean) / std
    torch.testing.assert_close(standard.mean(1), torch.zeros(200), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard.std(1, correction=0), torch.ones(200), atol=1e-2, rtol=0)


def test_layer_wise_rates_exempt_all_but_the_blocks():
    model = HRSAM(**{**SMALL, "anchor": 32})
    ids, scales = model.layer_ids(), model.layer_scales(0.9)
    assert set(ids) == set(scales) == {name for name, _ in model.named_parameters()}
    assert ids["blocks.0.norm1.weight"] == 0
    assert scales["blocks.0.norm1.weight"] == pytest.approx(0.9**4)
    assert scales["blocks.3.attn.padding"] == pytest.approx(0.9)
    assert {scales[name] for name in ids if not name.startswith("blocks.")} == {1.0}


def test_what_weight_decay_spares():
    model = HRSAM(**SMALL)
    spared, names = model.no_weight_decay(), dict(model.named_parameters())
    assert {"pos_embed", "blocks.0.attn.padding", "scans.1.A_log", "scans.0.gamma", "scans.0.D"} <= spared
    decayed = {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "scans.0.ssm_proj.weight"}
    assert decayed.isdisjoint(spared)
    assert all(name in spared for name, value in names.items() if value.ndim == 1)


def test_the_arguments_rebuild_the_model():
    model = small(anchor=32)
    again = HRSAM(**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 32, 48)
    assert torch.equal(again.eval().encode(x), model.encode(x))
    assert "normalize" not in " ".join(model.state_dict())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"width": 20}, "width 20"),
        ({"window": 5}, "window 5"),
        ({"taps": (3, 1)}, "taps"),
        ({"taps": (1, 4)}, "taps"),
        ({"taps": ()}, "taps"),
        ({"state": 0}, "state 0"),
        ({"anchor": 40}, "anchor 40"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"stem": "resnet"}, "stem 'resnet'"),
        ({"upsample": 3}, "upsample 3"),
    ],
    ids=str,
)
def test_contradictory_arguments_are_refused_by_name(options, named):
    with pytest.raises(UserError, match=named):
        HRSAM(**{**SMALL, **options})


def test_inputs_off_the_grid_and_needless_anchors_are_refused():
    model = small()
    with pytest.raises(UserError, match="40 x 64 pixels"):
        model(torch.zeros(1, 3, 40, 64))
    with pytest.raises(UserError, match="anchor"):
        model(torch.zeros(1, 3, 32, 32), anchor_images=torch.zeros(1, 3, 16, 16))
    with pytest.raises(UserError, match="'huge'"):
        build_hrsam("huge")
