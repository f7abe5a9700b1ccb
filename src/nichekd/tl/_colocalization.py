from __future__ import annotations

import warnings
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nichekd._abundance import abundance_of, constant_types, libraries_of
from nichekd._keys import Keys
from nichekd._labels import subset_mask
from nichekd._moran import cross_products, morans_r, standardized, weights_among
from nichekd._record import record
from nichekd._resolve import get_table
from nichekd._seeds import check_seed

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from scipy.sparse import csr_array
    from spatialdata import SpatialData


def colocalization(
    data: AnnData | SpatialData,
    *,
    key: str,
    library_key: str | None = None,
    subset: str | None = None,
    n_permutations: int = 0,
    split_key: str = Keys.SPLIT,
    seed: int = 0,
    table_key: str = "table",
) -> pd.DataFrame:
    r"""Which types of cells are found near each other: bivariate Moran's R of all pairs.

    .. math:: R_{ab} = \frac{n}{\sum_{ij} w_{ij}} \cdot \frac{\sum_{ij} w_{ij} (a_i - \bar a)(b_j - \bar b)}
              {\sqrt{\sum_i (a_i - \bar a)^2} \sqrt{\sum_i (b_i - \bar b)^2}}

    :cite:`Wartenberg1985,Li2023`: how an abundance goes with its neighbors' of another type, not with its own cell's;
    w are squidpy's weights, the diagonal left out, of neighbors on the same slide. Above 0 the types are found near
    each other, below they avoid each other. Where abundances were summed over a radius, those of neighbors share cells,
    and R is large for that alone: compare it between truth and prediction, or with permutations.

    Parameters
    ----------
    data
        Cells or spots with abundances, and with the graph of :func:`nichekd.pp.neighborhoods` or
        :func:`squidpy.gr.spatial_neighbors`.
    key
        ``obsm`` key of abundances, true or predicted.
    library_key
        Column of ``obs`` that tells slides apart; all is one if left out.
    subset
        ``"train"``, ``"test"`` or ``"buffer"``; all cells for ``None``.
    n_permutations
        Random orders of the cells of a slide, types moving together, that R is compared with.
    split_key
        Column of ``obs`` with the split, read only if ``subset`` is given.
    seed
        Of the permutations.
    table_key
        Table of a ``SpatialData``.

    Returns
    -------
    A row per slide and pair of types: ``library`` (``"all"`` without a key), ``type_a``, ``type_b``, ``moran_r``, the
    mean of both directions, and with permutations ``p_value``, the share of them with an R at least as far from 0,
    (1 + k) / (1 + n). Largest R first, slide by slide; pairs with a constant type are NaN, and last.
    Writes ``uns["nichekd"]["colocalization"]``.

    Raises
    ------
    KeyError
        If abundances, graph, column, or the split of a ``subset`` is missing.
    ValueError
        If abundances are NaN or negative, there is one type only, ``subset`` has no cell, no cell looked at has a
        neighbor, or ``n_permutations`` is negative.

    Warns
    -----
    UserWarning
        If types are constant, with their number.

    Examples
    --------
    >>> import numpy as np
    >>> import nichekd as nk
    >>> from anndata import AnnData
    >>> xy = np.column_stack([np.arange(6.0), np.zeros(6)])
    >>> left = np.array([1.0, 1, 1, 0, 0, 0])
    >>> spots = AnnData(obsm={"spatial": xy, "abundance": np.column_stack([left, left, 1 - left])})
    >>> nk.pp.neighborhoods(spots, radius=1)
    >>> nk.tl.colocalization(spots, key="abundance").round(2).to_numpy().tolist()
    [['all', '0', '1', 0.6], ['all', '0', '2', -0.6], ['all', '1', '2', -0.6]]
    """
    check_seed(seed)
    start = perf_counter()
    adata = get_table(data, table_key)
    if n_permutations < 0:
        raise ValueError(f"n_permutations={n_permutations}; it has to be 0 or more.")
    abundance = abundance_of(adata, key)
    if len(abundance.types) < 2:
        raise ValueError(f"obsm[{key!r}] has one type, {abundance.types[0]!r}; there is no pair to look at.")
    mask = subset_mask(adata, subset, split_key=split_key)
    rng = np.random.default_rng(seed)
    first, second = np.triu_indices(len(abundance.types), k=1)
    names = np.asarray(abundance.types, dtype=object)
    tables, n_constant, n_types = [], 0, 0
    for library, cells in libraries_of(adata, library_key, mask):
        values, weights = abundance.values[cells], weights_among(adata, cells)
        n_constant += int(constant_types(values).sum())
        n_types += values.shape[1]
        r = morans_r(weights, values)
        table = pd.DataFrame(
            {"library": library, "type_a": names[first], "type_b": names[second], "moran_r": r[first, second]}
        )
        if n_permutations:
            table["p_value"] = _p_values(weights, values, r, n_permutations, rng)[first, second]
        tables.append(table.sort_values("moran_r", ascending=False, kind="stable"))
    if n_constant:
        warnings.warn(f"{n_constant} of {n_types} types are constant; their pairs are NaN.", UserWarning, stacklevel=2)
    record(
        adata, "colocalization", seconds=perf_counter() - start, key=key, library_key=library_key,
        subset="all" if subset is None else subset, n_permutations=n_permutations, seed=seed,
    )  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def _p_values(
    weights: csr_array, values: NDArray[np.float64], r: NDArray[np.float64], n: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    z, _ = standardized(values)
    at_least = np.zeros(r.shape)
    for _ in range(n):
        moved = z[rng.permutation(len(z))]
        random = cross_products(weights, moved, moved)
        # sums of the same numbers in another order differ in the last bits
        at_least += np.abs(random + random.T) / 2 >= np.abs(r) - 1e-12
    return np.where(np.isfinite(r), (1 + at_least) / (1 + n), np.nan)
