"""All pairs of points at most a radius apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np

from nichekd.pp._grid import make_grid, runs_around

if TYPE_CHECKING:
    from numpy.typing import NDArray


class RadiusGraph(NamedTuple):
    """The arrays of a CSR matrix: sorted columns, symmetric, empty diagonal."""

    indptr: NDArray[np.integer]  # (n + 1,), of the indices' type
    indices: NDArray[np.integer]  # (n_edges,), int32, or int64 from 2³¹ edges on
    distances: NDArray[np.float32]  # (n_edges,)


def radius_graph(xy: NDArray[np.float64], radius: float, group: NDArray[np.int64]) -> RadiusGraph:
    """Pairs of points of one group with ``distance² ≤ radius²``, compared in float64, the pairs (i, i) left out.

    The points are sorted into a grid; rows are counted, then filled, both in parallel over its bins. All points of a
    bin share their candidates, so these are sorted by column once a bin, and rows come out sorted.

    Parameters
    ----------
    xy
        Points, (n, 2).
    radius
        Largest distance, positive.
    group
        Points of different groups are no neighbors, (n,); those of negative ones have none at all.

    Returns
    -------
    The graph.
    """
    grid = make_grid(xy, radius, group)
    degree = np.zeros(len(xy), dtype=np.int64)
    arrays = (grid.x, grid.y, grid.order, grid.bins, grid.start, grid.row_step, float(radius) * radius)
    _count(*arrays, degree)
    n_edges = int(degree.sum())
    dtype: type[np.integer] = np.int32 if n_edges < 2**31 else np.int64  # of both, as scipy wants it
    indptr = np.zeros(len(xy) + 1, dtype=dtype)
    np.cumsum(degree, out=indptr[1:])
    indices = np.empty(n_edges, dtype=dtype)
    distances = np.empty(n_edges, dtype=np.float32)
    _fill(*arrays, indptr, indices, distances)
    return RadiusGraph(indptr, indices, distances)


@numba.njit(parallel=True, cache=True)
def _count(x, y, order, bins, start, row_step, radius2, degree):
    for b in numba.prange(len(bins)):
        runs = runs_around(bins[b], bins, start, row_step)
        for i in range(start[b], start[b + 1]):
            n = -1  # the point itself
            for run in range(3):
                for j in range(runs[run, 0], runs[run, 1]):
                    dx = x[i] - x[j]
                    dy = y[i] - y[j]
                    n += dx * dx + dy * dy <= radius2
            degree[order[i]] = n


@numba.njit(cache=True)
def _candidates(runs, order):
    """Positions of the points in three runs, by ascending column."""
    n = 0
    for run in range(3):
        n += runs[run, 1] - runs[run, 0]
    found = np.empty(n, dtype=np.uint64)  # column and position as one number: sorting by it takes the position along
    n = 0
    for run in range(3):
        for j in range(runs[run, 0], runs[run, 1]):
            found[n] = (np.uint64(order[j]) << np.uint64(32)) | np.uint64(j)
            n += 1
    found.sort()
    return found & np.uint64(0xFFFFFFFF)


@numba.njit(parallel=True, cache=True)
def _fill(x, y, order, bins, start, row_step, radius2, indptr, indices, distances):
    for b in numba.prange(len(bins)):
        near = _candidates(runs_around(bins[b], bins, start, row_step), order)
        near_x, near_y, near_column = x[near], y[near], order[near]
        column = np.empty(len(near) + 1, dtype=indices.dtype)
        squared = np.empty(len(near) + 1, dtype=np.float64)
        for i in range(start[b], start[b + 1]):
            row = order[i]
            n = 0
            for k in range(len(near)):  # every candidate is written, and overwritten if it is none: no branch to miss
                dx = x[i] - near_x[k]
                dy = y[i] - near_y[k]
                d2 = dx * dx + dy * dy
                column[n] = near_column[k]
                squared[n] = d2
                n += (d2 <= radius2) & (near_column[k] != row)
            at = indptr[row]
            for k in range(n):
                indices[at + k] = column[k]
                distances[at + k] = np.sqrt(squared[k])
