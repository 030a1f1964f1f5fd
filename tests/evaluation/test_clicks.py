"""The click protocol around a model whose answers are known."""

import numpy as np
import pytest
import torch
from torch import nn

from hrsam_lit.data.dataset import EvaluationItem
from hrsam_lit.evaluation.clicks import Clicker, summarise
from hrsam_lit.models.decoder import Masks, SamDecoder
from hrsam_lit.models.promptable import Promptable


class Encoder(nn.Module):
    """Counts how often it is asked."""

    calls = 0

    def forward(self, images, sizes):
        self.calls += 1
        return torch.zeros(len(images), 256, 16, 16)


class Painter(SamDecoder):
    """Paints a disc of 36 canvas pixels around each positive click, and remembers the prompts."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, embeddings, canvas_hw, prompts, multimask=False):
        self.asked.append((prompts.points.shape[2], prompts.logits is not None, multimask))
        low = torch.full((1, 1, 3 if multimask else 1, 64, 64), -5.0)
        y, x = torch.meshgrid(*[(torch.arange(64) + 0.5) * canvas_hw[0] / 64] * 2, indexing="ij")
        for (px, py), label in zip(prompts.points[0, 0], prompts.labels[0, 0], strict=True):
            if label == 1:
                low[..., (x - px) ** 2 + (y - py) ** 2 < 36**2] = 5.0
        return Masks(low, torch.linspace(0, 1, low.shape[2]).reshape(1, 1, -1))


@pytest.fixture
def model():
    return Promptable(Encoder(), Painter(), image_size=256)


def item(key="a", object_id=1):
    truth = np.zeros((100, 200), np.int8)
    truth[20:80, 20:180] = 1
    truth[:, 195:] = -1
    return EvaluationItem(key, object_id, np.zeros((100, 200, 3), np.uint8), truth)


def test_a_first_click_may_have_three_masks_and_later_ones_see_the_last_logits(model):
    Clicker(model, clicks=3)(item())
    assert model.decoder.asked == [(1, False, True), (2, True, False), (3, True, False)]


def test_a_single_mask_model_never_asks_for_three(model):
    model.first_click = "single"
    Clicker(model, clicks=2)(item())
    assert [multimask for _, _, multimask in model.decoder.asked] == [False, False]


def test_clicks_cover_the_object_and_iou_is_at_the_original_size(model):
    result = Clicker(model, clicks=20, keep=(2, 20))(item())
    assert result.ious[0] < result.ious[4] and max(result.ious) > 0.7
    assert len(result.clicks) == len(result.ious) == 20
    first_x, first_y, positive = result.clicks[0]
    assert positive and 49 <= first_x <= 150 and 49 <= first_y <= 50
    truth = item().truth
    mask, valid = result.masks[20], truth >= 0
    expected = (mask & (truth == 1)).sum() / ((mask | (truth == 1)) & valid).sum()
    assert result.ious[19] == pytest.approx(expected)
    assert set(result.masks) == {2, 20}


def test_objects_of_one_image_share_one_encoding(model):
    clicker = Clicker(model, clicks=1)
    for one in (item("a", 1), item("a", 2), item("b", 1)):
        clicker(one)
    assert model.encoder.calls == 2


def test_the_summary_has_canonical_names(model):
    summary = summarise([Clicker(model)(item())])
    assert {
        "noc85",
        "noc90",
        "noc95",
        "nof95",
        "iou@1",
        "iou@5",
        "iou@20",
        "boundary_iou",
        "ms/image",
        "ms/click",
    } == set(summary)
    short = summarise([Clicker(model, clicks=6)(item())])
    assert "iou@5" in short and "iou@20" not in short
