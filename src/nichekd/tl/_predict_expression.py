from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from nichekd._keys import Keys, Split
from nichekd._record import record
from nichekd._resolve import centres_um, get_table, require, split_of
from nichekd.pp._log_normalize import expression_layer, log_normalized, panel_columns
from nichekd.tl._inputs import features_of, image_rep
from nichekd.tl._pathology_probe import spatial_blocks
from nichekd.tl._ridge import GroupedRidge, pearson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

log = logging.getLogger(__name__)

MOST_BYTES = 16 * 2**30  # of what is written, which is dense


def predict_expression(
    data: AnnData | SpatialData,
    *,
    use_rep: str | None = None,
    layer: str | None = None,
    genes: Sequence[str] | None = None,
    library_key: str | None = None,
    group_key: str | None = None,
    n_folds: int = 5,
    split_key: str = Keys.SPLIT,
    key_added: str = Keys.PREDICTED,
    table_key: str = "table",
) -> pd.DataFrame:
    r"""Expression of cells by ridge regression on their image features, and how well it is predicted.

    .. math:: \min_W \|Y - X W\|^2 + \lambda n \|W\|^2

    on standardised features X of n cells. No cell is predicted by a regression it was fitted on: cells come in groups
    (slides, or patients by ``group_key``; without either, blocks of tissue of equal size, side by side), and a group is
    predicted from the other ones. Where there is a split, only training cells are fitted on, and the others are
    predicted from all of them. :math:`\lambda` is the one at which one of the groups fitted is predicted best from the
    rest.

    Parameters
    ----------
    data
        Cells, or spots, with image features and expression.
    use_rep
        ``obsm`` key of the image features; default: those written last.
    layer
        Layer to predict; default ``layers["smoothed"]`` where there is one, else ``X``. Counts are log-normalised.
    genes
        Panel; default all genes. What is written is dense: of a large table, name those that are wanted.
    library_key
        Column of ``obs`` that tells slides apart: correlations are within a slide.
    group_key
        Column of ``obs`` with the groups, e.g. patients; default ``library_key``.
    n_folds
        Blocks of tissue, where there are no groups.
    split_key
        Column of ``obs`` with the split; absent by its default name, all cells train.
    key_added
        Layer to write; of a panel, the ``obsm`` key.
    table_key
        Table of a ``SpatialData``.

    Returns
    -------
    A row per gene and slide: ``gene``, ``library``, ``pearson`` with the layer predicted, ``pearson_unsmoothed`` with
    the cells' own expression in ``X`` (missing where a gene is the same in all cells), and ``n_cells``; over test cells
    where there is a split, else over all. Writes ``layers["predicted"]``, float32 (n, n_genes), or, of a panel,
    ``obsm["predicted"]``, a float32 ``DataFrame`` (n, G) of its genes; and ``uns["nichekd"]["predict_expression"]``.

    Raises
    ------
    KeyError
        If the features, the layer, genes of the panel, or a column is missing.
    TypeError
        If ``n_folds`` is no whole number.
    ValueError
        If there are fewer than two groups, features or expression are NaN, or what is written would take more than
        16 GiB.
    """
    started = time.perf_counter()
    adata = get_table(data, table_key)
    layer = expression_layer(adata, layer)
    columns = panel_columns(adata, genes)
    _check_size(adata.n_obs, len(columns))
    target = _dense(log_normalized(adata, layer)[:, columns])
    use_rep = image_rep(data, use_rep, table_key=table_key)
    features = features_of(adata, use_rep, run="nk.pp.histology_features")
    split = split_of(adata, split_key)
    groups = _groups(adata, split == Split.TRAIN, group_key or library_key, n_folds)
    predicted = _out_of_group(features, target, groups)

    if genes is None:
        adata.layers[key_added] = predicted
    else:  # a layer has a column for every gene of the table, most of them for nothing
        adata.obsm[key_added] = pd.DataFrame(predicted, index=adata.obs_names, columns=adata.var_names[columns])
    judged = split == Split.TEST if (split == Split.TEST).any() else np.ones(adata.n_obs, dtype=bool)
    own = target if layer is None or adata.X is None else _dense(log_normalized(adata, None)[:, columns])
    table = _scores(adata, columns, predicted, target, own, judged, library_key)
    record(
        adata, "predict_expression", seconds=time.perf_counter() - started, use_rep=use_rep, layer=layer,
        group_key=group_key, library_key=library_key, n_groups=int(groups.max()) + 1, key_added=key_added,
    )  # fmt: skip
    log.info("%d genes from obsm[%r]: mean correlation %.3f", len(columns), use_rep, table["pearson"].mean())
    return table


