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


def library_codes(adata: AnnData, library_key: str) -> NDArray[np.int64]:
    """A number for each cell's library, (n,).

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
    return pd.factorize(column)[0].astype(np.int64)
