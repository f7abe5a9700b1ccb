"""From what a user hands in to the cell table, its centres and its split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData

from nichekd._keys import Keys, Split

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

Data = TypeVar("Data", "AnnData", "SpatialData")


def get_table(data: AnnData | SpatialData, table_key: str = "table") -> AnnData:
    """The cell table of ``data``.

    Raises
    ------
    KeyError
        If the ``SpatialData`` has no table ``table_key``.
    TypeError
        If ``data`` is neither an ``AnnData`` nor a ``SpatialData``.
    """
    if isinstance(data, AnnData):
        return _actual(data)
    tables = getattr(data, "tables", None)
    if tables is None:
        raise TypeError(f"data is a {type(data).__name__}; it has to be an AnnData or a SpatialData.")
    if table_key not in tables:
        raise KeyError(
            f"The SpatialData has no table {table_key!r}; it has {sorted(tables)}. "
            "Name one by table_key=, or make the object with nk.io.paired."
        )
    return _actual(tables[table_key])


def _actual(adata: AnnData) -> AnnData:
    """The table itself; a view becomes one of its own, as in scanpy, or notes would land in what it is a view of."""
    if adata.is_view:
        adata._init_as_actual(adata.copy())
    return adata


def working_copy(data: Data, copy: bool) -> Data:
    """``data`` itself or, for ``copy=True``, a new object with copied tables that shares the images."""
    if not copy:
        return data
    if isinstance(data, AnnData):
        return data.to_memory() if data.isbacked else data.copy()  # a backed table copies to a file only
    from spatialdata import SpatialData

    return SpatialData(
        images=dict(data.images),
        labels=dict(data.labels),
        points=dict(data.points),
        shapes=dict(data.shapes),
        tables={name: table.copy() for name, table in data.tables.items()},
        attrs=data.attrs,
    )


def require(adata: AnnData, slot: str, key: str, *, run: str) -> Any:
    """``adata.<slot>[key]``.

    Raises
    ------
    KeyError
        If it is missing; names what there is, and ``run``, the call that writes it.
    ValueError
        If it is a ``DataFrame`` of ``obsm`` whose rows are not the cells.
    """
    store = getattr(adata, slot)
    if key not in store:
        raise KeyError(f"{slot}[{key!r}] is missing; {slot} has {sorted(map(str, store.keys()))}. Run {run} first.")
    value = store[key]
    # anndata looks at the index when it is given the DataFrame, and from 0.13 on never again
    if slot == "obsm" and isinstance(value, pd.DataFrame) and not value.index.equals(adata.obs_names):
        raise ValueError(
            f"obsm[{key!r}] is not aligned with the table: its index is not obs_names. Reorder it: "
            f"adata.obsm[{key!r}] = adata.obsm[{key!r}].loc[adata.obs_names]."
        )
    return value


def centres_um(adata: AnnData) -> NDArray[np.float64]:
    """Cell centres in µm, (n, 2), checked.

    Raises
    ------
    KeyError
        If ``obsm["spatial"]`` is missing.
    TypeError
        If it holds no numbers.
    ValueError
        If it is not (n, 2), or holds NaN, infinite or duplicate centres.
    """
    if Keys.SPATIAL not in adata.obsm:
        raise KeyError(
            f"obsm['spatial'] is missing; obsm has {sorted(map(str, adata.obsm.keys()))}. Put the cells' centres there, "
            "in µm, if x and y are columns of obs by adata.obsm['spatial'] = adata.obs[['x', 'y']].to_numpy()."
        )
    stored = require(adata, "obsm", Keys.SPATIAL, run="nk.io.paired")
    try:
        xy = np.asarray(stored, dtype=np.float64)
    except (TypeError, ValueError) as err:
        raise TypeError(
            f"obsm['spatial'] is a {type(stored).__name__} that holds no plain numbers ({err}); it has to be an array "
            "(n_cells, 2): x and y in µm."
        ) from err
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ValueError(f"obsm['spatial'] has shape {xy.shape}; it has to be (n_cells, 2): x and y in µm.")
    bad = ~np.isfinite(xy).all(axis=1)
    if bad.any():
        raise ValueError(
            f"obsm['spatial'] is NaN or infinite for {bad.sum():,} of {len(xy):,} cells. "
            "Drop them: adata[np.isfinite(adata.obsm['spatial']).all(axis=1)].copy()."
        )
    n_unique = len(xy) if _surely_distinct(xy) else len(np.unique(xy, axis=0))
    if n_unique < len(xy):
        raise ValueError(
            f"obsm['spatial'] has {len(xy) - n_unique:,} duplicate cell centres. Drop them: "
            "adata[~pd.DataFrame(adata.obsm['spatial']).duplicated().to_numpy()].copy()."
        )
    return xy


def _surely_distinct(xy: NDArray[np.float64]) -> bool:
    """Whether hashes of the centres differ, which sorts a hundred times faster than the centres themselves."""
    bits = np.ascontiguousarray(xy + 0.0).view(np.uint64)  # + 0.0: -0 and 0 are one place
    hashes = np.sort(bits[:, 0] * np.uint64(0x9E3779B97F4A7C15) + bits[:, 1])
    return not (hashes[1:] == hashes[:-1]).any()


def split_of(adata: AnnData, split_key: str | None = Keys.SPLIT) -> NDArray[np.str_]:
    """``train`` / ``test`` / ``buffer`` of each cell, (n,); all ``train`` where the default column is absent.

    Raises
    ------
    KeyError
        If a ``split_key`` other than the default is absent.
    ValueError
        If the column holds other words, missing values, or no training cell.
    """
    if split_key is None or (split_key == Keys.SPLIT and split_key not in adata.obs):
        return np.full(adata.n_obs, Split.TRAIN)
    column = require(adata, "obs", split_key, run="nk.pp.split")
    words = set(column.dropna().unique())
    if column.isna().any() or not words <= set(Split.ALL):
        raise ValueError(
            f"obs[{split_key!r}] holds {sorted(map(str, words))} and {column.isna().sum():,} missing values; "
            f"it may hold {list(Split.ALL)} only. Run nk.pp.split."
        )
    split = column.to_numpy().astype(str)
    if not (split == Split.TRAIN).any():
        raise ValueError(f"obs[{split_key!r}] has no 'train' cell; there is nothing to fit on. Run nk.pp.split.")
    return split
