"""Objects drawn for the quickstart: thin ones (wheels, fences, branches) and fuller ones (leaves, jugs).

A SAM on its 64 x 64 grid finds the fuller ones easy and the thin ones hard; a set needs both. Every
function takes a random generator and the object's long side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hrsam_prep.drawing import THINNEST, Colour, Drawing, Shape, arc, line, spline, turned

MATERIALS: dict[str, tuple[Colour, ...]] = {
    "wood": ((128, 88, 55), (92, 62, 40), (165, 125, 84), (110, 98, 85)),
    "metal": ((150, 154, 160), (92, 95, 102), (182, 178, 168), (126, 68, 42)),
    "rubber": ((40, 40, 43), (62, 58, 55)),
    "paint": ((214, 210, 200), (150, 40, 36), (40, 78, 128), (48, 98, 72), (196, 150, 48), (60, 62, 66)),
    "green": ((74, 116, 48), (104, 136, 58), (56, 90, 52), (130, 150, 84)),
    "dry": ((158, 112, 58), (172, 82, 40), (190, 158, 82), (120, 76, 52)),
    "rope": ((178, 152, 112), (205, 190, 160), (120, 98, 72)),
}


def _material(rng: np.random.Generator, *kinds: str) -> Colour:
    """A colour of one of the named materials, varied a little."""
    shades = MATERIALS[kinds[rng.integers(len(kinds))]]
    chosen = np.asarray(shades[rng.integers(len(shades))])
    red, green, blue = chosen * rng.uniform(0.85, 1.15) * rng.uniform(0.95, 1.05, 3)
    return float(red), float(green), float(blue)


def wheel(rng: np.random.Generator, size: int) -> Shape:
    """A spoked wheel seen at an angle: a bicycle's with crossing wires, or a cart's with straight bars."""
    drawing = Drawing(rng)
    cart = rng.random() < 0.35
    spokes = int(rng.integers(6, 11)) if cart else int(rng.integers(7, 13)) * 2
    wire = size * (rng.uniform(0.025, 0.045) if cart else rng.uniform(0.006, 0.012))
    hub, cross = rng.uniform(0.06, 0.12), 0.0 if cart else rng.uniform(0.3, 1.2)
    tyre = size * rng.uniform(0.03, 0.06)
    for k in range(spokes):
        angle = 2 * np.pi * k / spokes
        lean = cross if k % 2 else -cross
        inner = hub * np.array([np.cos(angle + lean), np.sin(angle + lean)])
        drawing.bar(line(inner, 0.95 * np.array([np.cos(angle), np.sin(angle)])), wire, 0)
    if not cart:
        drawing.bar(arc(0.92), max(2.0, size * 0.012), 0)
    drawing.bar(arc(1.0), tyre, 1)
    drawing.patch(arc(hub, 25)[:-1], 0, shade=0.8, rim=1.5)
    body = _material(rng, "wood", "paint") if cart else _material(rng, "metal")
    colours = [body, body if cart else _material(rng, "rubber", "rubber", "paint")]
    return drawing.paint(size, colours, rng.uniform(0, np.pi), rng.uniform(0.45, 1.0))


def fence(rng: np.random.Generator, size: int) -> Shape:
    """A row of pickets on two or three rails, receding to one side."""
    drawing = Drawing(rng)
    pickets, height = int(rng.integers(5, 12)), rng.uniform(0.9, 1.8)
    width = 2.0 / pickets * rng.uniform(0.3, 0.62)
    rails = (0.25, 0.75) if rng.random() < 0.7 else (0.15, 0.5, 0.85)
    tip = rng.uniform(0.0, 0.15) * height
    for share in rails:
        y = share * height
        rail = size * rng.uniform(0.02, 0.04)
        drawing.bar(line((-1.04, y), (1.04, y)), rail)
    for k in range(pickets):
        x = -1 + 2 * (k + 0.5) / pickets + rng.normal(0, 0.008)
        lean, top = rng.normal(0, 0.01), rng.uniform(-0.03, 0.03)
        left, right = x - width / 2, x + width / 2
        crown = [(left + lean, top + tip), (x + lean, top), (right + lean, top + tip)]
        drawing.patch(np.array([(left, height), *crown, (right, height)]), rim=size * 0.004)
    return drawing.paint(
        size, [_material(rng, "wood", "paint", "paint")], rng.normal(0, 0.12), 1.0, rng.uniform(-0.25, 0.25)
    )


def grille(rng: np.random.Generator, size: int) -> Shape:
    """A framed lattice of thin bars: a grid, or the diamonds of a wire fence."""
    drawing = Drawing(rng)
    height, bars = rng.uniform(0.6, 1.0), int(rng.integers(3, 8))
    wire, diamonds = size * rng.uniform(0.01, 0.028), rng.random() < 0.4
    offsets = np.linspace(-1, 1, bars + 1)
    if diamonds:
        for c in np.linspace(-1 - height, 1 + height, bars + 2)[1:-1]:
            for slope in (1.0, -1.0):  # the part of y = slope * (x - c) inside the frame
                low, high = max(-1.0, c - height), min(1.0, c + height)
                drawing.bar(line((low, slope * (low - c)), (high, slope * (high - c))), wire)
    else:
        for x in offsets[1:-1]:
            drawing.bar(line((x, -height), (x, height)), wire)
        for y in np.linspace(-height, height, max(3, round(bars * height)) + 1)[1:-1]:
            drawing.bar(line((-1, y), (1, y)), wire)
    frame = np.array([(-1, -height), (1, -height), (1, height), (-1, height), (-1, -height)])
    drawing.bar(frame, wire * rng.uniform(1.6, 2.6))
    kinds = ("metal", "metal", "paint", "wood")
    return drawing.paint(
        size, [_material(rng, *kinds)], rng.normal(0, 0.25), rng.uniform(0.7, 1.0), rng.uniform(-0.3, 0.3)
    )


def ladder(rng: np.random.Generator, size: int) -> Shape:
    """Two rails with rungs, narrower at the top."""
    drawing = Drawing(rng)
    half, narrow, rungs = rng.uniform(0.18, 0.32), rng.uniform(0.6, 1.0), int(rng.integers(5, 10))
    rail, rung = size * rng.uniform(0.022, 0.042), size * rng.uniform(0.014, 0.028)
    for y in np.linspace(-0.9, 0.88, rungs) + rng.normal(0, 0.006, rungs):
        reach = half * (1 + (narrow - 1) * (1 - y) / 2)
        drawing.bar(line((-reach, y), (reach, y)), rung)
    for side in (-1, 1):
        drawing.bar(line((side * half, 1), (side * half * narrow, -1)), rail)
    return drawing.paint(size, [_material(rng, "wood", "metal", "paint")], rng.normal(0, 0.35), 1.0)


def leaf(rng: np.random.Generator, size: int) -> Shape:
    """One leaf with a toothed edge, veins and a thin stalk."""
    drawing = Drawing(rng)
    t = np.linspace(0, 1, 160)
    bend, broad = rng.uniform(-0.35, 0.35), rng.uniform(0.22, 0.42)
    middle = np.stack([2 * t - 1, bend * (1 - (2 * t - 1) ** 2)], 1)
    teeth, depth = int(rng.integers(0, 14)), rng.uniform(0.06, 0.16)
    peak = rng.uniform(0.55, 0.95)
    reach = broad * np.sin(np.pi * t**peak) ** 0.8 * (1 - depth * ((t * teeth) % 1.0))
    normal = np.stack([-np.gradient(middle[:, 1]), np.gradient(middle[:, 0])], 1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    stalk = np.array([(-1 - rng.uniform(0.25, 0.5), rng.uniform(-0.15, 0.15)), (-1.15, 0.0), (-1.0, 0.0)])
    width = size * rng.uniform(0.009, 0.014)
    drawing.bar(spline(stalk, 24), width, 1)
    for side, shade in ((1, 1.0), (-1, 0.86)):
        edge = middle + side * reach[:, None] * normal
        drawing.patch(np.concatenate([middle, edge[::-1]]), 0, shade, rim=size * 0.003)
    for k in np.linspace(14, 130, int(rng.integers(5, 9))).astype(int):
        for side in (1, -1):
            far = min(k + 22, 159)
            end = middle[far] + side * 0.86 * reach[far] * normal[far]
            drawing.bar(line(middle[k], end), (2.2, 1.6), 1)
    drawing.bar(middle[:150], (width, 1.6), 1)
    body = _material(rng, "green", "green", "dry")
    vein = 0.6 * body[0] + 82, 0.6 * body[1] + 82, 0.6 * body[2] + 60
    return drawing.paint(size, [body, vein], rng.uniform(0, 2 * np.pi), rng.uniform(0.7, 1.0))


def fern(rng: np.random.Generator, size: int) -> Shape:
    """A frond: narrow leaflets in pairs along a bent stem."""
    drawing = Drawing(rng)
    bend = rng.uniform(-0.5, 0.5)
    stem = spline(np.array([(-1.35, 0.0), (-0.6, 0.0), (0.2, bend * 0.4), (1.0, bend)]), 80)
    pairs, reach, sweep = int(rng.integers(9, 16)), rng.uniform(0.4, 0.65), rng.uniform(0.75, 1.2)
    for k in np.linspace(22, 78, pairs).astype(int):
        along = stem[k] - stem[k - 1]
        heading = np.arctan2(along[1], along[0])
        length = reach * np.sin(np.pi * (0.12 + 0.84 * ((k - 22) / 56) ** 0.7)) * rng.uniform(0.9, 1.1) + 0.05
        for side in (1, -1):
            turn = heading + side * sweep + rng.normal(0, 0.05)
            u = np.linspace(0, 1, 14)
            half = length * rng.uniform(0.075, 0.11) * np.sin(np.pi * u**0.7)
            top, bottom = np.stack([u * length, half], 1), np.stack([u * length, -half], 1)[::-1]
            drawing.patch(turned(np.concatenate([top, bottom]), turn) + stem[k], rim=0.8)
    drawing.bar(stem, (size * 0.014, THINNEST), 1)
    body = _material(rng, "green", "green", "green", "dry")
    return drawing.paint(size, [body, _material(rng, "green", "wood")], rng.uniform(0, 2 * np.pi))


def branch(rng: np.random.Generator, size: int) -> Shape:
    """A forking twig, bare or with a few small leaves."""
    drawing = Drawing(rng)
    leafy, depth = rng.random() < 0.5, int(rng.integers(3, 5))
    leaves: list[np.ndarray] = []

    def grow(base: np.ndarray, heading: float, length: float, width: float, level: int) -> None:
        knots = [base]
        for _ in range(3):
            heading += rng.normal(0, 0.16)
            knots.append(knots[-1] + length / 3 * np.array([np.cos(heading), np.sin(heading)]))
        path = spline(np.array(knots), 18)
        drawing.bar(path, (width, width * 0.65), 0)
        if level == 0:
            u = np.linspace(0, 2 * np.pi, 17)[:-1]
            oval = np.stack([0.09 + 0.09 * np.cos(u), 0.035 * np.sin(u)], 1)
            leaves.append(turned(oval, heading) + path[-1])
            return
        for k, side in enumerate(rng.permutation([-1.0, 1.0, 0.15])[: int(rng.integers(2, 4))]):
            start = path[-1] if k == 0 else path[int(rng.integers(8, 17))]
            fork = heading + side * rng.uniform(0.35, 0.8)
            grow(start, fork, length * rng.uniform(0.6, 0.8), width * 0.66, level - 1)

    grow(np.zeros(2), -np.pi / 2, 1.0, size * rng.uniform(0.028, 0.055), depth)
    if leafy:
        for outline in leaves:
            drawing.patch(outline, 1, rim=0.8)
    colours = [_material(rng, "wood"), _material(rng, "green", "dry")]
    return drawing.paint(size, colours, rng.normal(0, 0.7), rng.uniform(0.8, 1.1))


def cables(rng: np.random.Generator, size: int) -> Shape:
    """A handful of curling strands that leave one knot."""
    drawing = Drawing(rng)
    strands, spread = int(rng.integers(3, 8)), rng.uniform(0.5, 1.0)
    width, two = size * rng.uniform(0.01, 0.034), rng.random() < 0.5
    for k in range(strands):
        aim = (k / (strands - 1) - 0.5) * spread * 2
        reach = np.linspace(0, 1, 5) * rng.uniform(1.2, 2.0)
        wave = rng.normal(0, 0.22, 5) * np.linspace(0, 1, 5)
        heading = aim * np.linspace(0.4, 1, 5)
        x, y = reach * np.cos(heading) - wave * np.sin(heading), reach * np.sin(heading) + wave
        drawing.bar(spline(np.stack([x, y], 1), 64), width * rng.uniform(0.8, 1.2), int(two and k % 2 == 1))
    tail = spline(np.array([(-rng.uniform(0.3, 0.8), rng.normal(0, 0.2)), (-0.2, 0.0), (0.06, 0.0)]), 24)
    drawing.bar(tail, width * rng.uniform(2.0, 2.8), 0)
    colours = [_material(rng, "rope", "rubber", "paint"), _material(rng, "paint", "rope")]
    return drawing.paint(size, colours, rng.uniform(0, 2 * np.pi), rng.uniform(0.7, 1.0))


def umbel(rng: np.random.Generator, size: int) -> Shape:
    """A flower head: stalks that fan out from a stem, each with a tuft of small blossoms."""
    drawing = Drawing(rng)
    rays, fan = int(rng.integers(9, 16)), rng.uniform(0.7, 1.25)
    wire, blob = size * rng.uniform(0.006, 0.013), rng.uniform(0.045, 0.085)
    stem = np.array([(rng.normal(0, 0.15), 1.3), (rng.normal(0, 0.08), 0.6), (0, 0)])
    drawing.bar(spline(stem, 32), wire * 2.0)
    for k in range(rays):
        angle = -np.pi / 2 + fan * (2 * k / (rays - 1) - 1) + rng.normal(0, 0.03)
        length = rng.uniform(0.75, 1.0)
        tip = length * np.array([np.cos(angle), np.sin(angle)])
        drawing.bar(spline(np.array([(0, 0), 0.5 * tip + (0, -0.06), tip]), 20), wire, 0)
        for _ in range(int(rng.integers(3, 6))):
            petals = np.linspace(0, 2 * np.pi, 21)[:-1]
            radius = blob * (1 + 0.3 * np.cos(5 * petals))
            ring = np.stack([radius * np.cos(petals), radius * np.sin(petals)], 1)
            drawing.patch(ring + tip + rng.normal(0, 0.55 * blob, 2), 1, rim=0.6)
    colours = [_material(rng, "green"), _material(rng, "paint", "dry", "rope")]
    return drawing.paint(size, colours, rng.normal(0, 0.5), rng.uniform(0.75, 1.1))


def gear(rng: np.random.Generator, size: int) -> Shape:
    """A toothed wheel with a bore and, often, windows between its arms."""
    drawing = Drawing(rng)
    teeth, depth = int(rng.integers(9, 22)), rng.uniform(0.1, 0.2)
    angles = np.linspace(0, 2 * np.pi, 24 * teeth, endpoint=False)
    flank = np.clip(1.8 * np.sin(teeth * angles) + 0.3, -1, 1)
    radius = 1 - depth * (1 - flank) / 2
    drawing.patch(np.stack([radius * np.cos(angles), radius * np.sin(angles)], 1), rim=size * 0.008)
    bore, inner = rng.uniform(0.1, 0.2), 1 - depth - rng.uniform(0.12, 0.25)
    drawing.bar(arc(inner + 0.04), size * 0.012)
    arms = int(rng.choice((0, 3, 4, 5, 6)))
    for k in range(arms):
        begin, end = 2 * np.pi * (k + rng.uniform(0.1, 0.14)) / arms, 2 * np.pi * (k + 0.88) / arms
        window = [arc(inner, 24, begin, end), arc(bore + 0.14, 12, end, begin)]
        drawing.hole(np.concatenate(window))
    drawing.bar(arc(bore), size * 0.012)
    drawing.hole(arc(bore, 49)[:-1])
    body = _material(rng, "metal", "metal", "paint")
    return drawing.paint(size, [body], rng.uniform(0, np.pi), rng.uniform(0.5, 1.0))


def jug(rng: np.random.Generator, size: int) -> Shape:
    """A vessel with a thin handle."""
    drawing = Drawing(rng)
    y = np.linspace(-1, 1, 80)
    widths = rng.uniform((0.2, 0.16, 0.35, 0.4, 0.22), (0.34, 0.3, 0.55, 0.65, 0.45))
    half = np.interp(y, *spline(np.stack([np.array([-1, -0.75, -0.3, 0.3, 1]), widths], 1), 120).T)
    reach = rng.uniform(0.8, 0.95)
    handle = np.array([(half[10], -0.75), (0.72, -0.8), (reach, -0.4), (0.76, 0.1), (half[58], 0.42)])
    drawing.bar(spline(handle), size * rng.uniform(0.022, 0.045))
    outline = np.concatenate([np.stack([-half, y], 1), np.stack([half, y], 1)[::-1]])
    drawing.patch(outline, rim=size * 0.006)
    across = np.linspace(-0.97, 0.97, 24)
    for k in rng.choice(np.arange(8, 72), int(rng.integers(0, 4)), replace=False):
        band = np.stack([across * half[k], y[k] + 0.05 * (1 - across**2)], 1)
        drawing.bar(band, size * rng.uniform(0.012, 0.04), 1)
    mouth = arc(1.0, 41)[:-1] * np.array([half[0], 0.06]) + np.array([0, -1])
    drawing.patch(mouth, shade=0.55, rim=size * 0.008)
    colours = [_material(rng, "dry", "paint", "rope"), _material(rng, "paint", "wood")]
    return drawing.paint(size, colours, rng.normal(0, 0.2))


def butterfly(rng: np.random.Generator, size: int) -> Shape:
    """Four patterned wings, a body and two hair-thin feelers."""
    drawing = Drawing(rng)
    lift, spread, tail = rng.uniform(0.35, 0.75), rng.uniform(0.9, 1.1), rng.uniform(0.55, 0.85)
    tip = [(0.35, -lift - 0.1), (spread, -lift - 0.15), (spread - 0.1, -0.2)]
    fore = np.array([(0, -0.1), *tip, (0.4, 0.05), (0, 0.05)])
    hind = np.array([(0, 0), (0.45, 0.05), (0.75, 0.3), (0.6, tail), (0.3, 0.6), (0, 0.15)])
    spots = rng.uniform((0.35, -0.35), (0.7, -0.1), (3, 2))
    for side in (-1, 1):
        mirror = np.array([side, 1.0])
        for wing in (hind, fore):
            outline = spline(wing, 72) * mirror
            drawing.patch(outline, 0, 1.0 if side > 0 else 0.92, rim=size * 0.02)
            for share in np.linspace(0.25, 0.8, 5):
                drawing.bar(line((0, 0), outline[int(share * 71)] * 0.93), 2.0, 1)
        for x, height in spots:
            drawing.patch(arc(0.055, 17)[:-1] + np.array([x, height]) * mirror, 2, rim=1.0)
        feeler = spline(np.array([(0.0, -0.2), (0.1, -0.55), (rng.uniform(0.25, 0.4), -0.85)]), 20) * mirror
        drawing.bar(feeler, size * 0.009, 1)
    drawing.bar(spline(np.array([(0, -0.28), (0, 0.0), (0, 0.5)]), 20), (size * 0.055, size * 0.03), 1)
    colours = [_material(rng, "paint", "dry"), _material(rng, "rubber"), _material(rng, "paint", "rope")]
    return drawing.paint(size, colours, rng.uniform(0, 2 * np.pi), rng.uniform(0.75, 1.0))


THIN: dict[str, Callable[[np.random.Generator, int], Shape]] = {
    family.__name__: family for family in (wheel, fence, grille, ladder, fern, branch, cables, umbel)
}
FULL: dict[str, Callable[[np.random.Generator, int], Shape]] = {
    family.__name__: family for family in (leaf, gear, jug, butterfly)
}
FAMILIES = THIN | FULL
