"""The cells of an evaluation, checked before the work begins."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

from nichekd._image import has_image
from nichekd._keys import Keys, Split
from nichekd._labels import labels_of
from nichekd._resolve import get_table, split_of
from nichekd.tl._inputs import check_n_niches
from nichekd.tl._pathology_probe import check_annotated

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData
    from numpy.typing import NDArray

    from nichekd.tl._evaluation_plan import Plan

log = logging.getLogger(__name__)

FEW = 5  # test cells per niche: on fewer, partitions agree by chance


def check_cells(data: Any, plan: Plan) -> None:
    """What would otherwise fail after hours; splits the tissue where it is not.

    Raises
    ------
    KeyError
        If a column is missing, or the split is and there is no image to make it by.
    ValueError
        If K is impossible, there is no test cell, or none with a type or an annotation.

    Warns
    -----
    UserWarning
        If there are few test cells, or cells lie beside the nuclei of the image.
    """
    from nichekd.pp._alignment_qc import warn_if_misaligned

    adata = get_table(data, plan.table_key)
    if plan.split_key == Keys.SPLIT and Keys.SPLIT not in adata.obs:
        _split(data, plan)
    split = split_of(adata, plan.split_key)
    for n_niches in plan.K:
        check_n_niches(n_niches, int((split == Split.TRAIN).sum()))
    test = split == Split.TEST
    _check_test_side(int(test.sum()), plan)
    if plan.cell_type_key is not None:
        _check_types(adata, plan.cell_type_key, test)
    if plan.annotation_key is not None:
        check_annotated(
            adata, plan.annotation_key, subset=Split.TEST, split_key=plan.split_key,
            advice="Name another annotation_key=, or a split with annotated test cells by split_key=.",
        )  # fmt: skip
    warn_if_misaligned(data, table_key=plan.table_key)


def _split(data: Any, plan: Plan) -> None:
    """Four strips of tissue, the second is test."""
    from nichekd import pp

    if not has_image(data):
        raise KeyError(
            f"obs[{Keys.SPLIT!r}] is missing, and there is no image whose µm per pixel would tell how wide crops are. "
            "Split it first: nk.pp.split(data, mpp=...), with crop_px=0 in place of mpp= if its features are of no crops."
        )
    log.info("no split yet: four strips, the second is test")
    pp.split(data, table_key=plan.table_key)


def _check_test_side(n_test: int, plan: Plan) -> None:
    """That there is something to judge on."""
    if not n_test:
        raise ValueError(
            f"obs[{plan.split_key!r}] has no cell {Split.TEST!r}, and all is judged on test cells. Run nk.pp.split, or "
            "name another column by split_key=."
        )
    if n_test < FEW * max(plan.K):
        warnings.warn(
            f"obs[{plan.split_key!r}] has {n_test:,} test cells for K={max(plan.K)} niches: on so few, scores say next "
            "to nothing, a perfect one included. Ask for fewer niches, or split otherwise: nk.pp.split(n_strips=...).",
            UserWarning,
            stacklevel=5,
        )


def _check_types(adata: AnnData, key: str, test: NDArray[np.bool_]) -> None:
    types = labels_of(adata, key, run="your cell typing")
    if not (types.codes[test] >= 0).any():
        raise ValueError(f"obs[{key!r}] names the type of no test cell. Name another column by cell_type_key=.")
