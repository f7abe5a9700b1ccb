"""Cells of several sections in one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nichekd._keys import Keys
from nichekd._resolve import centres_um, require
from nichekd._sections import library_codes

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray


def centres_by_library(adata: AnnData, library_key: str | None) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Checked centres in µm, (n, 2), and a number for each cell's library, (n,).

    Libraries have coordinates of their own: two cells at the same place are duplicates in one library only.

    Raises
    ------
    KeyError
        If ``library_key`` or ``obsm["spatial"]`` is missing.
    ValueError
        If a cell has no library, or centres are not as :func:`~nichekd._resolve.centres_um` wants them.
    """
    if library_key is None:
        return centres_um(adata, together=True), np.zeros(adata.n_obs, dtype=np.int64)
    code = library_codes(adata, library_key)
    for library in range(code.max(initial=-1) + 1):
        centres_um(adata[code == library], together=True)
    return np.asarray(require(adata, "obsm", Keys.SPATIAL, run="nk.io.paired"), dtype=np.float64), code


def side_by_side(xy: NDArray[np.float64], library: NDArray[np.int64]) -> tuple[NDArray[np.float64], float]:
    """Libraries moved along x until none is nearer to another than its own extent; and that distance."""
    names, code = np.unique(library, return_inverse=True)
    low = np.array([xy[code == i].min(axis=0) for i in range(len(names))])
    high = np.array([xy[code == i].max(axis=0) for i in range(len(names))])
    size = high - low
    gap = float(np.hypot(*size.max(axis=0)))
    left = np.append(0.0, np.cumsum(size[:-1, 0] + gap))
    return xy - low[code] + np.column_stack([left, np.zeros(len(names))])[code], gap
