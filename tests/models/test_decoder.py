"""SAM's decoder: equal to transformers at 1024, batched as one by one, and right at other sizes."""

import pytest
import torch
from transformers import SamConfig, SamModel

from hrsam_lit.errors import UserError
from hrsam_lit.models.decoder import Prompts, SamDecoder


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(1)
    vision = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "mlp_dim": 8}
    return SamModel(SamConfig(vision_config=vision, mask_decoder_config={"layer_norm_eps": 1e-5})).eval()


@pytest.fixture(scope="module")
def decoder(sam):
    decoder = SamDecoder()
    decoder.load_sam(sam.state_dict(), "here")
    return decoder.eval().requires_grad_(False)


def prompts(count, per_image, clicks, side, logits=None):
    generator = torch.Generator().manual_seed(3)
    points = torch.rand(count, per_image, clicks, 2, generator=generator) * side
    labels = torch.randint(-1, 2, (count, per_image, clicks), generator=generator)
    return Prompts(points, labels, logits=logits)


def test_parameter_counts_are_sams(decoder):
    fixed = decoder.prompt_encoder.shared_embedding.positional_embedding.numel()
    assert sum(p.numel() for p in decoder.prompt_encoder.parameters()) - fixed == 6_220
    assert sum(p.numel() for p in decoder.mask_decoder.parameters()) == 4_058_340


@pytest.mark.parametrize("multimask", [False, True])
def test_equals_transformers_at_1024(sam, decoder, multimask):
    embeddings = torch.randn(2, 256, 64, 64) * 0.1
    asked = prompts(2, 3, 2, 1024)
    with torch.no_grad():
        theirs = sam(
            image_embeddings=embeddings,
            input_points=asked.points,
            input_labels=asked.labels,
            multimask_output=multimask,
        )
    ours = decoder(embeddings, (1024, 1024), asked, multimask=multimask)
    torch.testing.assert_close(ours.logits, theirs.pred_masks, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.scores, theirs.iou_scores, rtol=0, atol=1e-5)


def test_box_equals_transformers(sam, decoder):
    embeddings = torch.randn(1, 256, 64, 64) * 0.1
    boxes = torch.tensor([[[100.0, 120.0, 500.0, 700.0], [5.0, 6.0, 70.0, 80.0]]])
    with torch.no_grad():
        theirs = sam(image_embeddings=embeddings, input_boxes=boxes, multimask_output=False)
    ours = decoder(embeddings, (1024, 1024), Prompts(boxes=boxes))
    torch.testing.assert_close(ours.logits, theirs.pred_masks, rtol=0, atol=1e-4)


@pytest.mark.parametrize("grid", [(64, 64), (48, 64), (128, 96)])
def test_batched_prompts_equal_one_by_one_with_masks(decoder, grid):
    canvas = (grid[0] * 16, grid[1] * 16)
    embeddings = torch.randn(2, 256, *grid) * 0.1
    previous = torch.randn(2, 2, grid[0] * 4, grid[1] * 4)
    asked = prompts(2, 2, 3, min(canvas), previous)
    together = decoder(embeddings, canvas, asked)
    assert together.logits.shape == (2, 2, 1, grid[0] * 4, grid[1] * 4)
    for image in range(2):
        for object_ in range(2):
            pick = (slice(image, image + 1), slice(object_, object_ + 1))
            one = Prompts(asked.points[pick], asked.labels[pick], logits=previous[pick])
            alone = decoder(embeddings[image : image + 1], canvas, one)
            torch.testing.assert_close(alone.logits, together.logits[pick], rtol=1e-4, atol=1e-3)


def test_coordinates_are_relative_to_the_canvas(decoder):
    """The same relative click on a 2048 canvas with the same embedding is the same prompt."""
    embeddings = torch.randn(1, 256, 64, 64) * 0.1
    small = decoder(embeddings, (1024, 1024), Prompts(torch.tensor([[[[99.5, 199.5]]]]), torch.ones(1, 1, 1)))
    large = decoder(embeddings, (2048, 2048), Prompts(torch.tensor([[[[199.5, 399.5]]]]), torch.ones(1, 1, 1)))
    torch.testing.assert_close(small.logits, large.logits, rtol=0, atol=1e-4)


def test_position_code_is_sams_resized_and_cropped(sam, decoder):
    native = sam.get_image_wide_positional_embeddings()
    torch.testing.assert_close(decoder.image_position((64, 64)), native)
    torch.testing.assert_close(decoder.image_position((40, 64)), native[:, :, :40])
    doubled = torch.nn.functional.interpolate(native, (128, 128), mode="bilinear")
    torch.testing.assert_close(decoder.image_position((128, 100)), doubled[..., :100])


def test_a_foreign_state_is_refused_by_name(decoder):
    state = {key: value for key, value in decoder.state_dict().items() if "iou_token" not in key}
    with pytest.raises(UserError, match=r"weights\.st .*mask_decoder\.iou_token\.weight"):
        SamDecoder().load_sam(state, "weights.st")
