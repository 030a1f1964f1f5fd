from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import distance_transform_edt

from hrsam_lit.clicks import Click, next_click, rules
from hrsam_lit.clicks.rules import Region, deeper_side
from hrsam_lit.errors import UserError


def squares_of(mask: np.ndarray) -> np.ndarray:
    """Squared depths by scipy, on the full frame."""
    return np.rint(distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1] ** 2).astype(np.int64)


def by_hand(truth, prediction, clicked, holes=False) -> tuple[int, int, bool]:
    """The largest squared depths of both errors and the set of pixels the rule may choose."""
    missed, spilt = (truth == 1) & ~prediction, (truth == 0) & prediction
    if holes:
        missed, spilt = missed & ~clicked, spilt & ~clicked
    a, b = squares_of(missed) * ~clicked, squares_of(spilt) * ~clicked
    side = a if a.max() > b.max() else b
    return bool(a.max() > b.max()), int(side.max()), np.argwhere((side == side.max()) & (side > 0))


def blobs(seed: int, height: int, width: int, sigma: float, share: float) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((height, width)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), sigma)
    return noise > np.quantile(noise, 1 - share)


def rectangles(seed: int, count: int, sides: tuple[int, int]) -> np.ndarray:
    """Rooms of nearly the same depth at all alignments."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((301, 299), dtype=bool)
    mask[0, 0] = mask[-1, -1] = True
    for _ in range(count):
        (y, x), (h, w) = rng.integers(280, size=2), rng.integers(*sides, size=2, endpoint=True)
        mask[y : y + h, x : x + w] = True
    return mask


frames = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14).flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.int8, shape, elements=st.sampled_from([1, 1, 0, 0, -1])),
        hnp.arrays(bool, shape),
        hnp.arrays(bool, shape, elements=st.sampled_from([False] * 4 + [True])),
    )
)
scenes = st.tuples(
    st.integers(0, 10**6),  # seed
    st.integers(170, 420),  # height
    st.integers(170, 420),  # width
    st.sampled_from([2.0, 6.0, 20.0, 60.0]),  # smoothness
    st.sampled_from([0.02, 0.3, 0.7, 1.0]),  # share of the frame
)
rooms = st.tuples(
    st.integers(0, 10**6),  # seed
    st.integers(1, 40),  # count
    st.sampled_from([(9, 9), (14, 14), (16, 19), (12, 24), (30, 34)]),  # least and greatest side
)


@pytest.mark.parametrize("number", range(8))
def test_golden_clicks(shared: Path, number: int) -> None:
    with np.load(shared / "golden" / "clicks.npz") as golden:
        truth = golden[f"{number}.gt"]
        expected = golden[f"{number}.clicks"]
        predictions = np.unpackbits(golden[f"{number}.preds"], axis=-1, count=truth.shape[1]).astype(bool)
    clicked = np.zeros(truth.shape, dtype=bool)
    seen = np.zeros(truth.shape, dtype=bool)
    clicks = []
    for prediction in predictions:
        click = next_click(truth, seen, clicked)
        assert click is not None
        clicks.append((click.y, click.x, click.positive))
        clicked[click.y, click.x] = True
        seen = prediction
    np.testing.assert_array_equal(np.array(clicks), expected)
    assert (seen == (truth == 1)).all()  # the last prediction is perfect: the protocol clicks at (0, 0)
    assert next_click(truth, seen, clicked) == Click(0, 0, False)
    assert next_click(truth, seen, clicked, guard=True) is None


@given(frames)
@settings(max_examples=50, deadline=None)
def test_a_click_is_the_first_deepest_error_pixel(frame) -> None:
    truth, prediction, clicked = frame
    click = next_click(truth, prediction, clicked, guard=True)
    positive, most, pixels = by_hand(truth, prediction, clicked)
    if most == 0:
        assert click is None
        assert next_click(truth, prediction, clicked) == Click(0, 0, False)
        return
    assert click == Click(x=int(pixels[0, 1]), y=int(pixels[0, 0]), positive=positive)
    assert not clicked[click.y, click.x]
    assert truth[click.y, click.x] == int(click.positive)
    assert prediction[click.y, click.x] != click.positive


@given(frames, st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_hrsam_clicks_are_among_the_deepest_with_holes(frame, seed: int) -> None:
    truth, prediction, clicked = frame
    click = next_click(truth, prediction, clicked, "hrsam", np.random.default_rng(seed))
    positive, most, pixels = by_hand(truth, prediction, clicked, holes=True)
    if most == 0:
        assert click is None
        return
    assert click is not None
    assert click.positive == positive
    assert [click.y, click.x] in pixels.tolist()
    assert truth[click.y, click.x] == int(positive)


def test_hrsam_draws_every_deepest_pixel_equally() -> None:
    truth = np.zeros((9, 30), dtype=np.int8)
    truth[2:7, 2:7] = truth[2:7, 10:15] = truth[2:7, 20:25] = 1
    clicked = np.zeros_like(truth, dtype=bool)
    clicked[4, 12] = True  # a hole makes the middle square shallower
    rng = np.random.default_rng(0)
    empty = np.zeros_like(clicked)
    drawn = Counter(next_click(truth, empty, clicked, "hrsam", rng) for _ in range(600))
    assert set(drawn) == {Click(4, 4, True), Click(22, 4, True)}
    assert min(drawn.values()) > 240
    # RITM only forbids the pixel itself
    assert next_click(truth, empty, clicked) == Click(4, 4, True)
    clicked[4, 4] = clicked[4, 22] = True
    assert next_click(truth, empty, clicked) == Click(3, 3, True)


@pytest.mark.parametrize("cost", [rules.CROP_COST, -(10**9)], ids=["where-they-pay", "always"])
@given(scenes | rooms, st.sampled_from([0, 0, 1, 20]), st.sampled_from([1.0, 1.7, 3.0]))
@example((0, 400, 400, 2.0, 1.0), 6, 1.0)
@settings(max_examples=50, deadline=None)
def test_crops_and_bounds_lose_nothing(cost: int, scene, clicks: int, spread: float) -> None:
    with mock.patch.object(rules, "CROP_COST", cost):
        compare_with_scipy(scene, clicks, spread)


def compare_with_scipy(scene, clicks: int, spread: float) -> None:
    mask = blobs(*scene) if len(scene) == 5 else rectangles(*scene)
    expected = squares_of(mask)
    region = Region(mask.view(np.uint8))
    assert region.bound >= math.sqrt(expected.max())
    order = np.argsort(-expected, axis=None, kind="stable")[:clicks]  # the deepest pixels were clicked
    taken = np.stack(np.divmod(order, mask.shape[1]), axis=1)
    expected[taken[:, 0], taken[:, 1]] = 0
    most, pixels = region.deepest(spread, taken)
    assert most == expected.max()
    wanted = expected == most if spread == 1 else expected * spread**2 > most
    np.testing.assert_array_equal(pixels, np.argwhere(wanted))
    # a floor changes nothing that reaches it
    most, pixels = region.deepest(spread, taken, at_least=math.sqrt(most))
    assert most == expected.max()
    np.testing.assert_array_equal(pixels, np.argwhere(wanted))


@given(scenes, st.integers(0, 10**6), st.floats(0.05, 1))
@example((0, 200, 300, 6.0, 0.3), 0, 0.4)  # nothing is wrong
@settings(max_examples=30, deadline=None)
def test_the_side_skipped_was_shallower(scene, other: int, share: float) -> None:
    seed, height, width, sigma, _ = scene
    truth = blobs(seed, height, width, sigma, 0.4).astype(np.int8)
    prediction = blobs(other, height, width, sigma, share)
    truth[: height // 5] = -1
    clicked = np.zeros_like(prediction)
    clicked[height // 2, ::50] = True
    positive, _, pixels = by_hand(truth, prediction, clicked)
    expected = Click(x=int(pixels[0, 1]), y=int(pixels[0, 0]), positive=positive) if len(pixels) else None
    assert next_click(truth, prediction, clicked, guard=True) == expected


def test_the_choice_does_not_depend_on_opencv_threads() -> None:
    truth = blobs(3, 900, 900, 30, 0.5).astype(np.int8)
    prediction = blobs(4, 900, 900, 30, 0.5)
    clicked = np.zeros_like(prediction)
    before = cv2.getNumThreads()
    answers = set()
    try:
        for threads in (1, 2):
            cv2.setNumThreads(threads)
            answers.add(next_click(truth, prediction, clicked))
    finally:
        cv2.setNumThreads(before)
    assert len(answers) == 1


def test_equal_depths_click_negatively_and_swapping_sides_moves_the_click() -> None:
    truth = np.zeros((10, 20), dtype=np.int8)
    truth[2:7, 2:7] = 1
    prediction = np.zeros((10, 20), dtype=bool)
    prediction[2:7, 12:17] = True
    clicked = np.zeros_like(prediction)
    assert next_click(truth, prediction, clicked) == Click(14, 4, False)
    truth[2:8, 2:8] = 1  # 6 x 6 is no deeper than 5 x 5: still a tie
    assert next_click(truth, prediction, clicked) == Click(14, 4, False)
    truth[9, 19] = 1  # nor does a far pixel, which only widens the bounds
    assert next_click(truth, prediction, clicked) == Click(14, 4, False)
    truth[2:9, 2:9] = 1
    assert next_click(truth, prediction, clicked) == Click(5, 5, True)
    mirrored = next_click(prediction.astype(np.int8), truth == 1, clicked)
    assert mirrored == Click(5, 5, False)
    assert next_click(truth, prediction, clicked, "hrsam", np.random.default_rng(0)) == Click(5, 5, True)


def test_ignored_disagreement_is_no_error() -> None:
    truth = np.full((12, 12), -1, dtype=np.int8)
    prediction = np.ones((12, 12), dtype=bool)
    clicked = np.zeros_like(prediction)
    assert next_click(truth, prediction, clicked, guard=True) is None
    assert next_click(truth, prediction, clicked) == Click(0, 0, False)
    assert next_click(truth, prediction, clicked, "hrsam", np.random.default_rng(0)) is None
    truth[10, 11] = 0
    assert next_click(truth, prediction, clicked) == Click(11, 10, False)


def test_any_memory_layout_gives_the_same_click() -> None:
    truth = blobs(5, 200, 300, 10, 0.4).astype(np.int8)
    prediction = blobs(6, 200, 300, 10, 0.4)
    clicked = np.zeros_like(prediction)
    expected = next_click(truth, prediction, clicked)
    assert next_click(np.asfortranarray(truth), np.asfortranarray(prediction), clicked) == expected
    wide = np.repeat(truth, 2, axis=1)[:, ::2], np.repeat(prediction, 2, axis=1)[:, ::2]
    assert next_click(*wide, clicked) == expected


def test_user_mistakes_are_named() -> None:
    truth = np.zeros((4, 4), dtype=np.int8)
    off = np.zeros((4, 4), dtype=bool)
    with pytest.raises(UserError, match="pass rng"):
        next_click(truth, off, off, "hrsam")
    with pytest.raises(UserError, match="unknown click rule 'sam'"):
        next_click(truth, off, off, "sam")  # type: ignore[arg-type]
    truth[0, 0] = 2
    with pytest.raises(UserError, match=r"0\.\.2"):
        next_click(truth, off, off)


def test_no_error_at_all_has_no_side() -> None:
    nothing = np.zeros((5, 5), dtype=bool)
    positive, pixels = deeper_side(nothing, nothing)
    assert not positive
    assert pixels.shape == (0, 2)
