"""Orders of similarity: which of two cells is more like a third, and whether two representations agree on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nichekd._resolve import require

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

CHUNK = 16_384  # triplets whose rows are held at once
FEWEST = 4  # cells of a group


class Triplets(NamedTuple):
    """Anchors, and the two cells compared as to how similar to them they are, (m,) each; all three differ."""

    anchor: NDArray[np.int64]
    first: NDArray[np.int64]
    second: NDArray[np.int64]


def draw_triplets(n_cells: int, n_triplets: int, rng: np.random.Generator) -> Triplets:
    """Of all cells, uniformly."""
    anchor = rng.integers(0, n_cells, n_triplets)
    step = rng.integers(1, n_cells, n_triplets)
    other = rng.integers(1, n_cells - 1, n_triplets)
    other += other >= step  # two different steps, none of them 0
    return Triplets(anchor, (anchor + step) % n_cells, (anchor + other) % n_cells)


def draw_from_graph(graph: csr_matrix, n_triplets: int, rng: np.random.Generator) -> Triplets:
    """Of cells and two of their neighbors; none where no cell has two."""
    degree = np.diff(graph.indptr)
    enough = np.flatnonzero(degree >= 2)
    if not len(enough):
        nobody = np.empty(0, dtype=np.int64)
        return Triplets(nobody, nobody, nobody)
    anchor = rng.choice(enough, n_triplets)
    first = (rng.random(n_triplets) * degree[anchor]).astype(np.int64)
    second = (rng.random(n_triplets) * (degree[anchor] - 1)).astype(np.int64)
    second += second >= first
    start = graph.indptr[anchor]
    return Triplets(
        anchor, graph.indices[start + first].astype(np.int64), graph.indices[start + second].astype(np.int64)
    )


def unit_rows(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows less their mean row, of length 1; a row that is the mean stays 0."""
    centred = np.asarray(values, dtype=np.float32) - np.asarray(values, dtype=np.float64).mean(axis=0).astype(
        np.float32
    )
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)


def gaps(unit: NDArray[np.float32], triplets: Triplets) -> NDArray[np.float32]:
    """How much more similar to the anchor the first is than the second, by cosine, (m,)."""
    found = np.empty(len(triplets.anchor), dtype=np.float32)
    for start in range(0, len(found), CHUNK):
        k, i, j = (part[start : start + CHUNK] for part in triplets)
        found[start : start + CHUNK] = np.einsum("md,md->m", unit[k], unit[i] - unit[j])
    return found


def order_agreement(a: NDArray[np.floating], b: NDArray[np.floating]) -> tuple[float, int]:
    """Share of the gaps of ``b`` whose sign ``a`` has too, a tie of ``a`` counting half; and their number.

    Gaps of ``b`` that are 0 ask nothing and are left out; NaN where all are.
    """
    asked = b != 0
    if not asked.any():
        return float("nan"), 0
    right = np.where(a[asked] == 0, 0.5, np.sign(a[asked]) == np.sign(b[asked]))
    return float(right.mean()), int(asked.sum())


def representation(adata: AnnData, key: str, cells: NDArray[np.intp]) -> NDArray[np.float32]:
    """Rows ``cells`` of ``obsm[key]``, of the layer of that name, or of ``X``; expression log-normalised.

    Raises
    ------
    KeyError
        If there is none.
    ValueError
        If rows are NaN, infinite or 0 throughout.
    """
    from scipy import sparse

    from nichekd.pp._counts import layer_names
    from nichekd.pp._log_normalize import log_normalized

    values: Any
    if key in adata.obsm:
        values = require(adata, "obsm", key, run="nk.pp.histology_features")
        values = values.to_numpy() if hasattr(values, "to_numpy") else values
        values = np.asarray(values[cells], dtype=np.float32)
    elif key == "X" or key in adata.layers:
        values = log_normalized(adata, None if key == "X" else key)[cells]
        values = values.toarray() if sparse.issparse(values) else np.asarray(values)
    else:
        raise KeyError(
            f"There is no {key!r}: obsm has {sorted(map(str, adata.obsm.keys()))}, layers has {layer_names(adata)}, "
            "and 'X' is the expression. Run nk.pp.histology_features, nk.tl.embed_histology or "
            "nk.pp.smooth_expression first."
        )
    if values.ndim != 2:
        raise ValueError(f"obsm[{key!r}] has shape {values.shape}; it has to be (n_cells, n_features).")
    if bad := int((~np.isfinite(values)).any(axis=1).sum()):
        raise ValueError(f"{key!r} is NaN or infinite for {bad:,} of {len(cells):,} cells; make it again.")
    if zero := int((~values.any(axis=1)).sum()):
        raise ValueError(
            f"{key!r} is 0 throughout for {zero:,} of {len(cells):,} cells, so that they are similar to none. Leave "
            "these cells out: adata[rows.any(axis=1)].copy()."
        )
    return values


def default_subset(adata: AnnData, subset: str | None, split_key: str) -> str | None:
    """``subset``; for ``"auto"`` the test cells where there is a split, and all of them where there is none."""
    if subset != "auto":
        return subset
    return "test" if split_key in adata.obs else None
