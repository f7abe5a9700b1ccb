"""An order of the cells in which neighbors in the list are neighbors in the tissue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

FINEST = 64  # px; within a square of the curve's grid cells stay in the table's order


def hilbert_index(x: NDArray[np.int64], y: NDArray[np.int64], n_bits: int) -> NDArray[np.int64]:
    """Position of grid squares on the Hilbert curve through a grid of 2^n_bits × 2^n_bits.

    Squares that follow each other share a side, and any aligned sub-square of a power of two is left only when it is
    done.

    Parameters
    ----------
    x, y
        Column and row, each in [0, 2^n_bits).
    n_bits
        At most 31.
    """
    x, y = x.astype(np.int64), y.astype(np.int64)
    index = np.zeros_like(x)
    for bit in reversed(range(n_bits)):
        side = 1 << bit
        right, below = (x & side) > 0, (y & side) > 0
        index += side * side * ((3 * right) ^ below)
        x, y = x & (side - 1), y & (side - 1)
        # in each quarter the same curve again, turned so that its ends meet those of the next
        turned = right & ~below
        x, y = np.where(turned, side - 1 - x, x), np.where(turned, side - 1 - y, y)
        x, y = np.where(below, x, y), np.where(below, y, x)
    return index


def reading_order(
    centre_px: NDArray[np.int64], y_edges: NDArray[np.int64], x_edges: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Cells along a Hilbert curve that finishes one tile of the image before it enters the next.

    Parameters
    ----------
    centre_px
        (n, 2): column, row; inside the image.
    y_edges, x_edges
        Where tiles begin, and the size of the image.

    Returns
    -------
    Permutation of the cells, (n,).
    """
    longest = max(int(np.diff(y_edges).max()), int(np.diff(x_edges).max()))
    per_tile = 1 << max(0, int(np.ceil(np.log2(longest / FINEST))))  # a power of two, so that tiles are aligned
    column, row = (
        _grid(positions, edges, per_tile) for positions, edges in zip(centre_px.T, (x_edges, y_edges), strict=True)
    )
    n_bits = int(max(column.max(initial=0), row.max(initial=0))).bit_length()
    return np.argsort(hilbert_index(column, row, n_bits), kind="stable")


def _grid(positions: NDArray[np.int64], edges: NDArray[np.int64], per_tile: int) -> NDArray[np.int64]:
    tile = np.searchsorted(edges, positions, side="right") - 1
    within = (positions - edges[tile]) * per_tile // (edges[tile + 1] - edges[tile])
    return tile * per_tile + within
