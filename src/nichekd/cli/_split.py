"""``--split``: a strip of tissue held out, also of a table that comes without its image."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

log = logging.getLogger(__name__)


def split_tissue(
    cells: AnnData | SpatialData, *, use_rep: str | None, table_key: str, library_key: str | None = None
) -> None:
    """Split by :func:`nichekd.pp.split`, between the crops that the features, ``use_rep`` or the last ones, are of.

    What was noted of the features says how much of the image they see; where there are none yet, crops are those of
    ``nk.pp.histology_features`` by default. Without an image, features of unknown origin leave no buffer, and a warning.
    """
    from nichekd import pp
    from nichekd._image import get_image, has_image
    from nichekd._keys import Keys
    from nichekd._record import notes
    from nichekd._resolve import get_table
    from nichekd.pp._overlap import seen_um

    adata = get_table(cells, table_key)
    rep = use_rep or notes(adata).get(Keys.LAST_REP)
    about = notes(adata).get(Keys.FEATURES, {}).get(rep, {})
    seen = seen_um(about)
    if seen is not None:
        key = about.get("image") if has_image(cells) else None
        mpp = float(about["mpp"]) if key is None else get_image(cells, adata, image_key=key).mpp  # type: ignore[arg-type]
        pp.split(
            cells, crop_px=math.ceil(seen / mpp - 1e-6), mpp=mpp, image_key=key, library_key=library_key,
            table_key=table_key,
        )  # fmt: skip
        return
    if has_image(cells):
        pp.split(cells, library_key=library_key, table_key=table_key)
        return
    log.warning(
        "There is no image, and nichekd did not make the features: the split leaves no buffer between training and test "
        "cells (crop_px=0). If the features are of crops wider than a cell, both sides see the same tissue at the border; "
        "name the IMAGE after the cells for a split that keeps them apart."
    )
    pp.split(cells, crop_px=0, library_key=library_key, table_key=table_key)
