from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING

import numpy as np

from nichekd._image import has_image
from nichekd._keys import Keys, Split
from nichekd._record import notes, record
from nichekd._resolve import get_table, split_of
from nichekd._sections import recorded_library
from nichekd._seeds import check_seed
from nichekd._units import as_number, nearest_distances, warn_if_pixels
from nichekd.pp._grid import count_near, make_grid
from nichekd.pp._libraries import centres_by_library, side_by_side

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd.pp._grid import Grid

log = logging.getLogger(__name__)

N_LOCATIONS = 50_000  # a mean over so many has a standard error of some 0.3 %
FEWEST_LOCATIONS = 1_000  # where neighborhoods are large
MOST_COUNTED = 50_000_000  # cells counted around all locations, beyond which these get fewer
REACH = 3  # median nearest-neighbor distances around a cell that are tissue
PRECISION = 1e-4  # of the radius, relative
TOLERANCE = 0.02  # of the mean count, relative


def estimate_radius(
    data: AnnData | SpatialData,
    *,
    n_neighbors: float = 50,
    split_key: str | None = Keys.SPLIT,
    library_key: str | None = None,
    seed: int = 0,
    table_key: str = "table",
) -> float:
    r"""Radius within which a random place in the tissue has ``n_neighbors`` training cells on average.

    Solves :math:`\frac{1}{m} \sum_{i=1}^{m} |\{j : \lVert u_i - x_j \rVert \le r\}| = \texttt{n_neighbors}` for
    :math:`r` by bisection, where :math:`x_j` are the training cells and :math:`u_i` 50,000 locations drawn uniformly
    from the training cells' bounding box and kept where tissue is: within three median nearest-neighbor distances of
    a training cell. Counts near the edge of the tissue are not corrected. One radius serves a data set: its test
    cells, and new slides.

    Parameters
    ----------
    data
        Cells with centres in µm.
    n_neighbors
        Cells that a neighborhood should have on average.
    split_key
        Column of ``obs`` with ``train`` / ``test`` / ``buffer``; if the default one is absent, all cells train.
    library_key
        Column of ``obs`` that tells sections apart, each with coordinates of its own; default the one that an earlier
        :func:`nichekd.pp.neighborhoods` or :func:`nichekd.pp.split` was given.
    seed
        Of the locations.
    table_key
        Table of a ``SpatialData``.

    Returns
    -------
    The radius in µm. Writes it to ``uns["nichekd"]["radius"]``, and ``uns["nichekd"]["estimate_radius"]``, in which
    ``mean_count`` is the mean that was reached.

    Raises
    ------
    KeyError
        If the table, ``obsm["spatial"]``, ``library_key``, or a ``split_key`` other than the default is missing.
    ValueError
        If ``n_neighbors`` is below 1 or not below the number of training cells, or out of reach within a library;
        or whatever is wrong with centres and split.

    Warns
    -----
    UserWarning
        If centres seem to be in pixels and there is no image to check them against.

    Examples
    --------
    >>> import numpy as np
    >>> import nichekd as nk
    >>> from anndata import AnnData
    >>> lattice = np.stack(np.meshgrid(np.arange(100.0), np.arange(100.0)), axis=-1).reshape(-1, 2)
    >>> radius = nk.pp.estimate_radius(AnnData(obsm={"spatial": 10 * lattice}), n_neighbors=12)
    >>> bool(19 < radius < 21)  # 12 cells of 100 µm² each are a circle of 19.5 µm; a little more at the edge
    True
    """
    check_seed(seed)
    start = time.perf_counter()
    adata = get_table(data, table_key)
    library_key = library_key or recorded_library(adata)
    xy, library = centres_by_library(adata, library_key)
    if library_key is None and not has_image(data):
        warn_if_pixels(xy)
    train = split_of(adata, split_key) == Split.TRAIN
    radius, mean_count = expected_count_radius(xy[train], library[train], n_neighbors, seed)

    notes(adata)[Keys.RADIUS] = radius
    record(
        adata,
        "estimate_radius",
        seconds=time.perf_counter() - start,
        n_neighbors=n_neighbors,
        split_key=split_key,
        library_key=library_key,
        seed=seed,
        radius=radius,
        mean_count=mean_count,
    )
    log.info("%.2f µm around a random place in the tissue hold %.1f training cells", radius, mean_count)
    return radius


def expected_count_radius(
    xy: NDArray[np.float64], library: NDArray[np.int64], target: float, seed: int
) -> tuple[float, float]:
    """The radius that :func:`estimate_radius` describes, µm, and the mean count that it reaches.

    Raises
    ------
    ValueError
        If no radius has ``target`` cells.
    """
    target = as_number(target, "n_neighbors=")
    if not (math.isfinite(target) and 1 <= target < len(xy)):
        raise ValueError(
            f"n_neighbors={target:g} is out of range: there are {len(xy):,} training cells, and it has to be at least "
            "1 and fewer than they are. Name the number of cells that a neighborhood should hold, or hand "
            "in a radius in µm: nk.pp.neighborhoods(data, radius=...)."
        )
    xy, largest = side_by_side(xy, library)
    spacing = float(np.median(nearest_distances(xy)))
    n_locations = int(np.clip(MOST_COUNTED / target, FEWEST_LOCATIONS, N_LOCATIONS))
    locations = tissue_locations(xy, REACH * spacing, n_locations, np.random.default_rng(seed))

    high = min(spacing * math.sqrt(2 * target), largest)  # a bit too large for cells strewn at random
    grid = make_grid(xy, high)
    while high < largest and _mean_count(grid, locations, high) < target:
        high = min(1.5 * high, largest)
        grid = make_grid(xy, high)
    low = 0.0
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        if _mean_count(grid, locations, middle) < target:
            low = middle
        else:
            high = middle
    mean_count = _mean_count(grid, locations, high)
    if abs(mean_count / target - 1) > TOLERANCE:
        raise ValueError(
            f"No radius holds {target:g} training cells on average: {high:,.1f} µm holds {mean_count:.1f}, and libraries "
            "are no larger, or their cells lie in clumps of equal distances. Choose another n_neighbors."
        )
    return high, mean_count


def _mean_count(grid: Grid, locations: NDArray[np.float64], radius: float) -> float:
    return float(count_near(grid, locations, radius).mean())


def tissue_locations(xy: NDArray[np.float64], reach: float, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw ``n`` places uniformly from the points' bounding box where a point lies within ``reach``, (n, 2).

    Drawn from the bins (as wide as ``reach``) that hold a point or touch one that does, a superset of the tissue, so
    that the effort does not depend on how much of the box is empty.
    """
    grid = make_grid(xy, reach)
    high = xy.max(axis=0)
    around = np.array([row * grid.row_step + column for row in (-1, 0, 1) for column in (-1, 0, 1)])
    row, column = np.divmod(np.unique(grid.bins[:, None] + around), grid.row_step)
    corner = grid.low + (np.column_stack([column, row]) - 1) * grid.side
    corner = corner[((corner >= grid.low) & (corner <= high)).all(axis=1)]
    # what of a bin is inside the box; a hair at least, for cells may lie on a line
    width = np.clip(high - corner, 1e-9 * grid.side, grid.side)
    share = width.prod(axis=1) / width.prod(axis=1).sum()

    kept: list[NDArray[np.float64]] = []
    while sum(map(len, kept)) < n:
        drawn = rng.choice(len(corner), size=n, p=share)
        places = np.minimum(corner[drawn] + rng.random((n, 2)) * width[drawn], high)
        kept.append(places[count_near(grid, places, reach) > 0])
    return np.concatenate(kept)[:n]
