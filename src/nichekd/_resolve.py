"""From what a user hands in to the cell table, its centres and its split."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData

from nichekd._keys import Keys, Split
from nichekd._sections import library_codes, recorded_library

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

log = logging.getLogger(__name__)

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
        if adata.isbacked:  # its copy would need a file of its own
            log.warning("The view of %s is read into memory: %d cells", adata.filename, adata.n_obs)
        adata._init_as_actual(adata.to_memory() if adata.isbacked else adata.copy())
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


def centres_um(adata: AnnData, *, together: bool = False) -> NDArray[np.float64]:
    """Cell centres in µm, (n, 2), checked.

    Sections that :func:`nichekd.pp.neighborhoods` or :func:`nichekd.pp.split` told apart have coordinates of their own,
    so that two cells at the same place are duplicates within a section only.

    Parameters
    ----------
    adata
        The table.
    together
        All cells lie in one frame, as on one image: whatever their section, no two are at the same place.

    Raises
    ------
    KeyError
        If ``obsm["spatial"]``, or the recorded column of sections, is missing.
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
    if not _surely_distinct(xy):
        _check_distinct(xy, None if together else recorded_library(adata), adata)
    return xy


def _check_distinct(xy: NDArray[np.float64], library_key: str | None, adata: AnnData) -> None:
    """Raise for two cells at the same place of a section."""
    places = xy if library_key is None else np.column_stack([library_codes(adata, library_key), xy])
    n_same = len(xy) - len(np.unique(places, axis=0))
    if not n_same:
        return
    if library_key is not None:
        raise ValueError(
            f"obsm['spatial'] has {n_same:,} duplicate cell centres within sections of obs[{library_key!r}]. Drop them: "
            f"adata[~pd.DataFrame(adata.obsm['spatial']).assign(of=list(adata.obs[{library_key!r}])).duplicated()"
            ".to_numpy()].copy()."
        )
    raise ValueError(
        f"obsm['spatial'] has {n_same:,} duplicate cell centres. If the table holds sections with coordinates of their "
        "own, name the column that tells them apart, nk.pp.neighborhoods(data, library_key=...); on one image they have "
        "to lie side by side. If it holds one section, drop them: "
        "adata[~pd.DataFrame(adata.obsm['spatial']).duplicated().to_numpy()].copy()."
    )


def _surely_distinct(xy: NDArray[np.float64]) -> bool:
    """Whether hashes of the centres differ, which sorts a hundred times faster than the centres themselves."""
    bits = np.ascontiguousarray(xy + 0.0).view(np.uint64)  # + 0.0: -0 and 0 are one place
    hashes = np.sort(bits[:, 0] * np.uint64(0x9E3779B97F4A7C15) + bits[:, 1])
    return not (hashes[1:] == hashes[:-1]).any()


def split_of(adata: AnnData, split_key: str | None = Keys.SPLIT) -> NDArray[np.str_]:
    """``train`` / ``test`` / ``buffer`` of each cell, (n,); all ``train`` where the default column is absent.

    For what is fitted on the training cells; what fits nothing asks :func:`sides_of`.

    Raises
    ------
    KeyError
        If a ``split_key`` other than the default is absent.
    ValueError
        If the column holds other words, missing values, or no training cell.
    """
    split = _words(adata, split_key)
    if isinstance(split, str):
        raise ValueError(
            f"{split} Run nk.pp.split, which writes that column anew; to keep it, rename it first, or have "
            "nk.pp.split(key_added=...) write another and name that by split_key=."
        )
    if not (split == Split.TRAIN).any():
        raise ValueError(
            f"obs[{split_key!r}] has no 'train' cell; there is nothing to fit on. Run nk.pp.split on all cells, or "
            "take over what was fitted on others: radius= of nk.pp.neighborhoods, model= of nk.pp.expression_features, "
            "a student in nk.tl.predict_niches."
        )
    return split


def sides_of(adata: AnnData, split_key: str | None = Keys.SPLIT) -> NDArray[np.str_]:
    """As :func:`split_of`, for what only keeps the sides apart and fits nothing: there may be no training cell.

    A column of the default name that holds other words is somebody else's: that is logged, and all cells are ``train``.

    Raises
    ------
    KeyError
        If a ``split_key`` other than the default is absent.
    ValueError
        If a column that was named holds other words or missing values.
    """
    split = _words(adata, split_key)
    if not isinstance(split, str):
        return split
    if split_key != Keys.SPLIT:
        raise ValueError(f"{split} Name a column that nk.pp.split wrote by split_key=.")
    log.warning("%s It is not of nk.pp.split, and all cells count as one side", split)
    return np.full(adata.n_obs, Split.TRAIN)


def _words(adata: AnnData, split_key: str | None) -> NDArray[np.str_] | str:
    """The column's words, (n,), or what is wrong with them."""
    if split_key is None or (split_key == Keys.SPLIT and split_key not in adata.obs):
        return np.full(adata.n_obs, Split.TRAIN)
    column = require(adata, "obs", split_key, run="nk.pp.split")
    words = set(column.dropna().unique())
    if column.isna().any() or not words <= set(Split.ALL):
        return (
            f"obs[{split_key!r}] holds {sorted(map(str, words))} and {column.isna().sum():,} missing values; a split "
            f"may hold {list(Split.ALL)} only."
        )
    return column.to_numpy().astype(str)
