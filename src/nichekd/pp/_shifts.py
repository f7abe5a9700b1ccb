"""Cross-correlation of nuclei in an image with cells: shifts of a fraction of a pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nichekd.pp._nuclei import haematoxylin
from nichekd.pp._tiles import WHITE, paste, touched

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nichekd.pp._tiles import Tiles

TRANSFORMS = ("identity", "rot90", "rot180", "rot270", "flip", "flip_rot90", "flip_rot180", "flip_rot270")
NARROW_UM, WIDE_UM = 2.0, 8.0  # standard deviations: a nucleus is seen, tissue is not
APART_UM = 10.0  # another peak, not the flank of this one


@dataclass(frozen=True)
class Window:
    """Haematoxylin of a part of the image, as a spectrum."""

    spectrum: NDArray[np.complexfloating]
    energy: float  # sum of squares
    shape: tuple[int, int]  # of the transform: the window and what shifts reach beyond it
    corner: tuple[int, int]  # x and y of its first pixel
    side: int  # of the part that cells are taken from, which begins ``reach`` pixels further in
    reach: int  # largest shift, px
    mpp: float

    @classmethod
    def around(cls, tiles: Tiles, middle: NDArray[np.float64], side_um: float, reach: int, mpp: float) -> Window:
        """The square around ``middle``, in pixels of ``tiles``, and what is within ``reach`` of it."""
        from scipy import fft

        side = round(side_um / mpp)
        left, top = (int(it) - side // 2 - reach for it in middle)
        full = side + 2 * reach
        pixels = np.full((3, full, full), WHITE, dtype=np.uint8)
        for key in touched(tiles, top, top + full, left, left + full):
            paste(pixels, tiles.tile(*key), tiles, key, top, left)
        h = band(np.minimum(haematoxylin(pixels), 3.0), mpp)
        shape = (fft.next_fast_len(full, real=True),) * 2
        spectrum = fft.rfft2(h, s=shape)
        return cls(spectrum, float(np.square(h, dtype=np.float64).sum()), shape, (left, top), side, reach, mpp)


@dataclass(frozen=True)
class Surface:
    """Correlation for each shift of a tile's cells, (2 reach + 1, 2 reach + 1), rows y."""

    name: str
    rho: NDArray[np.float64]
    n_cells: int
    middle: NDArray[np.float64]  # x, y, in pixels of the comparison
    mpp: float


@dataclass(frozen=True)
class Peak:
    """The best shift, in µm along the image's axes, and how much better it is than others."""

    dx: float
    dy: float
    rho: float
    confidence: float


def band(image: NDArray[np.float32], mpp: float) -> NDArray[np.float32]:
    """What is as wide as a nucleus: a narrow Gaussian less a wide one."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image, NARROW_UM / mpp) - gaussian_filter(image, WIDE_UM / mpp)


def surface_of(window: Window, xy: NDArray[np.float64], name: str) -> Surface:
    """Correlate the cells of a window, in pixels of the comparison, with its haematoxylin."""
    from scipy import fft

    inner = np.array(window.corner) + window.reach
    inside = ((xy >= inner) & (xy < inner + window.side)).all(axis=1)
    size = 2 * window.reach + 1
    middle = inner + window.side / 2
    if not inside.any():
        return Surface(name, np.zeros((size, size)), 0, middle, window.mpp)
    full = window.side + 2 * window.reach
    drawn = band(draw_points(xy[inside] - window.corner, full), window.mpp)
    spectrum = fft.rfft2(drawn, s=window.shape)
    cross = fft.irfft2(window.spectrum * np.conj(spectrum), s=window.shape)
    shifts = np.arange(-window.reach, window.reach + 1)
    norm = np.sqrt(window.energy * float(np.square(drawn, dtype=np.float64).sum()))
    # negative shifts are at the end: the transform goes round
    rho = cross[np.ix_(shifts, shifts)].astype(np.float64) / max(norm, 1e-12)
    return Surface(name, rho, int(inside.sum()), middle, window.mpp)


def draw_points(xy: NDArray[np.float64], side: int) -> NDArray[np.float32]:
    """Points as weights on the four pixels around each, whose middles are at halves; (side, side)."""
    place = xy - 0.5
    first = np.floor(place).astype(np.int64)
    part = place - first
    image = np.zeros((side, side), dtype=np.float32)
    for right in (0, 1):
        for below in (0, 1):
            weight = np.where(right, part[:, 0], 1 - part[:, 0]) * np.where(below, part[:, 1], 1 - part[:, 1])
            column, row = first[:, 0] + right, first[:, 1] + below
            on = (column >= 0) & (row >= 0) & (column < side) & (row < side)
            np.add.at(image, (row[on], column[on]), weight[on].astype(np.float32))
    return image


def best_peak(rho: NDArray[np.float64], mpp: float) -> Peak:
    """The highest correlation, between pixels by parabolas through its neighbors, and its lead over the next peak."""
    reach = rho.shape[0] // 2
    row, column = np.unravel_index(int(rho.argmax()), rho.shape)
    highest = float(rho[row, column])
    y, x = np.ogrid[: rho.shape[0], : rho.shape[1]]
    far = np.hypot(y - row, x - column) * mpp > APART_UM
    second = max(float(rho[far].max()), 0.0) if far.any() else 0.0
    confidence = 1 - second / highest if highest > 0 else 0.0
    dy = row - reach + _vertex(rho[:, column], int(row))
    dx = column - reach + _vertex(rho[row], int(column))
    return Peak(dx=float(dx * mpp), dy=float(dy * mpp), rho=highest, confidence=float(confidence))


def _vertex(line: NDArray[np.float64], at: int) -> float:
    """Where the parabola through a maximum and its neighbors has its top, from -0.5 to 0.5; 0 at an edge."""
    if at in {0, len(line) - 1}:
        return 0.0
    before, here, after = line[at - 1 : at + 2]
    curvature = before - 2 * here + after
    return 0.0 if curvature >= 0 else float(np.clip(0.5 * (before - after) / curvature, -0.5, 0.5))


def transform_px(xy: NDArray[np.float64], size: NDArray[np.float64], transform: str) -> NDArray[np.float64]:
    """Positions turned and mirrored with their frame, so that they end up in an image of this ``size`` (x, y).

    ``"rot90"`` turns counter-clockwise as seen, with y down: what was right is up. A frame that is turned by a quarter
    was as wide as this one is high.
    """
    turns = {"0": 0, "rot90": 1, "rot180": 2, "rot270": 3}
    name = transform.removeprefix("flip").removeprefix("_")
    quarters = turns["0" if name in {"", "identity"} else name]
    width, height = size if quarters % 2 == 0 else size[::-1]
    x, y = xy.T
    if transform.startswith("flip"):
        x = width - x
    for _ in range(quarters):
        x, y, width, height = y, width - x, height, width
    return np.column_stack([x, y])
