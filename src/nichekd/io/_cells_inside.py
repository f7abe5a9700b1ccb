"""Cells that lie outside their section's image."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from nichekd._frames import apply, find_frame, full_resolution
from nichekd._resolve import centres_um

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

MOST_OUTSIDE = 0.5  # share of the cells beyond which the alignment is wrong, not the image small


def inside(xy_px: NDArray[np.float64], width: int, height: int, what: str, *, stacklevel: int = 3) -> NDArray[np.bool_]:
    """Which cells lie inside an image, (n,); warns of the others, which are to be left out.

    Parameters
    ----------
    xy_px
        Centres in pixels, (n, 2).
    width, height
        Of the image, pixels.
    what
        What else may be wrong, for the message.
    stacklevel
        Of the warning: 3 where the caller is the reader itself.

    Raises
    ------
    ValueError
        If half of them, or more, lie outside.
    """
    kept = np.all((xy_px >= 0) & (xy_px < (width, height)), axis=1)
    n_outside = int(np.count_nonzero(~kept))
    if not n_outside:
        return kept
    low, high = xy_px.min(axis=0), xy_px.max(axis=0)
    where = f"{n_outside:,} of {len(kept):,} cells lie outside the H&E ({width:,} × {height:,} px)"
    if n_outside >= MOST_OUTSIDE * len(kept):
        raise ValueError(
            f"{where}: x runs from {low[0]:,.0f} to {high[0]:,.0f} px, y from {low[1]:,.0f} to {high[1]:,.0f} px. {what}"
        )
    warnings.warn(f"{where} and are left out.", UserWarning, stacklevel=stacklevel)
    return kept


def keep_cells_inside(sdata: SpatialData, table_key: str, shapes_key: str, image_key: str) -> AnnData:
    """Leave cells outside the image out of table and shapes; returns the table.

    Raises
    ------
    ValueError
        If half of them, or more, lie outside.
    """
    table = sdata.tables[table_key]
    xy = centres_um(table)
    _, height, width = full_resolution(sdata.images[image_key]).shape
    xy_px = apply(find_frame(sdata, table, image_key, xy).to_pixels, xy)
    kept = inside(xy_px, width, height, "Hand in the alignment of this image by he_alignment=.", stacklevel=4)
    if not kept.all():
        shapes = sdata.shapes[shapes_key]
        names = table.obs.loc[kept, table.uns["spatialdata_attrs"]["instance_key"]]
        sdata.shapes[shapes_key] = shapes[shapes.index.isin(names)]
        del sdata.tables[table_key]
        sdata.tables[table_key] = table[kept].copy()
    return sdata.tables[table_key]
