"""A uniform grid over points, to find those near a place: what every neighbor search here goes by."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_BINS = 2**30  # bins along an axis; their product has to fit into 63 bits
SLACK = 1 + 1e-6  # bins are this much wider than the radius, lest rounding puts two points at the radius two bins apart


class Grid(NamedTuple):
    """Points sorted into square bins, row after row of them.

    Whatever lies within ``side / SLACK`` of a point is in its bin or the eight around it, which are three runs of the
    sorted points. Only bins that hold points take memory.
    """

    x: NDArray[np.float64]  # (n,), sorted by bin
    y: NDArray[np.float64]  # (n,)
    order: NDArray[np.int64]  # (n,), which point it was; ascending within a bin
    bins: NDArray[np.int64]  # (n_bins,), ascending: column + row · row_step
    start: NDArray[np.int64]  # (n_bins + 1,), a bin's first point
    row_step: np.int64
    side: float
    low: NDArray[np.float64]  # (2,), corner of bin (1, 1), of the first group


def make_grid(xy: NDArray[np.float64], radius: float, group: NDArray[np.int64] | None = None) -> Grid:
    """Sort points into bins as wide as ``radius``.

    Parameters
    ----------
    xy
        Points, (n, 2), at least one.
    radius
        Largest distance that will be asked for, positive.
    group
        Each group has a grid of its own, with an empty margin, all below one another, so that no bin is next to
        another group's; points of negative groups are left out, (n,).

    Returns
    -------
    The grid.
    """
    group = np.zeros(len(xy), dtype=np.int64) if group is None else group
    members = np.flatnonzero(group >= 0)
    xy, code = xy[members], pd.factorize(group[members])[0]
    n_groups = int(code.max(initial=0)) + 1
    low, high = np.full((n_groups, 2), np.inf), np.full((n_groups, 2), -np.inf)
    np.minimum.at(low, code, xy)
    np.maximum.at(high, code, xy)
    size = np.maximum(high - low, 0.0)  # 0 where there are no points at all
    side = max(radius * SLACK, float(size.max()) / MOST_BINS * n_groups)
    column, row = np.floor((xy - low[code]) / side).astype(np.int64).T + 1
    n_columns, n_rows = np.floor(size / side).astype(np.int64).T + 3
    row_step = np.int64(n_columns.max())
    top = np.append(0, np.cumsum(n_rows)[:-1])
    key = (top[code] + row) * row_step + column

    by_bin = np.argsort(key, kind="stable")
    key, order = key[by_bin], members[by_bin]
    first = np.flatnonzero(np.diff(key, prepend=np.int64(-1)))  # keys are positive
    x, y = (np.ascontiguousarray(xy[by_bin, axis]) for axis in (0, 1))
    return Grid(x, y, order, key[first], np.append(first, len(key)), row_step, side, low[0])


@numba.njit(cache=True)
def runs_around(key, bins, start, row_step):
    """The three runs of points, (3, 2), in the bins above, beside and below bin ``key``."""
    runs = np.empty((3, 2), dtype=np.int64)
    for i in range(3):
        middle = key + (i - 1) * row_step
        runs[i, 0] = start[np.searchsorted(bins, middle - 1)]
        runs[i, 1] = start[np.searchsorted(bins, middle + 1, side="right")]
    return runs


def count_near(grid: Grid, places: NDArray[np.float64], radius: float) -> NDArray[np.int64]:
    """Points within ``radius`` of each place, (m,), for a grid of one group.

    Parameters
    ----------
    grid
        The points.
    places
        (m, 2), in the bounding box of the points.
    radius
        At most the one that the grid was made for.

    Returns
    -------
    Counts of ``distance² ≤ radius²``.
    """
    column, row = np.floor((places - grid.low) / grid.side).astype(np.int64).T + 1
    counts = np.empty(len(places), dtype=np.int64)
    x, y = (np.ascontiguousarray(places[:, axis]) for axis in (0, 1))
    key = row * grid.row_step + column
    _count_near(x, y, key, grid.x, grid.y, grid.bins, grid.start, grid.row_step, float(radius) * radius, counts)
    return counts


@numba.njit(parallel=True, cache=True)
def _count_near(px, py, key, x, y, bins, start, row_step, radius2, counts):
    for i in numba.prange(len(px)):
        runs = runs_around(key[i], bins, start, row_step)
        n = 0
        for run in range(3):
            for j in range(runs[run, 0], runs[run, 1]):
                dx = px[i] - x[j]
                dy = py[i] - y[j]
                n += dx * dx + dy * dy <= radius2
        counts[i] = n
