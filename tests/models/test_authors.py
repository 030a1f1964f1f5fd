"""The authors' key names to ours and back."""

import pytest
import torch

from hrsam_lit.errors import UserError
from hrsam_lit.models.authors import authors_key, from_authors, load_authors, to_authors
from hrsam_lit.models.hrsam import HRSAM

SMALL = {"depth": 4, "width": 16, "heads": 2, "window": 4, "taps": (1, 3), "state": 3, "out_channels": 8}
ASKED = {"heads": 2, "window": 4, "taps": (1, 3)}


def model(anchor=None):
    built = HRSAM(**SMALL, anchor=anchor)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return built.eval()


@pytest.mark.parametrize(
    ("ours", "theirs", "theirs_plusplus"),
    [
        ("pos_embed", "pos_embed", "pos_embed"),
        ("patch_embed.proj.weight", "patch_embed.proj.weight", "patch_embed.proj.weight"),
        ("blocks.3.attn.padding", "blocks.3.attn.padding", "blocks.3.attn.padding"),
        ("scans.1.in_proj.bias", "mamba_blocks.1.in_proj.0.bias", "ss_mamba_blocks.1.in_proj.0.bias"),
        ("scans.0.ssm_proj.bias", "mamba_blocks.0.ssm_proj.bias", "ss_mamba_blocks.0.ssm_proj.bias"),
        ("scans.0.dt_bias", "mamba_blocks.0.ssm_proj_bias", "ss_mamba_blocks.0.ssm_proj_bias"),
        ("scans.0.A_log", "mamba_blocks.0.As_log", "ss_mamba_blocks.0.As_log"),
        ("scans.0.D", "mamba_blocks.0.Ds", "ss_mamba_blocks.0.Ds"),
        ("joint_scans.2.gamma", None, "ms_mamba_blocks.2.gamma"),
        ("taps.2.fuse_norm.bias", None, "multi_scale_fusion.2.0.bias"),
        ("taps.2.proj.weight", "lateral_convs.2.0.weight", "lateral_convs.2.0.weight"),
        ("taps.2.norm.bias", "lateral_convs.2.1.bias", "lateral_convs.2.1.bias"),
        ("out_conv.weight", "out_conv.0.weight", "out_conv.0.weight"),
        ("out_norm.weight", "out_conv.2.weight", "out_conv.2.weight"),
    ],
)
def test_names(ours, theirs, theirs_plusplus):
    if theirs is not None:
        assert authors_key(ours, plusplus=False) == theirs
    assert authors_key(ours, plusplus=True) == theirs_plusplus


@pytest.mark.parametrize("anchor", [None, 32])
@pytest.mark.parametrize("colour", ["rgb", "bgr"])
def test_round_trip(anchor, colour):
    built = model(anchor)
    state = to_authors(built, colour=colour)
    converted, arguments = from_authors(state, colour=colour, anchor=32, **ASKED)
    assert {key: arguments[key] for key in SMALL} == SMALL
    assert {key: arguments[key] for key in ("anchor", "pos_grid", "cycles")} == {
        "anchor": anchor,
        "pos_grid": 14,
        "cycles": 3,
    }
    for key, value in built.state_dict().items():
        assert torch.equal(converted[key], value), key


def test_shapes_are_theirs():
    shapes = {key: tuple(value.shape) for key, value in to_authors(model(32), colour="bgr").items()}
    assert shapes["backbone.ss_mamba_blocks.0.gamma"] == (16, 3, 1)
    assert shapes["backbone.ms_mamba_blocks.1.ssm_proj.weight"] == (16 + 2 * 3, 16)
    assert shapes["backbone.lateral_convs.0.0.weight"] == (8, 32)


@pytest.mark.parametrize("form", ["flat", "prefixed", "wrapped"])
def test_wrappers_prefixes_and_other_parts_are_seen_through(form):
    built = model()
    state = to_authors(built, colour="rgb")
    state["backbone.rope.freqs"] = torch.zeros(16)
    if form == "flat":
        state = {key.removeprefix("backbone."): value for key, value in state.items()}
    else:
        state |= {"neck.no_mask_embed.weight": torch.zeros(1), "decode_head.iou_token.weight": torch.zeros(1)}
    if form == "wrapped":
        state = {"state_dict": state, "meta": {"epoch": 1}}
    loaded = load_authors(state, colour="rgb", **ASKED).eval()
    x = torch.randn(1, 3, 64, 48)
    torch.testing.assert_close(loaded.encode(x), built.encode(x))


def test_weights_trained_on_bgr_take_rgb():
    """The same pixels, reversed for the authors' model, normalised by numbers that are not reversed."""
    theirs = model(32)
    ours = load_authors(to_authors(theirs, colour="rgb"), colour="bgr", anchor=32, **ASKED).eval()
    assert ours.config["pixel_mean"] == (103.53, 116.28, 123.675)
    assert ours.config["pixel_std"] == (57.375, 57.12, 58.395)
    rgb = torch.randint(0, 256, (2, 3, 64, 48), dtype=torch.uint8)
    torch.testing.assert_close(ours(rgb), theirs(rgb.flip(1)), rtol=0, atol=1e-5)
    assert not torch.allclose(ours(rgb.flip(1)), theirs(rgb.flip(1)), atol=1e-2)
    turning = load_authors(to_authors(theirs), colour="bgr", anchor=32, bgr=True, **ASKED).eval()
    same = load_authors(to_authors(theirs), colour="bgr", anchor=32, **ASKED).eval()
    torch.testing.assert_close(turning(rgb), same(rgb), rtol=0, atol=1e-5)
    assert torch.equal(
        to_authors(turning)["backbone.patch_embed.proj.weight"],
        to_authors(same)["backbone.patch_embed.proj.weight"],
    )


def test_every_fault_is_named():
    state = to_authors(model(), colour="rgb")
    del state["backbone.blocks.1.norm1.weight"]
    state["backbone.blocks.0.gate"] = torch.zeros(3)
    state["backbone.out_conv.2.bias"] = torch.zeros(9)
    with pytest.raises(UserError) as caught:
        from_authors(state, colour="rgb", **ASKED)
    message = str(caught.value)
    assert "blocks.1.norm1.weight missing" in message
    assert "blocks.0.gate unexpected" in message
    assert "out_conv.2.bias is (9,), not (8,)" in message


def test_other_weights_are_refused():
    with pytest.raises(UserError, match="pos_embed"):
        load_authors({"image_encoder.pos_embed": torch.zeros(1)}, colour="bgr")
