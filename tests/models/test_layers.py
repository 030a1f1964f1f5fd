"""Parts of the HRSAM encoder against their definitions."""

import pytest
import torch
import torch.nn.functional as F

from hrsam_kernels.cycle_scan import cycle_scan
from hrsam_lit.models.layers import ConvStem, CycleScanBlock, PatchEmbed, Tap, WindowBlock, drop_path


def block(**options):
    defaults = {
        "shifted": True,
        "shift_single_window": True,
        "rotary_scale": 0.5,
        "drop_path": 0.0,
        "drop_path_per_token": False,
    }
    return WindowBlock(16, 2, 4, 2.0, **{**defaults, **options})


def test_patch_embedding_is_a_convolution_of_stride_16():
    embed = PatchEmbed(8)
    images = torch.randn(2, 3, 48, 80)
    expected = embed.proj(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(images), expected)


@pytest.mark.parametrize("stem", [PatchEmbed, ConvStem])
def test_both_stems_centre_every_token_on_its_patch(stem):
    """What a token of an 8 x 10 grid sees lies symmetrically around its 16 x 16 pixels."""
    images = torch.zeros(1, 3, 128, 160, requires_grad=True)
    tokens = stem(16)(images)
    assert tokens.shape == (1, 8 * 10, 16)
    tokens[0, 3 * 10 + 6].sum().backward()
    seen = images.grad[0].abs().sum(0) > 0
    for lines, first in ((seen.any(1), 3 * 16), (seen.any(0), 6 * 16)):
        touched = lines.nonzero().flatten()
        assert touched.min() + touched.max() == 2 * first + 15
        assert touched.min() <= first


def test_drop_path_keeps_the_mean_and_drops_whole_images():
    kept = drop_path(torch.ones(4000, 3, 2), 0.3, per_token=False)
    assert sorted(kept.unique().tolist()) == pytest.approx([0.0, 1 / 0.7])
    assert torch.equal(kept, kept[:, :1, :1].expand_as(kept))
    assert kept.mean().item() == pytest.approx(1.0, abs=0.05)


def test_drop_path_per_token_drops_single_tokens():
    kept = drop_path(torch.ones(2, 4000, 2), 0.2, per_token=True)
    assert torch.equal(kept[..., 0], kept[..., 1])
    for image in kept[..., 0]:
        assert (image == 0).float().mean().item() == pytest.approx(0.2, abs=0.03)
        assert image.mean().item() == pytest.approx(1.0, abs=0.05)


def test_drop_path_is_off_in_evaluation_and_random_in_training():
    torch.manual_seed(0)
    dropping, plain = block(drop_path=0.5, drop_path_per_token=True), block()
    plain.load_state_dict(dropping.state_dict())
    x = torch.randn(2, 35, 16)
    maps = ((5, 7),)
    torch.testing.assert_close(dropping.eval()(x, maps), plain(x, maps))
    dropping.train()
    assert not torch.equal(dropping(x, maps), dropping(x, maps))


@pytest.mark.parametrize(
    ("shifted", "single", "maps", "expected"),
    [
        (False, True, ((8, 8), (4, 4)), (0, 0)),
        (True, True, ((8, 8), (4, 4)), (2, 2)),
        (True, False, ((8, 8), (4, 4)), (2, 0)),
        (True, False, ((8, 8), (4, 5)), (2, 2)),
    ],
)
def test_which_maps_are_shifted(shifted, single, maps, expected):
    assert block(shifted=shifted, shift_single_window=single).shifts(maps) == expected


def test_padding_stands_after_the_norm_and_before_the_projection():
    """A map in one window: attention over its tokens and 16 - 6 copies of the padding vector."""
    layer = block(shifted=False, rotary_scale=0.0)
    torch.nn.init.normal_(layer.attn.padding)
    x = torch.randn(1, 6, 16)
    out = layer.attn(layer.norm1(x), ((2, 3),), (0,))
    filled = torch.cat((layer.norm1(x), layer.attn.padding.expand(1, 10, 16)), 1)
    q, k, v = layer.attn.qkv(filled).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(out, layer.attn.proj(mixed[:, :6]))


def test_scan_block_is_the_gated_scan_of_the_paper():
    layer = CycleScanBlock(12, 4, 3)
    x = torch.randn(2, 30, 12)
    u, z = F.silu(layer.in_proj(layer.in_norm(x))).chunk(2, -1)
    step, B, C = layer.ssm_proj(u).split((12, 4, 4), -1)
    arguments = (F.softplus(step + layer.dt_bias), -layer.A_log.exp(), B, C, layer.D, layer.gamma)
    y = cycle_scan(u, *arguments, backend="reference")
    torch.testing.assert_close(layer(x, (30,)), x + layer.out_proj(z * layer.out_norm(y)))


def test_scan_block_starts_as_published():
    layer = CycleScanBlock(64, 8, 3)
    torch.testing.assert_close(layer.A_log.exp(), torch.arange(1.0, 9.0).repeat(64, 1))
    steps = F.softplus(layer.dt_bias)
    assert steps.min() >= 1e-3 * 0.99
    assert steps.max() <= 1e-1 * 1.01
    assert layer.ssm_proj.weight[:64].abs().max() <= 64**-0.5
    assert layer.ssm_proj.bias.abs().max() == 0
    assert (layer.gamma == 1).all()
    assert (layer.D == 1).all()


def test_scan_block_takes_several_sequences_apart():
    layer = CycleScanBlock(12, 4, 2)
    x = torch.randn(2, 30, 12)
    apart = torch.cat((layer(x[:, :20], (20,)), layer(x[:, 20:], (10,))), 1)
    torch.testing.assert_close(layer(x, (20, 10)), apart)
    assert not torch.allclose(layer(x, (30,)), apart)


def test_tap_concatenates_full_then_enlarged_anchor_after_one_norm():
    tap = Tap(8, 6, scales=2)
    torch.nn.init.normal_(tap.fuse_norm.weight)
    x = torch.randn(2, 24 + 6, 8)
    small = x[:, 24:].transpose(1, 2).unflatten(2, (2, 3))
    large = F.interpolate(small, (4, 6), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    both = torch.cat((tap.fuse_norm(x[:, :24].unflatten(1, (4, 6))), tap.fuse_norm(large)), -1)
    torch.testing.assert_close(tap(x, ((4, 6), (2, 3))), tap.norm(tap.proj(both)))
