from __future__ import annotations

import logging
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nichekd._keys import Keys
from nichekd._labels import REFERENCE, labels_of, niche_keys, subset_mask
from nichekd._matching import contingency, jensen_shannon, match_by_composition
from nichekd._record import record
from nichekd._resolve import get_table
from nichekd._seeds import check_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

log = logging.getLogger(__name__)


def composition_divergence(
    data: AnnData | SpatialData,
    *,
    cell_type_key: str,
    keys: Sequence[str] | str | None = None,
    reference: str = REFERENCE,
    subset: str | None = "test",
    n_permutations: int = 10_000,
    split_key: str = Keys.SPLIT,
    seed: int = 0,
    table_key: str = "table",
) -> pd.DataFrame:
    r"""How far the niches' cell-type compositions are from the reference's.

    The niches of a method are matched to those of the reference one-to-one, so that the sum of the Jensen-Shannon
    divergences (base 2; the divergence, not its square root) between their compositions is least. What is returned is
    the mean over the matched pairs :math:`(i, \pi(i))` weighted by the size :math:`n_i` of the reference's niche,

    .. math:: \mathrm{JSD} = \sum_i n_i \, \mathrm{JSD}_2(P_i, Q_{\pi(i)}) \Big/ \sum_i n_i ,

    the sums going over the matched niches alone: where one side has fewer niches, the rest of the other side is left
    out and counted. The p-value compares it with ``n_permutations`` random one-to-one pairings of the same niches,

    .. math:: p = \frac{1 + \#\{\text{random pairings with a mean} \le \mathrm{JSD}\}}{1 + n} .

    Parameters
    ----------
    data
        Cells with the labels of the methods and of the reference.
    cell_type_key
        Column of ``obs`` with cell types.
    keys
        Columns of ``obs`` to judge; as in :func:`nichekd.tl.agreement`.
    reference
        Column of ``obs`` with the reference's niches.
    subset
        ``"train"``, ``"test"`` or ``"buffer"``; all cells for ``None``.
    n_permutations
        Random pairings.
    split_key
        Column of ``obs`` with the split, read only if ``subset`` is given.
    seed
        Of the random pairings; each method gets the same ones.
    table_key
        Table of a ``SpatialData``.

    Returns
    -------
    A row per method: ``key``, ``JSD`` in [0, 1], ``p_value``, ``n_matched`` pairs, ``n_unmatched`` niches (of the
    method or of the reference, with cells but without a partner), and ``n_cells``, the cells compared. Cells that
    miss a type or a label are left out, and their number is logged.
    Writes ``uns["nichekd"]["composition_divergence"]``.

    Raises
    ------
    KeyError
        If a column, or the split of a ``subset``, is missing, or no method has been run.
    ValueError
        If ``subset`` has no cell, no cell has both labels and a type, or ``n_permutations`` is below 1.
    """
    check_seed(seed)
    start = perf_counter()
    adata = get_table(data, table_key)
    if n_permutations < 1:
        raise ValueError(f"n_permutations={n_permutations}; it has to be at least 1.")
    types = labels_of(adata, cell_type_key, run="your cell typing")
    target = labels_of(adata, reference)
    found = niche_keys(adata, keys, reference=reference)
    mask = subset_mask(adata, subset, split_key=split_key)
    typed = mask & (types.codes >= 0)
    if untyped := int(mask.sum() - typed.sum()):
        log.warning("%d of %d cells have no obs[%r] and are left out", untyped, mask.sum(), cell_type_key)
    rows = []
    for key in found:
        labels = labels_of(adata, key)
        kept = typed & (labels.codes >= 0) & (target.codes >= 0)
        if not kept.any():
            raise ValueError(_nothing_left(subset, {cell_type_key: types, key: labels, reference: target}, mask))
        if unlabelled := int(typed.sum() - kept.sum()):
            log.warning("%s: %d of %d typed cells miss a niche and are left out", key, unlabelled, typed.sum())
        p, q = contingency(target[kept], types[kept]), contingency(labels[kept], types[kept])
        rng = np.random.default_rng(seed)
        rows.append({"key": key, **_divergence(p, q, n_permutations, rng), "n_cells": int(kept.sum())})
    record(
        adata,
        "composition_divergence",
        seconds=perf_counter() - start,
        cell_type_key=cell_type_key,
        keys=found,
        reference=reference,
        subset="all" if subset is None else subset,
        n_permutations=n_permutations,
        seed=seed,
    )
    return pd.DataFrame(rows)


def _nothing_left(subset: str | None, columns: dict[str, pd.Categorical], mask: NDArray[np.bool_]) -> str:
    counts = {name: int((mask & (values.codes >= 0)).sum()) for name, values in columns.items()}
    return (
        f"No cell{'' if subset is None else f' of subset {subset!r}'} has {', '.join(map(repr, columns))} together; "
        f"cells that have each: {counts}. Choose another subset= or cell_type_key=, or leave the method out of keys=."
    )


def _divergence(
    p: NDArray[np.int64], q: NDArray[np.int64], n_permutations: int, rng: np.random.Generator
) -> dict[str, float | int]:
    """Size-weighted divergence of matched niches, from counts (n_reference, n_types) and (n_niches, n_types)."""
    p, q = p[p.sum(axis=1) > 0], q[q.sum(axis=1) > 0]  # niches with cells
    rows, _, jsd = match_by_composition(p, q)
    size = p.sum(axis=1)
    value = np.average(jsd, weights=size[rows])
    random = random_pairings(jensen_shannon(p, q), size, n_permutations, rng)
    # sums of the same numbers in another order differ in the last bits
    n_as_good = np.count_nonzero(random <= value + 1e-12)
    return {
        "JSD": float(value),
        "p_value": (1 + n_as_good) / (1 + n_permutations),
        "n_matched": len(rows),
        "n_unmatched": len(p) + len(q) - 2 * len(rows),
    }


def random_pairings(
    jsd: NDArray[np.float64], size: NDArray[np.int64], n: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Size-weighted mean divergence of ``n`` random one-to-one pairings of rows and columns, (n,)."""
    n_rows, n_columns = jsd.shape
    # the longer side is shuffled, and its first few meet the shorter side in order
    order = rng.permuted(np.tile(np.arange(max(jsd.shape)), (n, 1)), axis=1)[:, : min(jsd.shape)]
    rows, columns = (np.arange(n_rows), order) if n_rows <= n_columns else (order, np.arange(n_columns))
    weight = size[rows]  # (n, n_matched), or (n_rows,) where all rows are matched
    return (weight * jsd[rows, columns]).sum(axis=1) / weight.sum(axis=-1)
