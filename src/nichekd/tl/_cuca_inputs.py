"""What CUCA is trained on: expression, and which cells validate."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from nichekd._keys import Keys
from nichekd._resolve import require
from nichekd._sections import recorded_library
from nichekd.pp._counts import raw_counts
from nichekd.pp._libraries import centres_by_library, side_by_side
from nichekd.tl._batches import validation_part

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

FEWEST = 20  # training cells of a library that is drawn to validate
FEWEST_CHOSEN = 3


@dataclass(frozen=True)
class Genes:
    """Log-normalised expression.

    Attributes
    ----------
    values
        (n, G), float32 CSR.
    names
        G of them.
    measured
        Cells with any count, (n,).
    """

    values: sparse.csr_matrix
    names: tuple[str, ...]
    measured: NDArray[np.bool_]


def log_normalized(adata: AnnData, layer: str | None, train: NDArray[np.bool_], n_genes: int) -> Genes:
    """The genes that training cells express most, scaled to their median total count, log(1 + x).

    Raises
    ------
    KeyError
        If the layer is missing.
    ValueError
        If the values are not raw counts, names of genes repeat, ``n_genes`` is below 1, or no training cell has a
        count.
    """
    if n_genes < 1:
        raise ValueError(f"n_genes={n_genes}; it has to be at least 1. For a model without genes, align=None.")
    if not adata.var_names.is_unique:
        n = int(adata.var_names.duplicated().sum())
        raise ValueError(f"{n:,} of {adata.n_vars:,} var_names repeat others. Run adata.var_names_make_unique() first.")
    counts = raw_counts(adata, layer).astype(np.float32)
    total = np.asarray(counts.sum(axis=1)).ravel()
    if not (total[train] > 0).any():
        raise ValueError(
            f"None of the {train.sum():,} training cells has a count. For a model without genes, align=None."
        )
    order = np.argsort(-np.asarray(counts[train].sum(axis=0)).ravel(), kind="stable")[:n_genes]
    kept = np.sort(order)
    target = float(np.median(total[train & (total > 0)]))
    factor = np.divide(target, total, out=np.zeros_like(total), where=total > 0)
    values = sparse.csr_matrix(sparse.diags_array(factor) @ counts[:, kept]).astype(np.float32)
    values.data = np.log1p(values.data)
    return Genes(values, tuple(map(str, adata.var_names[kept])), total > 0)


def validation_cells(
    adata: AnnData,
    train: NDArray[np.integer],
    *,
    library_key: str | None,
    validation_key: str | None,
    share: float,
    margin: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Training cells to fit on, and those to select by.

    Those of ``obs[validation_key]``; or, of several libraries, one of them; or squares of tissue.

    Parameters
    ----------
    adata, train
        Cells, and which of them train.
    library_key, validation_key
        Columns of ``obs``.
    share, margin
        Of the cells that validate, and µm around squares that do neither.
    rng
        Chooses the library, or the squares.

    Returns
    -------
    Two disjoint sets; the second is empty where nothing is to be held back.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If one library is on both sides, a side is empty, or fewer than three cells are named to validate.
    """
    names = None
    if library_key is not None:
        centres_by_library(adata, library_key)  # its errors are ours
        names = adata.obs[library_key].astype(str).to_numpy()[train]
    if validation_key is not None:
        return _chosen(adata, train, validation_key, library_key, names)
    if share <= 0:
        return train, train[:0]
    libraries = {} if names is None else Counter(names.tolist())
    if len(libraries) > 1:
        # of few cells, the correlation tells no epoch from another
        large = sorted(name for name, n in libraries.items() if n >= FEWEST) or sorted(libraries)
        held = large[rng.integers(len(large))]
        log.info("%s %r validates; %d others train", library_key, held, len(libraries) - 1)
        return train[names != held], train[names == held]
    if Keys.SPATIAL not in adata.obsm:
        log.info("no centres: cells that validate are drawn at random")
        held_back = rng.random(len(train)) < share
        return train[~held_back], train[held_back]
    xy, library = centres_by_library(adata, library_key or recorded_library(adata))
    if library.any():
        xy, _ = side_by_side(xy, library)
    return validation_part(xy, train, share=share, margin=margin)


def _chosen(
    adata: AnnData,
    train: NDArray[np.integer],
    validation_key: str,
    library_key: str | None,
    names: NDArray[np.str_] | None,
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    column = require(adata, "obs", validation_key, run="adata.obs[...] = which cells validate, True or False,")
    if column.dtype != bool:
        raise ValueError(f"obs[{validation_key!r}] is {column.dtype}; it has to be bool, True for cells that validate.")
    held = column.to_numpy()[train]
    if held.all() or not held.any():
        raise ValueError(
            f"obs[{validation_key!r}] is {bool(held[0])} for all {len(train):,} training cells; some have to train and "
            "others validate."
        )
    if held.sum() < FEWEST_CHOSEN:
        raise ValueError(
            f"obs[{validation_key!r}] is True for {held.sum()} training cells; a correlation takes {FEWEST_CHOSEN} at least. "
            "Name more, or leave validation_key= out."
        )
    if names is not None and (shared := sorted(set(names[held]) & set(names[~held]))):
        raise ValueError(
            f"obs[{validation_key!r}] has {shared} of obs[{library_key!r}] both in training and in validation, where it "
            "would be recognised. Put each on one side, or leave validation_key= out."
        )
    return train[~held], train[held]
