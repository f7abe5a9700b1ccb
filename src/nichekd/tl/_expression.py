"""The expression latent that is missing, made as teachers need it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from nichekd._keys import Split
from nichekd._resolve import get_table, split_of
from nichekd._sections import cells_of_libraries, recorded_library

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

log = logging.getLogger(__name__)


def express(data: AnnData | SpatialData, *, split_key: str, seed: int, device: str | None, table_key: str) -> None:
    """ScVI's latent of all cells; of several sections, corrected for what differs between them.

    Without that, niches would be sections as soon as these differ in anything but their tissue.
    """
    from nichekd import pp

    batch_key = _sections_as_batches(get_table(data, table_key), split_key)
    if batch_key is not None:
        log.info("scVI corrects for the sections of obs[%r]", batch_key)
    pp.expression_features(
        data, batch_key=batch_key, split_key=split_key, seed=seed, device=device, table_key=table_key
    )


def _sections_as_batches(adata: AnnData, split_key: str) -> str | None:
    """The column of sections, where there are several and scVI sees training cells of each."""
    library_key = recorded_library(adata)
    if library_key is None:
        return None
    is_train = split_of(adata, split_key) == Split.TRAIN
    sections = cells_of_libraries(adata, library_key)
    if without := [name for name, cells in sections.items() if not np.any(is_train[cells])]:
        log.info("scVI does not correct for sections: %s have no training cells", without)
        return None
    return library_key if len(sections) > 1 else None
