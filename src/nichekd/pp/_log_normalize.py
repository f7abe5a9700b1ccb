"""Expression as comparisons between cells need it: counts made comparable, other values as they are."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from nichekd._keys import Keys
from nichekd.pp._counts import _fault, layer_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

TARGET_SUM = 1e4


def expression_layer(adata: AnnData, layer: str | None) -> str | None:
    """``layer``; for ``None`` the smoothed one where there is one, else ``None``, which is ``X``."""
    return Keys.SMOOTHED if layer is None and Keys.SMOOTHED in adata.layers else layer


def log_normalized(adata: AnnData, layer: str | None) -> sparse.csr_matrix | NDArray[np.float32]:
    """Expression of ``X`` or a layer, (n_cells, n_genes), float32, sparse where that is.

    Counts are divided by the cell's total over all genes, times 10,000, and ``log(1 + x)``; what is no count is taken
    as it is.

    Raises
    ------
    KeyError
        If the layer is absent; names the layers there are.
    ValueError
        If there is no ``X``, or values are NaN or infinite.
    """
    if layer is not None and layer not in adata.layers:
        raise KeyError(
            f"layers[{layer!r}] is missing; layers has {layer_names(adata)}. Name one by layer=, leave it out for X, "
            "or run nk.pp.smooth_expression."
        )
    matrix: Any = adata.X if layer is None else adata.layers[layer]
    where = "X" if layer is None else f"layers[{layer!r}]"
    if matrix is None or adata.n_vars == 0:
        raise ValueError(f"The cell table has no genes in {where}; name a layer by layer=: {layer_names(adata)}.")
    for to_memory in ("to_memory", "compute"):
        if hasattr(matrix, to_memory):
            matrix = getattr(matrix, to_memory)()
    is_sparse = sparse.issparse(matrix)
    values = sparse.csr_matrix(matrix, dtype=np.float32) if is_sparse else np.array(matrix, dtype=np.float32)
    data: NDArray[np.float32] = np.asarray(values.data if is_sparse else values)
    if n_bad := int(np.count_nonzero(~np.isfinite(data))):
        raise ValueError(f"{where} holds {n_bad:,} values that are NaN or infinite. Drop those cells, or fill them in.")
    if _fault(data.ravel()) is not None:
        log.info("%s holds no counts and is taken as it is", where)
        return values
    factor = TARGET_SUM / np.maximum(np.asarray(values.sum(axis=1)).ravel(), 1)
    if is_sparse:
        values = sparse.csr_matrix(sparse.diags(factor.astype(np.float32)) @ values)
        values.data = np.log1p(values.data)
        return values
    return np.log1p(values * factor[:, None].astype(np.float32))


def panel_columns(adata: AnnData, genes: Sequence[str] | None) -> NDArray[np.intp]:
    """Columns of ``genes``, in their order; all of them for ``None``.

    Raises
    ------
    KeyError
        If genes are missing; lists them.
    ValueError
        If ``genes`` is empty, or names a gene twice, or the table does.
    """
    if genes is None:
        return np.arange(adata.n_vars)
    wanted = [genes] if isinstance(genes, str) else list(genes)
    twice = sorted({gene for gene in wanted if wanted.count(gene) > 1})
    if not wanted or twice:
        raise ValueError(f"genes= names {twice or 'no gene'}{' more than once' if twice else ''}; name each gene once.")
    if missing := [gene for gene in wanted if gene not in adata.var_names]:
        raise KeyError(
            f"{len(missing)} of {len(wanted)} genes of the panel are missing: {missing}. The table has {adata.n_vars:,} "
            f"genes, e.g. {list(adata.var_names[:5])}. Leave them out of genes=; they would not count as 0."
        )
    if not adata.var_names.is_unique:
        doubles = sorted(set(adata.var_names[adata.var_names.duplicated()]) & set(wanted))
        if doubles:
            raise ValueError(f"var_names has {doubles} more than once. Run adata.var_names_make_unique().")
    return adata.var_names.get_indexer(wanted)
