"""Where cells are drawn: in their places, or, where sections of one table lie on top of each other, side by side."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from nichekd._resolve import centres_um, get_table
from nichekd._sections import library_codes, recorded_library

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

GAP = 0.08  # between sections, in sides of the largest


def table_to_draw(data: AnnData | SpatialData, table_key: str) -> AnnData:
    """The cell table, as :func:`nichekd._resolve.get_table` finds it.

    Raises
    ------
    ValueError
        If it has no cell.
    """
    adata = get_table(data, table_key)
    if not adata.n_obs:
        raise ValueError("The table has 0 cells, so there is nothing to draw. Hand in one that has some.")
    return adata


def places(data: AnnData | SpatialData, adata: AnnData, shown: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Where the cells ``shown`` are drawn, µm, (m, 2).

    Sections, by the column that :func:`nichekd.pp.neighborhoods` or :func:`nichekd.pp.split` was given, keep their
    places where their boxes do not touch, as those of a tissue microarray. Otherwise each is moved as a whole, to rows
    of a square grid in the order of the table.
    """
    from nichekd._image import has_image

    xy = centres_um(adata)[shown]
    section = sections(adata, shown)
    if has_image(data) or not section.any():
        return xy  # on an image, all have their place
    boxes = [(xy[section == one].min(axis=0), xy[section == one].max(axis=0)) for one in range(section.max() + 1)]
    low, high = (np.array(corner) for corner in zip(*boxes, strict=True))  # (n_sections, 2) each
    if not _any_overlap(low, high):
        return xy
    step = (high - low).max(axis=0) + GAP * (high - low).max()
    n_columns = math.ceil(math.sqrt(len(boxes)))
    cell = np.array([(i % n_columns, i // n_columns) for i in range(len(boxes))])
    return xy + (cell * step - low)[section]


def sections(adata: AnnData, shown: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Number of the section that each cell ``shown`` is from, (m,); 0 of all where nothing tells them apart."""
    library_key = recorded_library(adata)
    if library_key is None or library_key not in adata.obs or adata.obs[library_key].isna().any():
        return np.zeros(np.count_nonzero(shown), dtype=np.intp)
    return np.unique(library_codes(adata, library_key)[shown], return_inverse=True)[1]


def _any_overlap(low: NDArray[np.float64], high: NDArray[np.float64]) -> bool:
    """Whether any two boxes share a place."""
    apart = (low[:, None] > high[None]).any(axis=2)  # to the right of, or below
    return not (apart | apart.T | np.eye(len(low), dtype=bool)).all()
