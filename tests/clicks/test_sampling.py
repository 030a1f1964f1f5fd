from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import distance_transform_edt

from hrsam_lit.clicks import correction_rounds, sample_clicks
from hrsam_lit.errors import UserError

masks = st.tuples(st.integers(0, 3), st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: st.tuples(*(hnp.arrays(bool, shape) for _ in range(3)))
)


def depths(mask: np.ndarray) -> np.ndarray:
    return distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(masks, st.sampled_from([1.0, 1.7, 2.5]), st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_clicks_lie_deep_in_the_deeper_error(triple, spread: float, seed: int) -> None:
    truth, prediction, ignore = triple
    points, labels = sample_clicks(*map(torch.from_numpy, (truth, prediction)), seeded(seed), spread,
                                   torch.from_numpy(ignore))  # fmt: skip
    assert points.shape == (len(truth), 2)
    assert points.dtype == torch.float32
    assert labels.dtype == torch.int64
    for i in range(len(truth)):
        missed = depths(truth[i] & ~prediction[i] & ~ignore[i])
        spilt = depths(~truth[i] & prediction[i] & ~ignore[i])
        side = missed if missed.max() > spilt.max() + 1e-6 else spilt
        if side.max() == 0:
            assert labels[i] == -1
            assert points[i].tolist() == [0, 0]
            continue
        x, y = points[i].int().tolist()
        assert labels[i] == int(side is missed)
        assert not ignore[i, y, x]
        assert side[y, x] > side.max() / spread - 1e-6
        if spread == 1:
            assert side[y, x] == side.max()


@pytest.mark.parametrize("spread", [1.0, 1.7])
def test_every_deep_pixel_is_equally_likely(spread: float) -> None:
    truth = np.zeros((9, 16), dtype=bool)
    truth[1:6, 1:6] = truth[1:6, 8:13] = True
    field = depths(truth)
    wanted = field == 3 if spread == 1 else field > 3 / spread
    many = torch.from_numpy(truth).expand(3000, -1, -1)
    points, labels = sample_clicks(many, torch.zeros_like(many), seeded(), spread)
    assert (labels == 1).all()
    counts = np.zeros(truth.shape)
    np.add.at(counts, (points[:, 1].int().numpy(), points[:, 0].int().numpy()), 1)
    np.testing.assert_array_equal(counts > 0, wanted)
    mean = 3000 / wanted.sum()
    assert ((counts[wanted] - mean) ** 2 / mean).sum() < 2 * wanted.sum() + 10  # chi-square


def test_draws_do_not_depend_on_what_is_wrong() -> None:
    truth = torch.zeros(4, 30, 30, dtype=torch.bool)
    truth[:, 5:20, 5:20] = True
    other = truth.clone()
    other[:2] = False
    a, b = seeded(), seeded()
    first, labels = sample_clicks(truth, torch.zeros_like(truth), a)
    second, fewer = sample_clicks(other, torch.zeros_like(truth), b)
    assert torch.equal(first[2:], second[2:])
    assert fewer.tolist() == [-1, -1, 1, 1]
    assert labels.tolist() == [1, 1, 1, 1]
    assert torch.equal(a.get_state(), b.get_state())
    torch.manual_seed(7)
    third = sample_clicks(truth, torch.zeros_like(truth), None)[0]
    torch.manual_seed(7)
    assert torch.equal(third, sample_clicks(truth, torch.zeros_like(truth), None)[0])


def test_clicked_pixels_in_ignore_push_the_next_click_away() -> None:
    truth = torch.zeros(1, 21, 21, dtype=torch.bool)
    truth[:, 3:18, 3:18] = True
    nothing = torch.zeros_like(truth)
    first = sample_clicks(truth, nothing, seeded(), 1.0)[0]
    assert first.tolist() == [[10, 10]]
    holes = nothing.clone()
    holes[0, 10, 10] = True
    second = sample_clicks(truth, nothing, seeded(), 1.0, holes)[0]
    assert (second - first).abs().max() >= 3


@pytest.mark.parametrize("gamma", [0.6, 0.9])
def test_rounds_follow_a_truncated_geometric_law(gamma: float) -> None:
    generator = seeded()
    counts = np.bincount([correction_rounds(generator, gamma) for _ in range(4000)], minlength=21)
    assert len(counts) == 21
    expected = gamma ** np.arange(21)
    expected *= 4000 / expected.sum()
    often = expected > 5
    assert ((counts - expected)[often] ** 2 / expected[often]).sum() < 3 * often.sum()
    assert abs((counts * np.arange(21)).sum() / 4000 - {0.6: 1.5, 0.9: 6.4}[gamma]) < 0.3


def test_rounds_at_the_ends() -> None:
    generator = seeded()
    assert {correction_rounds(generator, 0.0) for _ in range(50)} == {0}
    assert {correction_rounds(generator, 0.9, 0) for _ in range(50)} == {0}
    assert {correction_rounds(generator, 1.0, 2) for _ in range(100)} == {0, 1, 2}


def test_user_mistakes_are_named() -> None:
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    with pytest.raises(UserError, match=r"spread=0\.5"):
        sample_clicks(mask, mask, None, 0.5)
    with pytest.raises(UserError, match="gamma=-1"):
        correction_rounds(None, -1)


@pytest.mark.gpu
def test_masks_on_a_gpu_give_the_same_clicks() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    truth = torch.rand(5, 40, 50, generator=seeded()) > 0.5
    prediction = torch.rand(5, 40, 50, generator=seeded(1)) > 0.5
    points, labels = sample_clicks(truth, prediction, seeded(2))
    again = sample_clicks(truth.cuda(), prediction.cuda(), seeded(2))
    assert again[0].is_cuda
    assert torch.equal(again[0].cpu(), points)
    assert torch.equal(again[1].cpu(), labels)
