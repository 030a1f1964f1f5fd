"""Pictures of a run, PNG files whole or absent: masks side by side, loss curves, IoU over clicks.

H W: a picture's size in its own pixels; a panel is that picture as drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image, ImageDraw, ImageFont

from hrsam_lit.files import replacing

Click = tuple[float, float, bool]
Curve = tuple[Sequence[float], Sequence[float]]

PANEL = 320  # height of a panel, pixels
_WIDEST = 480  # of a panel; a broader picture is lowered to fit
_GAP, _TITLE = 8, 40
_TITLE_SIZE, _LABEL_SIZE = 21, 18
_INK, _PAPER, _EMPTY = (32, 33, 36), (255, 255, 255), (238, 238, 240)

# neither the green nor the red of the clicks; "truth" always has the first
_FILLS = ((255, 205, 30), (48, 140, 255), (236, 92, 200), (255, 132, 32), (40, 205, 215), (150, 110, 255))
_POSITIVE, _NEGATIVE = (30, 190, 60), (230, 40, 40)
_LINES = ("#1f6fd0", "#d1495b", "#2a9d6f", "#e08e0b", "#7b4fb8", "#3b3f46", "#17a2b8")
_DECADES = 30.0  # a ratio of largest to smallest value from which a loss is drawn on a log axis


@dataclass(frozen=True)
class StripRow:
    """One picture and the masks to be shown beside it.

    image: RGB uint8 (H, W, 3); masks: name -> bool (H, W), a column each; clicks: name -> clicks (x, y,
    positive) in pixels of the image; ious: name -> 0..1, written on the panel of that name.
    """

    image: np.ndarray
    masks: Mapping[str, np.ndarray]
    clicks: Mapping[str, Sequence[Click]] = field(default_factory=dict)
    ious: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.image.dtype == np.uint8, self.image.dtype
        assert self.image.ndim == 3, self.image.shape
        assert self.image.shape[2] == 3, self.image.shape
        for name, mask in self.masks.items():
            assert mask.shape == self.image.shape[:2], (name, mask.shape, self.image.shape)
            assert mask.dtype == bool, (name, mask.dtype)
        unknown = (set(self.clicks) | set(self.ious)) - set(self.masks)
        assert not unknown, f"clicks or IoU of masks that are not there: {sorted(unknown)}"


def picture_strip(rows: Sequence[StripRow], path: str | Path) -> None:
    """Draw each row's image and its masks as titled columns of equal panels into the PNG `path`.

    A mask is filled and outlined over the dimmed image; a row without a column's mask leaves that cell empty.
    """
    assert rows, "no rows to draw"
    names = list(dict.fromkeys(name for row in rows for name in row.masks))
    truth_first = sorted(names, key=lambda name: name != "truth")
    fills = dict(zip(truth_first, _cycle(_FILLS, len(names)), strict=True))
    sizes = [_panel_size(row.image) for row in rows]
    cell_w = max(w for _, w in sizes)
    columns = 1 + len(names)
    height = _TITLE + sum(h + _GAP for h, _ in sizes)
    sheet = Image.new("RGB", (_GAP + columns * (cell_w + _GAP), height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(["image", *names]):
        centre = _GAP + column * (cell_w + _GAP) + cell_w / 2
        draw.text((centre, _TITLE / 2), title, _INK, _font(_TITLE_SIZE, bold=True), anchor="mm")
    top = _TITLE
    for row, (h, w) in zip(rows, sizes, strict=True):
        for column, name in enumerate([None, *names]):
            left = _GAP + column * (cell_w + _GAP)
            if name is not None and name not in row.masks:
                draw.rectangle((left, top, left + cell_w - 1, top + h - 1), fill=_EMPTY)
                continue
            panel = _panel(row, name, (h, w), fills[name] if name else _INK)
            sheet.paste(panel, (left + (cell_w - w) // 2, top))
        top += h + _GAP
    _save(sheet, path)


def _panel_size(image: np.ndarray) -> tuple[int, int]:
    scale = min(PANEL / image.shape[0], _WIDEST / image.shape[1])
    return max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))


def _panel(row: StripRow, name: str | None, hw: tuple[int, int], fill: tuple[int, int, int]) -> Image.Image:
    """The image, or the mask `name` over it, at size hw, with that mask's clicks and IoU."""
    h, w = hw
    way = cv2.INTER_AREA if h < row.image.shape[0] else cv2.INTER_LINEAR
    pixels = cv2.resize(row.image, (w, h), interpolation=way)
    if name is None:
        return Image.fromarray(pixels)
    cover = cv2.resize(row.masks[name].astype(np.float32), (w, h), interpolation=way)
    panel = Image.fromarray(_overlay(pixels, cover >= 0.5, fill))
    scale = w / row.image.shape[1]
    for x, y, positive in row.clicks.get(name, ()):
        _dot(panel, (x + 0.5) * scale, (y + 0.5) * scale, _POSITIVE if positive else _NEGATIVE)
    if name in row.ious:
        _tag(panel, f"IoU {row.ious[name]:.3f}")
    return panel


