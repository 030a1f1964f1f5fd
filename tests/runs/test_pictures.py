"""Pictures of a run: every panel is there, in its place, and says what it was given."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from hrsam_lit.runs import pictures
from hrsam_lit.runs.pictures import PANEL, StripRow, iou_over_clicks, loss_curves, picture_strip


def disc(h: int, w: int, radius: int) -> np.ndarray:
    y, x = np.mgrid[:h, :w]
    return (y - h // 2) ** 2 + (x - w // 2) ** 2 < radius**2


def grey_row(h: int, w: int, **more) -> StripRow:
    image = np.full((h, w, 3), 128, np.uint8)
    return StripRow(image, {"truth": disc(h, w, h // 4), "student": disc(h, w, h // 5)}, **more)


def read(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def cell(sheet: np.ndarray, column: int, columns: int) -> np.ndarray:
    """The first row's panel of a column, for rows of PANEL height."""
    width = (sheet.shape[1] - pictures._GAP) // columns
    left = pictures._GAP + column * width
    return sheet[pictures._TITLE : pictures._TITLE + PANEL, left : left + width - pictures._GAP]


def like(panel: np.ndarray, colour) -> np.ndarray:
    return (np.abs(panel.astype(int) - np.asarray(colour)) <= 3).all(-1)


def test_each_column_shows_its_own_mask(tmp_path):
    picture_strip([grey_row(320, 400)], tmp_path / "strip.png")
    sheet = read(tmp_path / "strip.png")
    assert sheet.shape == (pictures._TITLE + PANEL + 8, 8 + 3 * 408, 3)
    plain, truth, student = (cell(sheet, column, 3) for column in range(3))
    assert like(plain, (128, 128, 128)).all()
    for panel, radius, fill in ((truth, 80, pictures._FILLS[0]), (student, 64, pictures._FILLS[1])):
        filled = like(panel, 0.32 * 128 + 0.68 * np.asarray(fill))
        np.testing.assert_array_equal(filled, disc(320, 400, radius))
        dimmed = like(panel, 0.55 * np.array([128, 128, 128]))
        assert dimmed.mean() > 0.5
        assert not (dimmed & disc(320, 400, radius)).any()


def test_clicks_lie_where_they_were_made_at_any_scale(tmp_path):
    for scale in (1, 2):
        h, w = 320 * scale, 400 * scale
        clicks = {"student": [(100 * scale, 60 * scale, True), (300 * scale, 250 * scale, False)]}
        picture_strip([grey_row(h, w, clicks=clicks)], tmp_path / "strip.png")
        panel = cell(read(tmp_path / "strip.png"), 2, 3)
        for colour, x, y in ((pictures._POSITIVE, 100, 60), (pictures._NEGATIVE, 300, 250)):
            rows, columns = np.nonzero(like(panel, colour))
            assert abs(columns.mean() - x) < 1
            assert abs(rows.mean() - y) < 1
            assert 80 < len(rows) < 130  # a disc of radius 6
            assert (panel[y, x + 7] > 200).all(), "no white rim"
        assert not like(cell(read(tmp_path / "strip.png"), 1, 3), pictures._POSITIVE).any()


def test_clicks_at_the_border_are_cut_not_lost(tmp_path):
    clicks = {"truth": [(0, 0, True), (399, 319, False)]}
    picture_strip([grey_row(320, 400, clicks=clicks)], tmp_path / "strip.png")
    panel = cell(read(tmp_path / "strip.png"), 1, 3)
    assert like(panel, pictures._POSITIVE)[:8, :8].sum() > 15
    assert like(panel, pictures._NEGATIVE)[-8:, -8:].sum() > 15


def test_iou_is_written_in_the_corner(tmp_path):
    def corner(**more) -> np.ndarray:
        picture_strip([grey_row(320, 400, **more)], tmp_path / "strip.png")
        return cell(read(tmp_path / "strip.png"), 2, 3)[-40:, :140]

    blank, high, low = corner(), corner(ious={"student": 0.987}), corner(ious={"student": 0.123})
    assert (high > 240).all(-1).sum() > 150, "no white letters"
    assert not (blank > 240).any()
    assert (high != low).any()


def test_rows_of_any_shape_share_one_sheet(tmp_path):
    rows = [grey_row(300, 500), grey_row(640, 384), grey_row(200, 900), grey_row(30, 20)]
    rows.append(StripRow(rows[0].image, {"teacher": disc(300, 500, 60)}))
    picture_strip(rows, tmp_path / "deep" / "strip.png")
    sheet = read(tmp_path / "deep" / "strip.png")
    heights = [288, 320, 107, 320, 288]  # as high as PANEL, or as broad as 480
    assert sheet.shape[0] == pictures._TITLE + sum(height + 8 for height in heights)
    assert sheet.shape[1] == 8 + 4 * (480 + 8)
    last = sheet[-8 - 288 : -8]
    assert like(last[:, 8 + 488 : 8 + 488 + 480], pictures._EMPTY).all()  # it has no truth


