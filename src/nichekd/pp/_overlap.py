"""Whether what is seen of training cells may be seen of test cells, too."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

from nichekd._record import notes

if TYPE_CHECKING:
    from anndata import AnnData

    from nichekd._image import CellImage


def warn_if_crops_overlap(adata: AnnData, image: CellImage, *, side_px: float, mpp: float, stacklevel: int = 3) -> None:
    """Warn where the split leaves less room between training and test cells than their crops take.

    Parameters
    ----------
    adata
        The table, with what :func:`nichekd.pp.split` noted, if it ran.
    image
        The image.
    side_px, mpp
        Side of the tissue that is seen of a cell, in pixels of so many µm.
    stacklevel
        Of the warning.
    """
    split = notes(adata).get("split", {})
    if split.get("min_distance_px") is None or split.get("mpp") is None:
        return
    room_um, seen_um = float(split["min_distance_px"]) * float(split["mpp"]), side_px * mpp
    if seen_um <= room_um + mpp / 2:
        return
    warnings.warn(
        f"Of each cell {seen_um:.0f} µm of the image are seen, and the split leaves {room_um:.0f} µm between training and test "
        "cells: some of the same tissue is in both. Before this, run "
        f"nk.pp.split(sdata, crop_px={math.ceil(seen_um / image.mpp)}).",
        UserWarning,
        stacklevel=stacklevel,
    )
