"""Stain normalisation: a slide's colours as if it had been stained and scanned like a fixed reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from nichekd.pp._tiles import TileCache

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nichekd.pp._crops import CropReader
    from nichekd.pp._tiles import Tiles

Stain = Literal["macenko", "reinhard"]

LOG = np.log(np.maximum(np.arange(256), 1) / 255)  # of 8-bit light, at most 0
STAINED = 0.15  # optical density above which a pixel is tissue, in all colours (Macenko) or in one (Reinhard)
FEWEST = 500  # pixels
EXTREME = 1.0  # percentile of angles that is taken for a pure stain, and of amounts for the most
ALIKE = np.deg2rad(6)  # two stains closer than this are one
# haematoxylin and eosin of Ruifrok and Johnston, unit columns (3, 2), and how much of them a usual slide has at most
REFERENCE = np.array([[0.65, 0.07], [0.70, 0.99], [0.29, 0.11]])
REFERENCE /= np.linalg.norm(REFERENCE, axis=0)
REFERENCE_MOST = np.array([1.6, 1.0])
# means and standard deviations of l, alpha and beta in tissue, between OpenSlide's CMU-1 (-0.64, -0.07, 0.03 and 0.40,
# 0.09, 0.02) and the bundled section (-0.21, -0.07, 0.01 and 0.14, 0.04, 0.005)
REFERENCE_MEAN, REFERENCE_SD = np.array([-0.45, -0.07, 0.02]), np.array([0.25, 0.06, 0.015])
TO_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
TO_LAB = np.diag(1 / np.sqrt([3, 6, 2])) @ np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]])


@dataclass(frozen=True)
class StainNormaliser:
    r"""What a slide's colours are taken through.

    ``"macenko"`` :cite:`Macenko2009`: optical density :math:`-\log(I / 255) = S c` is stains times amounts. S, (3, 2),
    are the extreme directions of tissue in the plane of its two largest principal components; amounts are scaled so
    that their 99th percentile is the reference's, and the reference's stains put in place of S.

    ``"reinhard"`` :cite:`Reinhard2001`: in the space lαβ, which is linear in the logarithm of cone responses, mean and
    standard deviation of tissue become the reference's. Glass, of which they know nothing, stays as it is.

    Both are an affine map of logarithms, which is what is kept.
    """

    method: Stain
    matrix: NDArray[np.float64]  # (3, 3)
    offset: NDArray[np.float64]  # (3,)

    @classmethod
    def fit(cls, method: Stain, pixels: NDArray[np.uint8]) -> StainNormaliser:
        """Learn a slide's colours.

        Parameters
        ----------
        method
            ``"macenko"`` or ``"reinhard"``.
        pixels
            Some of the slide, (n, 3).

        Raises
        ------
        ValueError
            If there is no such method; if there are fewer than 500 pixels of tissue; if they show one stain only.
        """
        if method not in get_args(Stain):
            raise ValueError(f"stain={method!r}; choose one of {list(get_args(Stain))}, or None.")
        log = LOG[pixels]  # (n, 3)
        tissue = -log.max(axis=1) > STAINED if method == "macenko" else -log.min(axis=1) > STAINED
        if tissue.sum() < FEWEST:
            raise ValueError(
                f"stain={method!r} needs stained tissue around the cells; of {len(pixels):,} pixels looked at there, "
                f"{tissue.sum():,} are. Is it the H&E? Leave it as it is by stain=None."
            )
        return cls(method, *(_macenko(-log[tissue]) if method == "macenko" else _reinhard(pixels[tissue])))

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Pixels (3, y, x) in the reference's colours."""
        flat = pixels.reshape(3, -1)
        if self.method == "macenko":
            light = np.exp(self.matrix @ LOG[flat])
        else:
            log_lms = np.log10(np.maximum(TO_LMS @ (np.maximum(flat, 1) / 255), 1e-6))
            light = np.linalg.solve(TO_LMS, 10 ** (self.matrix @ log_lms + self.offset[:, None]))
            stained = np.clip(-LOG[flat].min(axis=0) / STAINED, 0, 1)
            light = stained * light + (1 - stained) * flat / 255
        return np.clip(np.rint(255 * light), 0, 255).astype(np.uint8).reshape(pixels.shape)


def _macenko(density: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    _, axes = np.linalg.eigh(np.cov(density.T))
    plane = axes[:, [2, 1]]  # (3, 2), the largest first
    plane *= np.where(plane.sum(axis=0) < 0, -1, 1)  # tissue lies ahead, not behind
    angle = np.arctan2(density @ plane[:, 1], density @ plane[:, 0])
    low, high = np.percentile(angle, (EXTREME, 100 - EXTREME))
    if high - low < ALIKE:
        raise ValueError(
            f"stain='macenko' finds one stain only: all tissue has the same hue within {np.rad2deg(high - low):.1f} "
            "degrees. Take stain='reinhard', or None."
        )
    stains = plane @ np.array([[np.cos(low), np.cos(high)], [np.sin(low), np.sin(high)]])  # (3, 2)
    if stains[0, 0] < stains[0, 1]:  # haematoxylin takes more of the red
        stains = stains[:, ::-1]
    most = np.percentile(density @ np.linalg.pinv(stains).T, 100 - EXTREME, axis=0)
    return (REFERENCE * (REFERENCE_MOST / most)) @ np.linalg.pinv(stains), np.zeros(3)


def _reinhard(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    lab = np.log10(np.maximum(np.maximum(pixels, 1) / 255 @ TO_LMS.T, 1e-6)) @ TO_LAB.T  # (n, 3)
    scale = REFERENCE_SD / np.maximum(lab.std(axis=0), 1e-3)
    back = np.linalg.inv(TO_LAB)
    return back @ np.diag(scale) @ TO_LAB, back @ (REFERENCE_MEAN - scale * lab.mean(axis=0))


class StainedTiles:
    """Tiles in the reference's colours, each made once while it is in use."""

    def __init__(self, source: Tiles, normalise: StainNormaliser, cache_bytes: int) -> None:
        self._source, self._normalise = source, normalise
        self.y_edges, self.x_edges = source.y_edges, source.x_edges
        self._cache = TileCache(cache_bytes)

    def tile(self, row: int, column: int) -> NDArray[np.uint8]:
        """A tile of the normalised image."""
        return self._cache.get((row, column), lambda: self._normalise(self._source.tile(row, column)))


def fit_stain(method: Stain, reader: CropReader, *, n_crops: int = 64, every: int = 4) -> StainNormaliser:
    """Learn the colours around cells spread over the slide, from every fourth pixel each way."""
    order = reader.order()
    spread = order[np.unique(np.linspace(0, len(order) - 1, n_crops).astype(np.int64))]
    crops = reader.read(spread)[:, :, ::every, ::every]
    return StainNormaliser.fit(method, np.moveaxis(crops, 1, -1).reshape(-1, 3))
