"""Drawing an object from bars and patches, with its coverage of every pixel.

An object is a list of bars and patches in free coordinates (x right, y down). It is squashed, turned,
fitted to its size and rasterised SUPER times finer than its pixels; averaging gives its coverage alpha.
The mask is alpha >= 0.5, and compositing uses that same alpha: no pixel of the mask holds more background
than object, none outside it holds more object than background.

H W: the object's tight box in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

SUPER = 4  # subpixels along each side of a pixel
_SHIFT = 4  # fractional bits of the coordinates handed to OpenCV
_NEUTRAL = 160.0  # the tone at which a part shows its material's own colour
_EDGE = 105.0  # the tone of a patch's rim
_BAR = ((1.0, 100.0), (0.7, 150.0), (0.35, 200.0))  # shares of a bar's width, tones: dark rim, lit middle
_MARGIN = 2  # pixels kept free around an object, so that its antialiased edge is whole
THINNEST = 2.0  # pixels; at any subpixel position a bar this wide leaves an unbroken mask

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Shape:
    """An object on its own: alpha float32 (H, W) coverage in 0..1; rgb uint8 (H, W, 3), its colours."""

    alpha: np.ndarray
    rgb: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """Boolean (H, W): the pixels at least half covered."""
        return self.alpha >= 0.5


@dataclass(frozen=True)
class _Stroke:
    """points (n, 2) in free coordinates; widths (n,) in pixels, of the bar or of a filled patch's rim.

    part -1: the stroke takes away what lies under it.
    """

    points: np.ndarray
    widths: np.ndarray
    part: int
    shade: float
    filled: bool


class Drawing:
    """Collects strokes back to front, then paints them at a given size."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.strokes: list[_Stroke] = []

    def bar(self, points: np.ndarray, width: float | tuple[float, float], part: int = 0) -> None:
        """A round bar along points (n, 2); a pair of widths tapers from the first to the last point."""
        start, end = width if isinstance(width, tuple) else (width, width)
        widths = np.maximum(np.linspace(start, end, len(points)), THINNEST)
        self.strokes.append(_Stroke(points, widths, part, self.rng.uniform(0.88, 1.12), False))

    def patch(self, points: np.ndarray, part: int = 0, shade: float = 1.0, rim: float = 1.0) -> None:
        """A filled polygon with corners (n, 2) and a darker rim."""
        shade *= self.rng.uniform(0.9, 1.1)
        self.strokes.append(_Stroke(points, np.full(len(points), rim), part, shade, True))

    def hole(self, points: np.ndarray) -> None:
        """A polygon with corners (n, 2) through which the background shows."""
        self.strokes.append(_Stroke(points, np.zeros(len(points)), -1, 0.0, True))

    def paint(self, size: int, colours: Sequence[Colour], turn: float, squash: float = 1.0, tilt: float = 0.0) -> Shape:
        """The drawing with its long side `size` pixels; colours[k] is the colour of part k.

        squash: factor on the height; turn: radians clockwise, after the squash; tilt in -0.5..0.5: strength
        of a perspective in which the drawing's top (positive) or bottom (negative) recedes.
        """
        points, (h, w) = self._place(size, turn, squash, tilt)
        canvas = np.zeros((h * SUPER, w * SUPER, 2), np.uint8)  # part + 1, tone
        angle = self.rng.uniform(0, 2 * np.pi)
        light = np.array([np.cos(angle), np.sin(angle)])
        for stroke, own in zip(self.strokes, points, strict=True):
            (_fill if stroke.filled else _draw_bar)(canvas, stroke, own, light)
        return _colour(self.rng, canvas, colours, light)

    def _place(self, size: int, turn: float, squash: float, tilt: float) -> tuple[list[np.ndarray], tuple[int, int]]:
        """Each stroke's points in pixels of the tight box, and that box's (H, W)."""
        points = np.concatenate([stroke.points for stroke in self.strokes])
        points = points - (points.min(0) + points.max(0)) / 2
        points /= float(np.abs(points).max())
        points /= 1.0 - tilt * points[:, 1:]
        points[:, 1] *= squash
        points = turned(points, turn)
        border = _MARGIN + max(float(stroke.widths.max()) for stroke in self.strokes) / 2
        points -= points.min(0)
        points *= (size - 2 * border) / float(points.max())
        points += border
        w, h = (int(length) for length in np.ceil(points.max(0) + border))
        ends = np.cumsum([len(stroke.points) for stroke in self.strokes])
        return np.split(points, ends[:-1]), (h, w)