def _check_size(n_cells: int, n_genes: int) -> None:
    """Before hours of work end in a lack of memory."""
    n_bytes = 4 * n_cells * n_genes
    if n_bytes > MOST_BYTES:
        raise ValueError(
            f"{n_genes:,} genes of {n_cells:,} cells are {n_bytes / 2**30:,.0f} GiB once predicted, more than the "
            f"{MOST_BYTES / 2**30:.0f} GiB that are allowed. Name a panel by genes=, of up to "
            f"{MOST_BYTES // (4 * n_cells):,}."
        )


def _groups(adata: AnnData, in_training: NDArray[np.bool_], group_key: str | None, n_folds: int) -> NDArray[np.int64]:
    """Group of each training cell, −1 for the others, (n,)."""
    groups = np.full(adata.n_obs, -1, dtype=np.int64)
    if group_key is not None:
        column = require(adata, "obs", group_key, run="your reading of several slides")
        if column.isna().any():
            raise ValueError(f"obs[{group_key!r}] is missing for {column.isna().sum():,} cells. Fill it in.")
        groups[in_training] = pd.factorize(column[in_training], sort=True)[0]
    else:
        if isinstance(n_folds, bool) or not isinstance(n_folds, (int, np.integer)):
            raise TypeError(f"n_folds={n_folds!r}; it has to be a whole number.")
        if not 2 <= n_folds <= in_training.sum():
            raise ValueError(f"n_folds={n_folds} for {in_training.sum():,} training cells; it has to be 2 or more.")
        groups[in_training] = spatial_blocks(centres_um(adata)[in_training], n_folds)
    if groups.max() < 1:
        raise ValueError(
            f"All training cells are of one group in obs[{group_key!r}]; none could be predicted from another. Leave "
            "group_key and library_key out for folds of tissue, or name another column."
        )
    return groups


def _out_of_group(features: Any, target: NDArray[np.float32], groups: NDArray[np.int64]) -> NDArray[np.float32]:
    """Each group by the others, and who is in none by all of them, (n, G)."""
    ridge = GroupedRidge(features, target, groups)
    everyone = range(ridge.n_groups)
    predicted = np.empty(target.shape, dtype=np.float32)
    for group in (-1, *everyone):
        cells = np.flatnonzero(groups == group)
        if len(cells):
            # the strength is chosen on the last, so each gets another one
            others = [(group + i) % ridge.n_groups for i in range(1, ridge.n_groups)] if group >= 0 else list(everyone)
            predicted[cells] = ridge.predict(cells, others)
    return predicted


def _scores(
    adata: AnnData,
    columns: NDArray[np.intp],
    predicted: NDArray[np.float32],
    target: NDArray[np.float32],
    own: NDArray[np.float32],
    judged: NDArray[np.bool_],
    library_key: str | None,
) -> pd.DataFrame:
    if library_key is None:
        slides: dict[str | None, NDArray[np.bool_]] = {None: judged}
    else:
        names = require(adata, "obs", library_key, run="your reading of several slides").astype(str).to_numpy()
        slides = {name: judged & (names == name) for name in sorted(set(names[judged]))}
    parts = [
        pd.DataFrame(
            {
                "gene": adata.var_names[columns].astype(str),
                "library": name,
                "pearson": pearson(predicted[cells], target[cells]),
                "pearson_unsmoothed": pearson(predicted[cells], own[cells]),
                "n_cells": int(cells.sum()),
            }
        )
        for name, cells in slides.items()
    ]
    return pd.concat(parts, ignore_index=True)


def _dense(values: Any) -> NDArray[np.float32]:
    return values.toarray() if sparse.issparse(values) else np.asarray(values)
