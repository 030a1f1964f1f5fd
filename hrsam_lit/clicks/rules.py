"""The click rules of evaluation: where a simulated user clicks next.

H W: the frame of the original image. The depth of a pixel in a region is its Euclidean distance to the
nearest pixel outside the region; everything beyond the image counts as outside. Depths are compared by
their squares, which are integers: OpenCV's floats differ in the last bits with its number of threads,
and so would the choice among equally deep pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from hrsam_lit.errors import UserError

HALF_DIAGONAL = 0.7072  # of a pixel, rounded up
SLACK = 1e-3  # pixels, well above the error of OpenCV's distances
BLOCK = 4  # pixels, see Region._where_deep
WORTH_PRUNING = 160 * 160  # pixels of a bounding box; below, the transform alone is quicker
CROP_COST = 8000  # pixels of distance transform that take as long as handling one more crop

Box = tuple[int, int, int, int]  # x, y, width, height


@dataclass(frozen=True)
class Click:
    """A click at pixel (x, y) of the image; positive on a missed object, negative on spilt mask."""

    x: int
    y: int
    positive: bool


class Region:
    """The pixels of one kind of error, and the deepest among them.

    mask: uint8 (H, W), 1 inside. `bound` is at least the depth of the deepest pixel (0: the region is
    empty), for the price of a bounding box and a count.
    """

    def __init__(self, mask: np.ndarray) -> None:
        self.mask = mask
        x, y, w, h = cv2.boundingRect(mask)
        self.box: Box = (x, y, w, h)
        # a pixel of depth d has a whole disc of radius d - HALF_DIAGONAL around it
        by_area = math.sqrt(cv2.countNonZero(mask) / math.pi) + HALF_DIAGONAL
        self.bound = min((min(w, h) + 1) // 2, by_area)

    def deepest(
        self, spread: float = 1.0, clicked: np.ndarray | None = None, at_least: float = 0.0
    ) -> tuple[int, np.ndarray]:
        """The largest squared depth, and the pixels that come close to it.

        spread: 1 for the pixels of exactly that depth, s > 1 for all deeper than 1/s of it.
        clicked: int (K, 2) pixels (y, x) left out of both answers; they are no holes in the region.
        at_least: a depth below which the answer does not matter, and may be too small.
        Returns (0, no pixels) when nothing is left, else the square and int (M, 2) pixels (y, x) in
        row-major order. Exact up to a depth of 2000 pixels.
        """
        taken = np.empty((0, 2), dtype=np.intp) if clicked is None else clicked
        most, places, squares = at_least, [], []
        for bound, (x, y, w, h) in self._where_deep(spread, len(taken), at_least):
            if bound < most / spread:
                break
            depths = _distance(self.mask[y : y + h, x : x + w])
            rows, columns = taken[:, 0] - y, taken[:, 1] - x
            inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
            depths[rows[inside], columns[inside]] = 0
            most = max(most, float(depths.max()))
            near = np.flatnonzero(depths >= max(most / spread - SLACK, SLACK))
            squares.append(np.rint(np.square(depths.ravel()[near], dtype=np.float64)).astype(np.int64))
            rows, columns = np.divmod(near, w)
            places.append((rows + y) * self.mask.shape[1] + columns + x)
        found = np.concatenate(squares) if squares else np.empty(0, dtype=np.int64)
        if not len(found):
            return 0, np.empty((0, 2), dtype=np.intp)
        best = int(found.max())
        keep = found == best if spread == 1 else found * spread**2 > best
        flat = np.unique(np.concatenate(places)[keep])  # crops may overlap
        return best, np.stack(np.divmod(flat, self.mask.shape[1]), axis=1)

    def _where_deep(self, spread: float, taken: int, at_least: float) -> list[tuple[float, Box]]:
        """Crops that hold every pixel that matters to `deepest`, the most promising first, with a bound
        on the depth of those pixels.

        Blocks of pixels that lie wholly inside the region bound every depth from both sides. With e a
        block's distance, in blocks of b pixels, to the nearest block that is not wholly inside, the pixel
        at its centre is at least b (e - HALF_DIAGONAL) deep, and none of its pixels is deeper than
        b (e + sqrt 2). Only blocks that can hold a deep enough pixel matter, and only the pixels as far
        around them as a depth reaches: further out a pixel may be cut off without any harm but to depths
        that do not count.
        """
        x, y, w, h = self.box
        everything = [(float(self.bound), self.box)] if w else []
        if w * h < WORTH_PRUNING:
            return everything
        padded = cv2.copyMakeBorder(
            self.mask[y : y + h, x : x + w], 1, BLOCK - (h + 1) % BLOCK, 1, BLOCK - (w + 1) % BLOCK,
            cv2.BORDER_CONSTANT | cv2.BORDER_ISOLATED, value=(0,),
        )  # fmt: skip
        whole = cv2.erode(padded, np.ones((BLOCK, BLOCK), np.uint8), anchor=(0, 0))[::BLOCK, ::BLOCK]
        blocks = cv2.distanceTransform(np.ascontiguousarray(whole), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        most = float(blocks.max())
        least = BLOCK * (most - HALF_DIAGONAL) - SLACK
        if taken:  # at worst the clicked pixels are the deepest ones, side by side
            least -= math.sqrt(taken / math.pi) + HALF_DIAGONAL
        least = max(least, at_least) / spread
        matter = blocks >= least / BLOCK - 2 * HALF_DIAGONAL - SLACK
        count, labels, stats, _ = cv2.connectedComponentsWithStats(matter.view(np.uint8))
        if count * CROP_COST > w * h:
            return everything
        crops = []
        for label, (bx, by, bw, bh, _) in enumerate(stats[1:].tolist(), start=1):
            here = slice(by, by + bh), slice(bx, bx + bw)
            bound = BLOCK * (float(blocks[here][labels[here] == label].max()) + 2 * HALF_DIAGONAL)
            reach = math.ceil(bound) + 2
            x0, y0 = max(bx * BLOCK - reach, 0), max(by * BLOCK - reach, 0)
            x1, y1 = min((bx + bw) * BLOCK + reach, w), min((by + bh) * BLOCK + reach, h)
            crops.append((bound, (x + x0, y + y0, x1 - x0, y1 - y0)))
        cost = sum(crop[2] * crop[3] + CROP_COST for _, crop in crops)
        return sorted(crops, reverse=True) if cost < w * h else everything


def next_click(
    truth: np.ndarray,
    prediction: np.ndarray,
    clicked: np.ndarray,
    rule: Literal["ritm", "hrsam"] = "ritm",
    rng: np.random.Generator | None = None,
    *,
    guard: bool = False,
) -> Click | None:
    """The click of a simulated user in the middle of the largest error.

    truth: int8 (H, W), 1 object, 0 background, -1 ignored (never clicked on as an error);
    prediction: bool (H, W); clicked: bool (H, W), the pixels clicked so far, marked by the caller.

    The click lies on the deepest pixel of missed object (positive) or of spilt mask (negative), whichever
    is deeper; a tie is negative.
    - "ritm" (RITM, SimpleClick, SegNext): of equally deep pixels the first, row by row. A clicked pixel
      is not chosen again, but does not shape the depths of others. When no error is left unclicked, that
      protocol clicks negatively at (0, 0), whatever lies there and however often; `guard` returns None
      instead. rng is not used.
    - "hrsam" (InterFormer, FocSAM, HRSAM): clicked pixels are holes, which push the next click away;
      equally deep pixels are drawn from rng; None when no error is left. The authors know no ignored
      pixels; here they are honoured.

    Raises UserError for another rule, for values of truth beyond -1..1, and for "hrsam" without rng.
    """
    assert (truth.dtype, truth.ndim) == (np.int8, 2), (truth.dtype, truth.shape)
    assert (prediction.dtype, prediction.shape) == (bool, truth.shape), (prediction.dtype, prediction.shape)
    assert (clicked.dtype, clicked.shape) == (bool, truth.shape), (clicked.dtype, clicked.shape)
    least, most = int(truth.min()), int(truth.max())
    if least < -1 or most > 1:
        raise UserError(f"truth holds {least}..{most}: use 1 for object, 0 for background, -1 for ignored")
    missed = np.greater(truth, prediction.view(np.int8))
    spilt = np.greater(prediction.view(np.uint8), truth.view(np.uint8))  # -1 reads as 255: never spilt
    if rule == "ritm":
        taken = np.stack(np.divmod(np.flatnonzero(clicked), truth.shape[1]), axis=1)
        positive, pixels = deeper_side(missed, spilt, clicked=taken)
        if len(pixels):
            return Click(x=int(pixels[0, 1]), y=int(pixels[0, 0]), positive=positive)
        return None if guard else Click(x=0, y=0, positive=False)
    if rule == "hrsam":
        if rng is None:
            raise UserError("rule 'hrsam' breaks ties at random: pass rng=numpy.random.default_rng(seed)")
        free = ~clicked
        positive, pixels = deeper_side(missed & free, spilt & free)
        if not len(pixels):
            return None
        y, x = pixels[rng.integers(len(pixels))]
        return Click(x=int(x), y=int(y), positive=positive)
    raise UserError(f"unknown click rule {rule!r}: use 'ritm' or 'hrsam'")


def deeper_side(
    missed: np.ndarray, spilt: np.ndarray, spread: float = 1.0, clicked: np.ndarray | None = None
) -> tuple[bool, np.ndarray]:
    """Whether missed object lies deeper than spilt mask, and the deep pixels of the deeper of the two.

    missed, spilt: bool (H, W); spread and clicked as in `Region.deepest`. Returns int (M, 2) pixels
    (y, x); none when nothing is left to click on.
    """
    positive, negative = Region(missed.view(np.uint8)), Region(spilt.view(np.uint8))
    # the side that may be deeper goes first: often the other is then known to be shallower
    if positive.bound > negative.bound:
        most, pixels = positive.deepest(spread, clicked)
        if negative.bound >= math.sqrt(most):
            rival, others = negative.deepest(spread, clicked, at_least=math.sqrt(most))
            if rival >= most:
                return False, others
        return True, pixels
    most, pixels = negative.deepest(spread, clicked)
    if positive.bound > math.sqrt(most):
        rival, others = positive.deepest(spread, clicked, at_least=math.sqrt(most))
        if rival > most:
            return True, others
    return False, pixels


def _distance(mask: np.ndarray) -> np.ndarray:
    """uint8 (h, w) -> float32 (h, w), Euclidean distance to the nearest 0, which surround the mask."""
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT | cv2.BORDER_ISOLATED, value=(0,))
    return cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
