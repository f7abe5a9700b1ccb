"""Raw counts of the cell table, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from anndata import AnnData


def raw_counts(adata: AnnData, layer: str | None) -> sparse.csr_matrix:
    """The raw counts of ``X`` or a layer, (n_cells, n_genes) CSR, checked.

    Raises
    ------
    KeyError
        If the layer is absent; names the layers there are.
    ValueError
        If there is no ``X``, or the values are not counts; names the layers that hold counts.
    """
    if layer is not None and layer not in adata.layers:
        raise KeyError(
            f"layers[{layer!r}] is missing; layers has {layer_names(adata)}. "
            "Name the one with the raw counts by layer=, or leave layer= out for X."
        )
    matrix = adata.X if layer is None else adata.layers[layer]
    where = "X" if layer is None else f"layers[{layer!r}]"
    if matrix is None or adata.n_vars == 0:
        raise ValueError(f"The cell table has no genes in {where}. {_where_counts_are(adata, layer)}")
    counts = _in_memory(matrix)
    fault = _fault(counts.data)
    if fault:
        raise ValueError(
            f"{where} holds {fault}; raw counts are needed (whole numbers, none negative). "
            f"{_where_counts_are(adata, layer)}"
        )
    return counts


def has_counts(adata: AnnData) -> bool:
    """Whether ``X`` holds raw counts."""
    return adata.X is not None and adata.n_vars > 0 and _fault(_in_memory(adata.X).data) is None


def _in_memory(matrix: Any) -> sparse.csr_matrix:
    """CSR in memory of a dense, sparse, backed or dask matrix."""
    if hasattr(matrix, "to_memory"):
        matrix = matrix.to_memory()
    elif hasattr(matrix, "compute"):
        matrix = matrix.compute()
    elif not sparse.issparse(matrix):
        matrix = np.asarray(matrix)
    return sparse.csr_matrix(matrix)


def _fault(values: np.ndarray) -> str | None:
    """What keeps ``values`` from being counts, or ``None``."""
    if values.dtype.kind in "ub":
        return None
    if values.dtype.kind not in "if":
        return f"values of type {values.dtype}"
    n_bad = np.count_nonzero(~np.isfinite(values))
    if n_bad:
        return f"{n_bad:,} values that are NaN or infinite"
    negative = values < 0
    if negative.any():
        return f"{np.count_nonzero(negative):,} negative values, down to {values.min():.3g}"
    if values.dtype.kind == "f":
        broken = values != np.rint(values)
        if broken.any():
            return f"{np.count_nonzero(broken):,} fractional values, such as {values[np.argmax(broken)]:.3g}"
    return None


def _where_counts_are(adata: AnnData, layer: str | None) -> str:
    """The next call to make: the layer, ``X`` or ``raw`` that holds counts, where one does."""
    candidates = {name: adata.layers[name] for name in layer_names(adata) if name != layer}
    good = [name for name, matrix in candidates.items() if _fault(_in_memory(matrix).data) is None]
    if good:
        return f"Raw counts seem to be in {[f'layers[{name!r}]' for name in good]}: pass layer={good[0]!r}."
    if layer is not None and adata.X is not None and _fault(_in_memory(adata.X).data) is None:
        return "X seems to hold raw counts: leave layer= out."
    if adata.raw is not None and _fault(_in_memory(adata.raw.X).data) is None:
        return "adata.raw seems to hold raw counts: pass adata.raw.to_adata() with obsm and obs as they are."
    return (
        f"None of the {len(layer_names(adata))} layers nor raw hold counts: hand in the table as it was before "
        "normalisation, with the counts in X or in a layer that layer= names."
    )


def layer_names(adata: AnnData) -> list[str]:
    """The layers, without ``X``, which newer versions of anndata list among them as ``None``."""
    return sorted(str(name) for name in adata.layers if name is not None)
