from __future__ import annotations

import logging
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nichekd._keys import Keys
from nichekd._labels import REFERENCE, labels_of, subset_mask
from nichekd._record import record
from nichekd._resolve import get_table, require

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

log = logging.getLogger(__name__)


def niche_summary(
    data: AnnData | SpatialData,
    *,
    key: str = REFERENCE,
    cell_type_key: str | None = None,
    layer: str | None = None,
    subset: str | None = None,
    n_markers: int = 5,
    split_key: str = Keys.SPLIT,
    table_key: str = "table",
) -> pd.DataFrame:
    r"""What each niche is: its size, how it lies in space, its marker genes and its cell types.

    The coherence of a niche is the mean share of its cells' neighbors that are of the same niche, :math:`\frac{1}{n_k}
    \sum_{i \in k} |\{j \in N_i : z_j = k\}| / |N_i|`; that of cells at random is the niche's share of all cells.
    Markers are the genes that tell the niche's cells from the rest best, by the z-score of Wilcoxon's test on
    log-normalised counts.

    Parameters
    ----------
    data
        Cells with labels, with counts, and with the graph of :func:`nichekd.pp.neighborhoods`.
    key
        Column of ``obs`` with the niches.
    cell_type_key
        Column of ``obs`` with cell types, to name the two most frequent; none without.
    layer
        Layer with counts; default ``X``.
    subset
        ``"train"``, ``"test"`` or ``"buffer"``; all cells for ``None``.
    n_markers
        Marker genes a niche; 0 needs no counts.
    split_key
        Column of ``obs`` with the split, read only if ``subset`` is given.
    table_key
        Table of a ``SpatialData``.

    Returns
    -------
    A row per niche, dead ones included: ``niche``, ``n_cells``, ``share`` in [0, 1], ``coherence`` in [0, 1] (NaN
    where no cell has a neighbor), ``markers`` and ``cell_types``, names joined by commas.
    ``attrs["usage_entropy"]``, in units of log K, is 1 if all niches are of one size; ``attrs["n_live"]`` are those
    with a cell. Writes ``uns["nichekd"]["niche_summary"]``.

    Raises
    ------
    KeyError
        If a column or the graph is missing.
    ValueError
        If ``subset`` has no cell, or counts are wanted and there are none.
    """
    from nichekd.tl._nolan_fit import usage_entropy

    started = perf_counter()
    adata = get_table(data, table_key)
    niche = labels_of(adata, key)
    graph = require(adata, "obsp", Keys.CONNECTIVITIES, run="nk.pp.neighborhoods").tocsr()
    kept = subset_mask(adata, subset, split_key=split_key) & (niche.codes >= 0)
    if not kept.any():
        raise ValueError(f"obs[{key!r}] labels no cell of subset={subset!r}. Choose another subset=.")
    n_niches = len(niche.categories)
    count = np.bincount(niche.codes[kept], minlength=n_niches)
    own = coherence(graph, niche.codes)
    where = kept & np.isfinite(own)
    n_with = np.bincount(niche.codes[where], minlength=n_niches)
    total = np.bincount(niche.codes[where], weights=own[where], minlength=n_niches)
    table = pd.DataFrame({"niche": list(niche.categories), "n_cells": count, "share": count / count.sum()})
    table["coherence"] = np.divide(total, n_with, out=np.full(n_niches, np.nan), where=n_with > 0)
    if n_markers:
        table["markers"] = _markers(adata, niche, kept, layer, n_markers)
    if cell_type_key is not None:
        types = labels_of(adata, cell_type_key, run="your cell typing")
        table["cell_types"] = [_most_frequent(types[kept & (niche.codes == k)]) for k in range(n_niches)]
    entropy = usage_entropy(niche.codes[kept], n_niches)
    table.attrs = {"usage_entropy": entropy, "n_live": int((count > 0).sum())}
    record(adata, "niche_summary", seconds=perf_counter() - started, key=key, subset=subset or "all", **table.attrs)
    return table


def coherence(graph: Any, codes: NDArray[np.integer]) -> NDArray[np.float64]:
    """Share of each cell's neighbors in its own niche, (n,); NaN without neighbors."""
    row = np.repeat(np.arange(len(codes)), np.diff(graph.indptr))
    same = np.bincount(row, weights=codes[row] == codes[graph.indices], minlength=len(codes))
    degree = np.diff(graph.indptr)
    return np.divide(same, degree, out=np.full(len(codes), np.nan), where=degree > 0)


def _markers(
    adata: AnnData, niche: pd.Categorical, kept: NDArray[np.bool_], layer: str | None, n_markers: int
) -> list[str]:
    """Names of the marker genes of each niche, joined; of niches with a single cell none can be told."""
    import scanpy as sc
    from anndata import AnnData

    from nichekd.pp._counts import raw_counts

    counts = raw_counts(adata, layer)
    kept = kept & (np.asarray(counts.sum(axis=1)).ravel() > 0)  # a cell without counts says nothing of any gene
    big = np.flatnonzero(np.bincount(niche.codes[kept], minlength=len(niche.categories)) > 1)
    chosen = kept & np.isin(niche.codes, big)
    if len(big) < 2:
        return [""] * len(niche.categories)
    cells = AnnData(counts[chosen].astype(np.float32), var=pd.DataFrame(index=adata.var_names))
    cells.obs["niche"] = pd.Categorical(niche[chosen].astype(str))
    sc.pp.normalize_total(cells)
    sc.pp.log1p(cells)
    sc.tl.rank_genes_groups(cells, "niche", method="wilcoxon", n_genes=n_markers)
    names = cells.uns["rank_genes_groups"]["names"]
    return [", ".join(map(str, names[name])) if name in names.dtype.names else "" for name in niche.categories]


def _most_frequent(types: pd.Categorical) -> str:
    """The two most frequent types and their shares."""
    shares = pd.Series(types).value_counts(normalize=True).head(2)
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share > 0)
