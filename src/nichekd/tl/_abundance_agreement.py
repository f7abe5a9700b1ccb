from __future__ import annotations

import warnings
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nichekd._abundance import both_abundances, constant_types, libraries_of, pearson
from nichekd._keys import Keys
from nichekd._labels import subset_mask
from nichekd._record import record
from nichekd._resolve import get_table

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData


def abundance_agreement(
    data: AnnData | SpatialData,
    *,
    truth: str,
    prediction: str,
    library_key: str | None = None,
    subset: str | None = None,
    split_key: str = Keys.SPLIT,
    table_key: str = "table",
) -> pd.DataFrame:
    r"""How well predicted abundances agree with the true ones, type by type and slide by slide.

    Over the n cells or spots of a slide: Pearson's and Spearman's correlation; the root mean squared error; and the
    Jensen-Shannon divergence, in bits, between where the type is and where it is predicted, :math:`y_i / \sum_j y_j`
    against :math:`\hat y_i / \sum_j \hat y_j` (as in :cite:`LiBin2022`). Slides are not pooled: what differs from slide
    to slide would pass for agreement.

    Parameters
    ----------
    data
        Cells or spots with both.
    truth, prediction
        ``obsm`` keys; columns are matched by name.
    library_key
        Column of ``obs`` that tells slides apart; all is one if left out.
    subset
        ``"train"``, ``"test"`` or ``"buffer"``; all cells for ``None``. A model is to be judged on the test cells, or
        on a slide it has not seen.
    split_key
        Column of ``obs`` with the split, read only if ``subset`` is given.
    table_key
        Table of a ``SpatialData``.

    Returns
    -------
    A row per slide and type: ``library`` (``"all"`` without a key), ``cell_type``, ``pearson``, ``spearman``, ``RMSE``
    in the abundances' unit, ``JSD`` in [0, 1], and ``n_cells``. Where the truth or the prediction of a type is constant
    correlations are NaN, and where one is 0 throughout the divergence is. The mean over types, as papers give it, is
    ``table.groupby("library").mean(numeric_only=True)``.
    Writes ``uns["nichekd"]["abundance_agreement"]``.

    Raises
    ------
    KeyError
        If a key, or the split of a ``subset``, is missing.
    ValueError
        If the types are not the same, abundances are NaN or negative, or ``subset`` has no cell.

    Warns
    -----
    UserWarning
        If types are constant, with their number.

    Examples
    --------
    >>> import numpy as np
    >>> import nichekd as nk
    >>> from anndata import AnnData
    >>> spots = AnnData(obsm={"true": np.array([[1.0], [2], [3]]), "abundance": np.array([[2.0], [4], [6]])})
    >>> nk.tl.abundance_agreement(spots, truth="true", prediction="abundance")[["pearson", "JSD"]].to_numpy().tolist()
    [[1.0, 0.0]]
    """
    start = perf_counter()
    adata = get_table(data, table_key)
    true, predicted = both_abundances(adata, truth, prediction)
    mask = subset_mask(adata, subset, split_key=split_key)
    tables, n_constant = [], 0
    for library, cells in libraries_of(adata, library_key, mask):
        y, y_hat = true.values[cells], predicted.values[cells]
        n_constant += int((constant_types(y) | constant_types(y_hat)).sum())
        tables.append(
            pd.DataFrame(
                {
                    "library": library,
                    "cell_type": list(true.types),
                    "pearson": pearson(y, y_hat),
                    "spearman": pearson(_ranks(y), _ranks(y_hat)),
                    "RMSE": np.sqrt(((y - y_hat) ** 2).mean(axis=0)),
                    "JSD": _divergence(y, y_hat),
                    "n_cells": len(cells),
                }
            )
        )
    table = pd.concat(tables, ignore_index=True)
    if n_constant:
        warnings.warn(
            f"{n_constant} of {len(table)} rows have a constant truth or prediction, and NaN for correlations.",
            UserWarning,
            stacklevel=2,
        )
    record(
        adata, "abundance_agreement", seconds=perf_counter() - start, truth=truth, prediction=prediction,
        library_key=library_key, subset="all" if subset is None else subset,
    )  # fmt: skip
    return table


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.stats import rankdata

    return rankdata(values, axis=0)


def _divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Jensen-Shannon, base 2, of each column of ``p`` from the same of ``q``, (K,); NaN where one is 0 throughout."""
    from scipy.special import rel_entr

    totals = p.sum(axis=0), q.sum(axis=0)
    there = (totals[0] > 0) & (totals[1] > 0)
    p, q = (values[:, there] / total[there] for values, total in zip((p, q), totals, strict=True))
    middle = (p + q) / 2
    out = np.full(len(there), np.nan)
    nats = (rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=0) / 2
    out[there] = np.clip(nats / np.log(2), 0, 1)
    return out
