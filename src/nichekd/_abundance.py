"""Tables of cell-type abundances: read, checked, and put side by side."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nichekd._resolve import require
from nichekd._sections import library_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from anndata import AnnData
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

UNFIT = ("", ".", "..", "_index")


@dataclass(frozen=True)
class Abundance:
    """How much there is of each type at each cell or spot.

    Attributes
    ----------
    values
        (n, K), float64, none negative.
    types
        K names.
    """

    values: NDArray[np.float64]
    types: tuple[str, ...]

    def of(self, types: tuple[str, ...]) -> Abundance:
        """The same with the columns ``types``, in that order."""
        return Abundance(self.values[:, [self.types.index(name) for name in types]], types)


def abundance_of(adata: AnnData, key: str, *, run: str = "nk.pp.neighborhood_composition") -> Abundance:
    """``obsm[key]``, checked.

    A matrix without names of columns has the types ``"0"`` … ``"K-1"``.

    Raises
    ------
    KeyError
        If it is missing.
    TypeError
        If it holds something else than numbers.
    ValueError
        If there is no cell or type; if types repeat, or have names that no file can hold; if its rows are other cells'
        or names of cells repeat, so that nobody can tell; if a value is NaN, infinite or negative.
    """
    try:
        table = require(adata, "obsm", key, run=run)
    except ValueError as err:  # of anndata, which looks at the index of every DataFrame, or of require
        raise ValueError(
            f"A DataFrame of obsm, perhaps {key!r}, is not aligned with the table: its index is not obs_names. Reorder it: "
            f"adata.obsm[{key!r}] = abundance.loc[adata.obs_names]."
        ) from err
    if adata.n_obs == 0:
        raise ValueError("The table has no cells or spots; there are no abundances to look at.")
    if isinstance(table, pd.DataFrame):
        _check_names(adata, key)
        types, values = tuple(map(str, table.columns)), table.to_numpy()
    else:
        values = table.toarray() if hasattr(table, "toarray") else np.asarray(table)
        types = tuple(map(str, range(values.shape[1]))) if values.ndim == 2 else ()
    if values.ndim != 2 or not types:
        raise ValueError(f"obsm[{key!r}] has shape {values.shape}; it has to be (n_cells, n_types).")
    check_type_names(types)
    if repeated := sorted({name for name in types if types.count(name) > 1}):
        raise ValueError(f"obsm[{key!r}] has several columns of the types {repeated}; rename or add them up.")
    try:
        values = values.astype(np.float64)
    except (TypeError, ValueError) as err:
        raise TypeError(f"obsm[{key!r}] holds {values.dtype}, not numbers: {err}.") from err
    return Abundance(_checked(values, key), types)


def check_type_names(types: Iterable[str]) -> None:
    """Refuse names of types that files can't hold as columns: HDF5 and zarr read a slash as a folder.

    Raises
    ------
    ValueError
        If there are such names.
    """
    if unfit := [name for name in types if "/" in name or name in UNFIT]:
        raise ValueError(
            f"Types are named {unfit}, which no .h5ad or .zarr can hold as columns. Rename them, e.g. with '-' for '/': "
            "adata.obs[key] = adata.obs[key].cat.rename_categories(lambda name: name.replace('/', '-'))."
        )


def _check_names(adata: AnnData, key: str) -> None:
    if not adata.obs_names.is_unique:
        n = int(adata.obs_names.duplicated().sum())
        raise ValueError(
            f"{n:,} of {adata.n_obs:,} obs_names repeat others, so the rows of obsm[{key!r}] can't be told apart. Run "
            "adata.obs_names_make_unique() before the abundances are put in."
        )


def _checked(values: NDArray[np.float64], key: str) -> NDArray[np.float64]:
    if bad := int((~np.isfinite(values)).any(axis=1).sum()):
        raise ValueError(
            f"obsm[{key!r}] is NaN or infinite for {bad:,} of {len(values):,} cells or spots. Drop them, or fill them in."
        )
    if bad := int((values < 0).any(axis=1).sum()):
        raise ValueError(
            f"obsm[{key!r}] is negative, down to {values.min():.3g}, for {bad:,} of {len(values):,} cells or spots; "
            "abundances are not. Are they scaled, or logarithms?"
        )
    return values


def both_abundances(adata: AnnData, truth: str, prediction: str) -> tuple[Abundance, Abundance]:
    """True and predicted abundances of the same types, in the truth's order.

    Raises
    ------
    ValueError
        If one has types that the other lacks, or whatever :func:`abundance_of` finds.
    """
    true = abundance_of(adata, truth)
    predicted = abundance_of(adata, prediction, run="nk.tl.predict_abundance")
    if set(true.types) != set(predicted.types):
        raise ValueError(
            f"obsm[{truth!r}] and obsm[{prediction!r}] are of other types: the former alone has "
            f"{sorted(set(true.types) - set(predicted.types))}, the latter alone "
            f"{sorted(set(predicted.types) - set(true.types))}. Compare what was predicted by a model of these types."
        )
    return true, predicted.of(true.types)


def libraries_of(
    adata: AnnData, library_key: str | None, mask: NDArray[np.bool_]
) -> Iterator[tuple[str, NDArray[np.intp]]]:
    """Name of each library, and which of its cells are in ``mask``; all are of ``"all"`` without a key."""
    if library_key is None:
        yield "all", np.flatnonzero(mask)
        return
    names = library_names(adata, library_key)
    for name in dict.fromkeys(names[mask]):
        yield name, np.flatnonzero(mask & (names == name))


def constant_types(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which columns hold one value, so that nothing correlates with them, (K,)."""
    return np.ptp(values, axis=0) == 0


def pearson(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlation of each column of ``a`` with the same one of ``b``, (K,); NaN where either is constant."""
    constant = constant_types(a) | constant_types(b)
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    norm = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    constant |= norm == 0
    return np.divide((a * b).sum(axis=0), norm, out=np.full(a.shape[1], np.nan), where=~constant)