def turned(points: np.ndarray, angle: float) -> np.ndarray:
    """Points (n, 2) turned clockwise (y points down) by `angle` radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def _fixed(points: np.ndarray) -> np.ndarray:
    """Pixel coordinates -> OpenCV's fixed-point coordinates on the supersampled canvas."""
    return np.round((points * SUPER - 0.5) * (1 << _SHIFT)).astype(np.int32)


def _ink(stroke: _Stroke, tone: float) -> tuple[float, float]:
    return float(stroke.part + 1), min(255.0, float(np.floor(tone * stroke.shade)))


def _fill(canvas: np.ndarray, stroke: _Stroke, points: np.ndarray, light: np.ndarray) -> None:
    corners = [_fixed(points)]
    cv2.fillPoly(canvas, corners, _ink(stroke, _NEUTRAL), cv2.LINE_8, _SHIFT)
    if stroke.part < 0:
        return
    rim = max(1, round(float(stroke.widths[0]) * SUPER))
    cv2.polylines(canvas, corners, True, _ink(stroke, _EDGE), rim, cv2.LINE_8, _SHIFT)


def _draw_bar(canvas: np.ndarray, stroke: _Stroke, points: np.ndarray, light: np.ndarray) -> None:
    tapers = bool(np.ptp(stroke.widths) > 0)
    for share, tone in _BAR:
        # the lit middle lies towards the light, by at most what keeps it inside the bar
        moved = _fixed(points - light * (stroke.widths * (1 - share) * 0.3)[:, None])
        widths = np.maximum(1, np.round(stroke.widths * share * SUPER)).astype(int).tolist()
        ink = _ink(stroke, tone)
        if tapers:
            for i in range(len(moved) - 1):
                cv2.polylines(canvas, [moved[i : i + 2]], False, ink, widths[i], cv2.LINE_8, _SHIFT)
        else:
            cv2.polylines(canvas, [moved], False, ink, widths[0], cv2.LINE_8, _SHIFT)


def value_noise(rng: np.random.Generator, hw: tuple[int, int], cell: float) -> np.ndarray:
    """Smooth noise float32 (H, W) of unit variance at its nodes, which lie `cell` pixels apart."""
    h, w = hw
    nodes = rng.standard_normal((int(h / cell) + 2, int(w / cell) + 2)).astype(np.float32)
    return cv2.resize(nodes, (w, h), interpolation=cv2.INTER_CUBIC)


def _colour(rng: np.random.Generator, canvas: np.ndarray, colours: Sequence[Colour], light: np.ndarray) -> Shape:
    """Parts and tones -> coverage and colours, with a lighting gradient, stains and grain."""
    h, w = canvas.shape[0] // SUPER, canvas.shape[1] // SUPER

    def shrink(values: np.ndarray) -> np.ndarray:
        return cv2.resize(values, (w, h), interpolation=cv2.INTER_AREA)

    parts, tones = canvas[..., 0], canvas[..., 1]
    covers = [shrink((parts == part + 1).astype(np.float32)) for part in range(len(colours))]
    alpha = np.minimum(np.sum(covers, axis=0), np.float32(1))
    inside = np.maximum(alpha, np.float32(1e-6))[..., None]
    rgb = np.einsum("phw,pc->hwc", np.stack(covers), np.asarray(colours, np.float32))
    tone = shrink(tones.astype(np.float32))[..., None] / _NEUTRAL  # zero outside, so alpha-weighted as rgb is
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    ramp = -(light[0] * (x / w - 0.5) + light[1] * (y / h - 0.5)) * rng.uniform(0.2, 0.7)
    stains = 0.09 * value_noise(rng, (h, w), max(h, w) / 6) + 0.035 * value_noise(rng, (h, w), 3.3)
    grain = 0.04 * rng.standard_normal((h, w)).astype(np.float32)
    lit = (1 + ramp + stains + grain)[..., None]
    rgb = (rgb / inside) * (tone / inside) * lit
    return Shape(alpha, np.clip(rgb, 0, 255).astype(np.uint8))


def arc(radius: float, n: int = 97, begin: float = 0.0, end: float = 2 * np.pi) -> np.ndarray:
    """Points (n, 2) on a circle around the origin, from `begin` to `end` radians."""
    angles = np.linspace(begin, end, n)
    return radius * np.stack([np.cos(angles), np.sin(angles)], 1)


def line(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> np.ndarray:
    """The two ends (2, 2) of a straight bar."""
    return np.array([a, b], np.float64)


def spline(knots: np.ndarray, n: int = 48) -> np.ndarray:
    """A smooth curve (n, 2) through knots (k, 2): Catmull-Rom with doubled ends."""
    padded = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    position = np.linspace(0, len(knots) - 1, n)
    i = np.minimum(position.astype(int), len(knots) - 2)
    t = (position - i)[:, None]
    a, b, c, d = (padded[i + k] for k in range(4))
    return 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
