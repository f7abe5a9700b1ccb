"""``--split``: a strip of tissue held out, also of a table that comes without its image."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

log = logging.getLogger(__name__)


def split_tissue(cells: AnnData | SpatialData, *, use_rep: str | None, table_key: str) -> None:
    """Split by :func:`nichekd.pp.split`, between the crops that the features, ``use_rep`` or the last ones, are of.

    Without an image, what was noted of the features says how large their crops are; features of unknown origin leave
    no buffer, and a warning.
    """
    from nichekd import pp
    from nichekd._image import has_image
    from nichekd._keys import Keys
    from nichekd._record import notes
    from nichekd._resolve import get_table

    if has_image(cells):
        pp.split(cells, table_key=table_key)
        return
    known = notes(get_table(cells, table_key))
    rep = use_rep or known.get(Keys.LAST_REP)
    about = known.get(Keys.FEATURES, {}).get(rep, {})
    if "crop_px" in about and "mpp" in about:
        side_px = int(about["crop_px"]) + int(about.get("stride_px", 0))  # of the pixels that a cell's features are of
        pp.split(cells, crop_px=side_px, mpp=float(about["mpp"]), table_key=table_key)
        return
    log.warning(
        "There is no image, and nichekd did not make the features: the split leaves no buffer between training and test "
        "cells (crop_px=0). If the features are of crops wider than a cell, both sides see the same tissue at the border; "
        "name the IMAGE after the cells for a split that keeps them apart."
    )
    pp.split(cells, crop_px=0, table_key=table_key)