def _overlay(pixels: np.ndarray, mask: np.ndarray, fill: tuple[int, int, int]) -> np.ndarray:
    """RGB uint8 (h, w, 3) with the mask filled and outlined and all else dimmed."""
    values = pixels.astype(np.float32)
    colour = np.asarray(fill, np.float32)
    out = values * 0.55
    out[mask] = 0.32 * values[mask] + 0.68 * colour
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    outline = cv2.dilate(mask.astype(np.uint8), cross).astype(bool) & ~mask
    out[outline] = 0.25 * out[outline] + 0.75 * (0.35 * colour)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def _dot(panel: Image.Image, x: float, y: float, colour: tuple[int, int, int], radius: float = 6.0) -> None:
    """A dot with a white rim and a thin dark one.

    It is drawn four times finer and shrunk, as ImageDraw has no soft edges.
    """
    fine, reach = 4, math.ceil(radius + 3)
    stamp = Image.new("RGBA", (2 * reach * fine, 2 * reach * fine), (0, 0, 0, 0))
    draw = ImageDraw.Draw(stamp)
    left, top = math.floor(x) - reach, math.floor(y) - reach
    centre = ((x - left) * fine, (y - top) * fine)
    rims = ((radius + 2.7, (0, 0, 0, 140)), (radius + 2, (255, 255, 255, 255)), (radius, (*colour, 255)))
    for size, ink in rims:
        reached = size * fine
        box = (centre[0] - reached, centre[1] - reached, centre[0] + reached, centre[1] + reached)
        draw.ellipse(box, fill=ink)
    stamp = stamp.resize((2 * reach, 2 * reach), Image.Resampling.BOX)
    panel.paste(stamp, (left, top), stamp)


def _tag(panel: Image.Image, text: str) -> None:
    """White text on a dark box in the lower left corner."""
    font = _font(_LABEL_SIZE, bold=True)
    draw = ImageDraw.Draw(panel, "RGBA")
    x, y = 6, panel.height - 6
    _, top, right, _ = draw.textbbox((x + 7, y - 5), text, font, anchor="ld")
    draw.rounded_rectangle((x, top - 3, right + 7, y), 5, fill=(0, 0, 0, 175))
    draw.text((x + 7, y - 5), text, (255, 255, 255), font, anchor="ld")


def loss_curves(series: Mapping[str, Mapping[str, Curve]], path: str | Path, *, log: bool | None = None) -> None:
    """Draw title -> label -> (steps, values) into the PNG `path`, one panel a title.

    log: the value axis of every panel; by default logarithmic where a panel's values are positive and span
    more than a factor of 30. Values that are not finite leave a gap and are counted in the legend.
    """
    assert series, "no curves to draw"
    columns = min(3, len(series))
    figure = Figure(figsize=(4.6 * columns, 3.4 * -(-len(series) // columns)), layout="constrained")
    for k, (title, curves) in enumerate(series.items()):
        axes = figure.add_subplot(-(-len(series) // columns), columns, k + 1)
        shown: list[np.ndarray] = []
        for (label, (steps, values)), colour in zip(curves.items(), _cycle(_LINES, len(curves)), strict=True):
            assert len(steps) == len(values), f"{title}, {label}: {len(steps)} steps, {len(values)} values"
            heights = np.asarray(values, np.float64)
            finite = np.isfinite(heights)
            lost = len(heights) - int(finite.sum())
            axes.plot(
                steps, np.where(finite, heights, np.nan), color=colour, linewidth=1.6,
                marker="o" if len(heights) <= 30 else None, markersize=3.2,
                label=f"{label} ({lost} not finite)" if lost else label,
            )  # fmt: skip
            shown.append(heights[finite])
        flat = np.concatenate(shown) if shown else np.zeros(0)
        spans = bool(flat.size and flat.min() > 0 and flat.max() > _DECADES * flat.min())
        if log or (log is None and spans):
            axes.set_yscale("log")
            narrow = bool(flat.size and flat.max() < 300 * flat.min())
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _dress(axes, title, "step", legend=bool(curves))
    _save(figure, path)


def iou_over_clicks(curves: Mapping[str, Sequence[float]], path: str | Path) -> None:
    """Draw name -> mean IoU after click 1, 2, ... into the PNG `path`, with each last value in the legend."""
    assert curves, "no curves to draw"
    assert all(len(values) for values in curves.values()), "a curve without values"
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for (name, values), colour in zip(curves.items(), _cycle(_LINES, len(curves)), strict=True):
        clicks = np.arange(1, len(values) + 1)
        label = f"{name} ({values[-1]:.3f})"
        axes.plot(clicks, values, color=colour, linewidth=1.8, marker="o", markersize=3.6, label=label)
    longest = max(len(values) for values in curves.values())
    axes.set_xticks([1, *range(5, longest + 1, 5)] if longest > 8 else list(range(1, longest + 1)))
    axes.set_xlim(1 - 0.03 * longest, longest + 0.03 * longest)
    low = min(min(values) for values in curves.values())
    axes.set_ylim(max(0.0, math.floor(low * 10 - 0.5) / 10), 1.0)
    _dress(axes, "mean IoU after each click", "clicks", legend=True)
    _save(figure, path)


def _dress(axes: Axes, title: str, x_label: str, legend: bool) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x_label, fontsize=9)
    axes.grid(True, which="major", color="#e3e4e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(fontsize=8.5, frameon=False)


def _cycle(colours: Sequence, count: int) -> list:
    return [colours[k % len(colours)] for k in range(count)]


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it: the same letters on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


def _save(picture: Image.Image | Figure, path: str | Path) -> None:
    """Write a PNG whole or not at all; its folder is made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        if isinstance(picture, Image.Image):
            picture.save(temporary, format="PNG")
        else:
            FigureCanvasAgg(picture).print_figure(temporary, format="png", dpi=130, facecolor="white")
