"""Which section a cell is from, where a table holds several."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nichekd._keys import Keys

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray


def recorded_library(adata: AnnData) -> str | None:
    """The column of sections that :func:`nichekd.pp.neighborhoods` was given, or else :func:`nichekd.pp.split`."""
    ran = adata.uns.get(Keys.UNS, {})
    keys = (ran.get(function, {}).get("library_key") for function in ("neighborhoods", "split"))
    return next((str(key) for key in keys if key is not None), None)


def library_names(adata: AnnData, library_key: str) -> NDArray[np.str_]:
    """Name of each cell's library, as text, (n,).

    Raises
    ------
    KeyError
        If the column is missing.
    ValueError
        If a cell has no library.
    """
    column = adata.obs.get(library_key)
    if column is None:
        raise KeyError(
            f"obs[{library_key!r}] is missing; obs has {sorted(map(str, adata.obs))}. Name the column that says which "
            "section a cell is from by library_key=, or leave it out for a single section."
        )
    if column.isna().any():
        raise ValueError(
            f"obs[{library_key!r}] is missing for {column.isna().sum():,} of {len(column):,} cells. Fill it in, or "
            f"drop them: adata[adata.obs[{library_key!r}].notna()].copy()."
        )
    return column.astype(str).to_numpy()


def library_codes(adata: AnnData, library_key: str) -> NDArray[np.int64]:
    """A number for each cell's library, in the order of the table, (n,); raises as :func:`library_names`."""
    return pd.factorize(library_names(adata, library_key))[0].astype(np.int64)


def cells_of_libraries(adata: AnnData, library_key: str) -> dict[str, NDArray[np.intp]]:
    """Cells of each library, in the order of their names; raises as :func:`library_names`."""
    names = library_names(adata, library_key)
    order = np.argsort(names, kind="stable")
    found, start = np.unique(names[order], return_index=True)
    return dict(zip(found.tolist(), np.split(order, start[1:]), strict=True))
