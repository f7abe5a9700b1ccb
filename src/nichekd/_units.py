"""Guards against the commonest unit mistakes: pixels for micrometres, and a resolution no microscope has."""

from __future__ import annotations

import math
import warnings
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MPP_RANGE = (0.05, 5.0)  # µm per px: beyond a 100× oil lens, and a thumbnail in which a cell is two pixels
MPP_TOLERANCE = 0.02  # relative; two figures for the same resolution that differ by more contradict each other
SPARSEST_UM = 25.0  # median distance to the nearest cell; in tissue it is 5 to 15 µm
CLOSEST = 0.45  # of that median; among all cells of a tissue, hardly two are nearer to each other
FEWEST = 1_000  # cells below which a hand-picked subset is as likely as a wrong unit
MOST = 100_000  # cells that are looked at
LATTICE = 0.1  # relative spread of nearest-neighbor distances under which the points are spots on a lattice


def check_mpp(mpp: float, what: str) -> float:
    """``mpp`` itself if it is a resolution of a microscope.

    Raises
    ------
    TypeError
        If it is no number.
    ValueError
        If it is NaN, or outside ``MPP_RANGE``.
    """
    low, high = MPP_RANGE
    mpp = as_number(mpp, what)
    if not (math.isfinite(mpp) and low <= mpp <= high):
        raise ValueError(
            f"{what} is {mpp:.4g} µm per pixel; a microscope image has {low} to {high}. Hand in the resolution of the "
            "image's full-size level by mpp=."
        )
    return float(mpp)


def as_number(value: Any, what: str) -> float:
    """``value`` as Python's own float.

    Raises
    ------
    TypeError
        If it is a text, a list, or anything else that is no single real number.
    """
    if isinstance(value, np.ndarray) and not value.ndim:
        value = value.item()  # as some formats give a number back
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{what} is {value!r}, a {type(value).__name__}; it has to be a number.")
    return float(value)


def same_mpp(one: float, other: float) -> bool:
    """Whether two resolutions are the same within ``MPP_TOLERANCE``."""
    return math.isclose(one, other, rel_tol=MPP_TOLERANCE)


def nearest_distances(xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each cell to the nearest other one; of many cells, for those in a band across their middle.

    A band, because neighbors stay neighbors in it, which they don't in a random sample.
    """
    from scipy.spatial import cKDTree

    n = len(xy)
    if n > MOST:
        first = (n - MOST) // 2
        xy = xy[np.argpartition(xy[:, 0], (first, first + MOST - 1))[first : first + MOST]]
    return cKDTree(xy).query(xy, k=2)[0][:, 1]


def impossible_spacing(xy: NDArray[np.float64]) -> float | None:
    """Median distance between nearest cells if no tissue has it in µm, else ``None``.

    Spots on a lattice (Visium: 100 µm) are spared: their nearest-neighbor distances are all alike, those of cells
    vary by half their median.
    """
    if len(xy) < FEWEST:
        return None
    quarter, median, three_quarters = np.percentile(nearest_distances(xy), (25, 50, 75))
    is_lattice = three_quarters - quarter <= LATTICE * median
    return float(median) if median > SPARSEST_UM and not is_lattice else None


def warn_if_pixels(xy: NDArray[np.float64]) -> None:
    """Warn where cells are so far apart that their coordinates are in pixels rather than µm.

    For data that come without an image; with one, the positions are checked against it.
    """
    spacing = impossible_spacing(xy)
    if spacing is not None:
        warnings.warn(
            f"obsm['spatial'] puts nearest cells a median {spacing:.1f} apart; in tissue it is 5 to 15 µm, so these "
            "seem to be pixels, not µm. If so: adata.obsm['spatial'] *= mpp, with the image's µm per pixel.",
            UserWarning,
            stacklevel=3,
        )


def warn_if_pixels_of(xy: NDArray[np.float64], mpp: float, image_key: str) -> None:
    """Warn where cells on an image of ``mpp`` lie in µm as those of tissue would in its pixels.

    A sparse kind of cell alone, as immune cells in stroma, is far apart too, but here and there two of them touch; in
    pixels, the nearest of all cells keep a distance as well. Their 5 % quantile is 0.27 medians for points strewn at
    random, and 0.6 to 0.75 for the cells of tissues.
    """
    if len(xy) < FEWEST or mpp >= 1:
        return
    close, quarter, median, three_quarters = np.percentile(nearest_distances(xy), (5, 25, 50, 75))
    is_lattice = three_quarters - quarter <= LATTICE * median
    if is_lattice or not SPARSEST_UM < median < SPARSEST_UM / mpp or close <= CLOSEST * median:
        return
    warnings.warn(
        f"On image {image_key!r}, nearest cells are a median {median:.1f} µm apart, and hardly two touch; in tissue it is "
        f"5 to 15 µm, so obsm['spatial'] seems to be in pixels. If so: adata.obsm['spatial'] *= mpp, here {mpp:.6g}. If "
        "the table holds a sparse kind of cell alone, all is well.",
        UserWarning,
        stacklevel=4,
    )