def test_a_thin_line_survives_the_shrinking(tmp_path):
    mask = np.zeros((640, 640), bool)
    mask[:, 300:303] = True
    picture_strip([StripRow(np.zeros((640, 640, 3), np.uint8), {"truth": mask})], tmp_path / "strip.png")
    panel = cell(read(tmp_path / "strip.png"), 1, 2)
    assert (panel.max(-1) > 100).any(1).all()


def test_the_same_rows_make_the_same_file_and_no_rest_is_left(tmp_path):
    for name in ("a.png", "b.png"):
        picture_strip([grey_row(100, 100)], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize("mask", [np.zeros((9, 10), bool), np.zeros((10, 10), np.uint8)], ids=["size", "dtype"])
def test_a_mask_of_another_size_or_kind_is_refused(mask):
    with pytest.raises(AssertionError, match="truth"):
        StripRow(np.zeros((10, 10, 3), np.uint8), {"truth": mask})


def test_clicks_for_no_mask_are_refused():
    with pytest.raises(AssertionError, match="techer"):
        StripRow(np.zeros((9, 9, 3), np.uint8), {"teacher": np.zeros((9, 9), bool)}, ious={"techer": 0.5})


def axes_of(monkeypatch, draw) -> list:
    """The axes of the figure that `draw` would save."""
    kept = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: kept.append(figure))
    draw()
    return kept[0].axes


def test_losses_get_a_log_axis_only_where_they_span_decades(monkeypatch):
    steps = list(range(50))
    series = {
        "wide": {"a": (steps, [10.0 * 0.8**step for step in steps])},
        "narrow": {"a": (steps, [1.0 - 0.01 * step for step in steps])},
        "signed": {"a": (steps, [100.0 - 4 * step for step in steps])},
    }
    scales = [axes.get_yscale() for axes in axes_of(monkeypatch, lambda: loss_curves(series, "x.png"))]
    assert scales == ["log", "linear", "linear"]
    forced = axes_of(monkeypatch, lambda: loss_curves(series, "x.png", log=False))
    assert [axes.get_yscale() for axes in forced] == ["linear"] * 3
    assert [axes.get_title() for axes in forced] == list(series)


def test_values_that_are_not_finite_leave_a_gap_and_are_counted(monkeypatch):
    broken = [1.0, float("nan"), float("inf"), 0.5]
    curves = {"loss": ([0, 1, 2, 3], broken), "ok": ([0, 1], [1.0, 0.9])}
    (axes,) = axes_of(monkeypatch, lambda: loss_curves({"t": curves}, "x.png"))
    assert [line.get_label() for line in axes.get_lines()] == ["loss (2 not finite)", "ok"]
    np.testing.assert_array_equal(np.isnan(axes.get_lines()[0].get_ydata()), [False, True, True, False])


def test_a_curve_with_a_missing_value_is_refused():
    with pytest.raises(AssertionError, match="3 steps, 2 values"):
        loss_curves({"t": {"a": ([1, 2, 3], [1.0, 2.0])}}, "x.png")


def test_iou_curves_start_at_click_one_and_name_their_end(monkeypatch):
    curves = {"teacher": [0.4, 0.8, 0.95], "student": [0.2, 0.5, 0.71234]}
    (axes,) = axes_of(monkeypatch, lambda: iou_over_clicks(curves, "x.png"))
    np.testing.assert_array_equal(axes.get_lines()[0].get_xdata(), [1, 2, 3])
    assert [line.get_label() for line in axes.get_lines()] == ["teacher (0.950)", "student (0.712)"]
    low, high = axes.get_ylim()
    assert low < 0.2
    assert high == 1.0


def test_curves_are_written_as_pictures(tmp_path):
    loss_curves({str(k): {"a": ([0, 1, 2], [3.0, 2.0, 0.01])} for k in range(4)}, tmp_path / "loss.png")
    iou_over_clicks({"teacher": list(np.linspace(0.3, 0.9, 20))}, tmp_path / "iou.png")
    for name in ("loss.png", "iou.png"):
        pixels = cv2.imread(str(tmp_path / name))
        assert min(pixels.shape[:2]) > 400
        assert 0.7 < (pixels == 255).all(-1).mean() < 0.99
