"""SAM's conventions: set an image, ask in its own pixels."""

import numpy as np
import pytest
import torch
from torch import nn

from hrsam_lit.models.decoder import SamDecoder
from hrsam_lit.models.promptable import Predictor, Promptable


class Pooled(nn.Module):
    """A stand-in encoder: mean colours on a 16 x 16 grid."""

    def forward(self, images, sizes):
        pooled = nn.functional.adaptive_avg_pool2d(images.float() / 255, 16)
        return pooled.repeat(1, 86, 1, 1)[:, :256]


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(2)
    return Predictor(Promptable(Pooled(), SamDecoder(), image_size=256))


@pytest.mark.parametrize("hw", [(90, 160), (300, 64), (8, 1000)])
def test_masks_have_the_images_size_and_logits_feed_back(predictor, hw):
    predictor.set_image(np.random.default_rng(0).integers(0, 255, (*hw, 3), dtype=np.uint8))
    mask, score, logits = predictor.predict(np.array([[3, 4]]), np.array([1]))
    assert mask.shape == hw and mask.dtype == bool and logits.shape == (64, 64) and isinstance(score, float)
    again, _, _ = predictor.predict(np.array([[3, 4], [5, 6]]), np.array([1, 0]), logits=logits)
    assert again.shape == hw


def test_a_box_alone_is_a_prompt(predictor):
    predictor.set_image(np.zeros((50, 60, 3), np.uint8))
    mask, _, _ = predictor.predict(box=np.array([5, 6, 40, 30]))
    assert mask.shape == (50, 60)


def test_the_first_click_takes_the_best_scored_mask(predictor):
    model = predictor.model
    predictor.set_image(np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    _, score, logits = predictor.predict(np.array([[10, 20]]), np.array([1]))
    from hrsam_lit.models.decoder import Prompts

    prompts = Prompts(torch.tensor([[[[40.0, 80.0]]]]), torch.ones(1, 1, 1, dtype=torch.long))
    with torch.inference_mode():
        three = model.decoder(predictor.embedding, (256, 256), prompts, multimask=True)
    best = int(three.scores.argmax())
    assert score == pytest.approx(float(three.scores[0, 0, best]))
    torch.testing.assert_close(logits, three.logits[0, 0, best])
