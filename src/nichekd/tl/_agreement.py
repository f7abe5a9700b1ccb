from __future__ import annotations

import logging
from time import perf_counter
from typing import TYPE_CHECKING

import pandas as pd

from nichekd._keys import Keys
from nichekd._labels import REFERENCE, label_pairs
from nichekd._matching import ari_nmi
from nichekd._record import notes, record
from nichekd._resolve import get_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

log = logging.getLogger(__name__)


def agreement(
    data: AnnData | SpatialData,
    *,
    keys: Sequence[str] | str | None = None,
    reference: str = REFERENCE,
    subset: str | None = "test",
    split_key: str = Keys.SPLIT,
    table_key: str = "table",
) -> pd.DataFrame:
    r"""How well the niches of each method agree with the reference's, whatever they are called.

    The adjusted Rand index, 0 for a random labeling and 1 for the same partition, and the normalised mutual
    information :math:`2 I(U; V) / (H(U) + H(V))`, in [0, 1].

    Parameters
    ----------
    data
        Cells with the labels of the methods and of the reference.
    keys
        Columns of ``obs`` to judge. For ``None`` ``niche``, ``niche_histology_nolan``, ``niche_histology_leiden`` and
        all other categorical ``niche_*`` columns that there are, the reference left out.
    reference
        Column of ``obs`` with the reference's niches: of a student that labels of your own taught, that column.
    subset
        ``"train"``, ``"test"`` or ``"buffer"``; all cells for ``None``. Fitted methods are to be judged on the test
        cells: on the others they have seen the answer.
    split_key
        Column of ``obs`` with the split, read only if ``subset`` is given.
    table_key
        Table of a ``SpatialData``.

    Returns
    -------
    A row per method: ``key``, ``ARI``, ``NMI``, and ``n_cells``, the cells compared. Cells that miss either label are
    left out, and their number is logged.
    Writes ``uns["nichekd"]["agreement"]``.

    Raises
    ------
    KeyError
        If a column, or the split of a ``subset``, is missing, or no method has been run.
    ValueError
        If ``subset`` has no cell, or no cell has both labels.

    Examples
    --------
    >>> from anndata import AnnData
    >>> import nichekd as nk
    >>> adata = AnnData(obs={"niche_teacher": list("aabb"), "niche": list("yyxx"), "split": ["test"] * 4})
    >>> nk.tl.agreement(adata)
         key  ARI  NMI  n_cells
    0  niche  1.0  1.0        4
    """
    start = perf_counter()
    adata = get_table(data, table_key)
    rows = []
    for key, target, labels in label_pairs(adata, keys, reference=reference, subset=subset, split_key=split_key):
        _warn_of_another_teacher(adata, key, reference)
        ari, nmi = ari_nmi(target.codes, labels.codes)
        rows.append({"key": key, "ARI": ari, "NMI": nmi, "n_cells": len(labels)})
    record(
        adata,
        "agreement",
        seconds=perf_counter() - start,
        keys=[row["key"] for row in rows],
        reference=reference,
        subset="all" if subset is None else subset,
    )
    return pd.DataFrame(rows)


def _warn_of_another_teacher(adata: AnnData, key: str, reference: str) -> None:
    """Log where a student was taught by a column of labels, and is judged by another."""
    teacher = notes(adata).get("distill" if key == Keys.NICHE else f"distill_{key}", {}).get("teacher")
    if teacher in adata.obs and teacher != reference:
        log.warning(
            "the student of obs[%r] was taught by obs[%r], and is compared with obs[%r]; to see how well it learned, "
            "reference=%r",
            key, teacher, reference, teacher,
        )  # fmt: skip
