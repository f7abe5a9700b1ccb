from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from nichekd._abundance import check_type_names
from nichekd._keys import Keys, Split
from nichekd._labels import labels_of
from nichekd._record import notes, record
from nichekd._resolve import get_table, sides_of, working_copy
from nichekd._sections import recorded_library
from nichekd.pp._estimate_radius import estimate_radius
from nichekd.pp._libraries import centres_by_library
from nichekd.pp._radius_graph import radius_graph

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

log = logging.getLogger(__name__)

VISIUM_RADIUS, VISIUM_DISTANCE = 27.5, 100.0  # µm: half a spot's diameter, and between the centres of two


def neighborhood_composition(
    data: AnnData | SpatialData,
    *,
    cell_type_key: str,
    radius: float | None = None,
    spots: bool = False,
    spot_distance: float = VISIUM_DISTANCE,
    layer: str | None = None,
    split_key: str | None = Keys.SPLIT,
    library_key: str | None = None,
    image_key: str | None = None,
    key_added: str = Keys.CELL_ABUNDANCE,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """How many cells of each type lie around each cell, or in each spot of a hexagonal grid.

    Around a cell, it counts itself and all cells within ``radius``, but for those of another library, and, around
    training cells, test cells, and the other way round. ``buffer`` cells count, and are counted, on both sides: up to a
    radius of the buffer's half width no cell is counted by a training and a test cell. Spots stand for those of
    Visium: they count, and sum up the expression of, the cells within ``radius`` of their centres, of which every other
    row is moved by half of ``spot_distance``. They are new objects, with neither features nor split: run
    :func:`nichekd.pp.split` and :func:`nichekd.pp.histology_features` on them.

    Parameters
    ----------
    data
        Cells with types and centres in µm.
    cell_type_key
        Column of ``obs`` with cell types; cells without one are counted as none.
    radius
        In µm. ``None`` is 27.5 for spots; for cells it is ``uns["nichekd"]["radius"]``, or else estimated by
        :func:`nichekd.pp.estimate_radius`.
    spots
        Return spots.
    spot_distance
        Between the centres of neighboring spots, µm.
    layer
        Of the raw counts that spots sum up; ``X`` if left out. A table without genes makes spots without.
    split_key
        Column of ``obs`` with ``train`` / ``test`` / ``buffer``, which spots don't look at; if the default one is
        absent or holds other words, which is logged, or for ``None``, all cells are on one side.
    library_key
        Column of ``obs`` that tells sections apart, each with coordinates of its own; default the one that an earlier
        :func:`nichekd.pp.neighborhoods` or :func:`nichekd.pp.split` was given.
    image_key
        Name of the image on which spots lie; may be left out where there is one, or one that is 8-bit RGB.
    key_added
        ``obsm`` key of the numbers.
    table_key
        Table of a ``SpatialData``.
    copy
        Leave ``data`` as it is and return a new object; spots are always new.

    Returns
    -------
    ``None``, or the new object. Writes ``obsm["cell_abundance"]``, a float32 ``DataFrame`` (n, K) of numbers of cells,
    its columns the types that occur; and ``uns["nichekd"]["neighborhood_composition"]``.

    Spots come as the kind of object that ``data`` is, only those that hold a cell, with the sums of counts in ``X``,
    ``obsm["spatial"]``, ``obs["n_cells"]``, ``obs["array_row"]``, ``obs["array_col"]`` and the library; a
    ``SpatialData`` of them shares the images and has circles in ``shapes["spots"]``.

    Raises
    ------
    KeyError
        If a column or ``obsm["spatial"]`` is missing, or there is no image ``image_key``.
    ValueError
        If ``radius`` or ``spot_distance`` is not a positive number, no cell has a type, a type's name can't be a column
        of a file (a slash), ``key_added`` holds the centres, no spot holds a cell, the genes of spots are not raw
        counts, or spots have several images to lie on and none is named.

    Examples
    --------
    >>> import numpy as np
    >>> import nichekd as nk
    >>> from anndata import AnnData
    >>> cells = AnnData(obs={"kind": list("TTB")}, obsm={"spatial": np.array([[0.0, 0], [9, 0], [18, 0]])})
    >>> nk.pp.neighborhood_composition(cells, cell_type_key="kind", radius=10)
    >>> cells.obsm["cell_abundance"].to_numpy().tolist()
    [[0.0, 2.0], [1.0, 2.0], [1.0, 1.0]]
    """
    start = time.perf_counter()
    adata = get_table(data, table_key)
    types = labels_of(adata, cell_type_key, run="your cell typing").remove_unused_categories()
    if not len(types.categories):
        raise ValueError(f"obs[{cell_type_key!r}] is missing for all {adata.n_obs:,} cells; name another column.")
    check_type_names(map(str, types.categories))
    Keys.check_added(key_added)
    if untyped := int((types.codes < 0).sum()):
        log.warning("%d of %d cells have no obs[%r] and are counted as none", untyped, adata.n_obs, cell_type_key)
    library_key = library_key or recorded_library(adata)
    xy, library = centres_by_library(adata, library_key)
    _check_length(radius, "radius")
    _check_length(spot_distance, "spot_distance")
    if spots:
        from nichekd.pp._spots import make_spots

        radius = VISIUM_RADIUS if radius is None else float(radius)
        data = make_spots(
            data, adata, xy, library, radius=radius, distance=spot_distance, layer=layer, library_key=library_key,
            count=lambda members: _table(members @ _one_hot(types), types), image_key=image_key, key_added=key_added,
            table_key=table_key,
        )  # fmt: skip
        adata = get_table(data, table_key)
    else:
        data = working_copy(data, copy)
        adata = get_table(data, table_key)
        radius = _radius(data, adata, radius, split_key=split_key, library_key=library_key, table_key=table_key)
        around = _around(xy, radius, sides_of(adata, split_key), library)
        kinds = _one_hot(types)
        adata.obsm[key_added] = _table(around @ kinds + kinds, types, adata.obs_names)
    record(
        adata, "neighborhood_composition", seconds=time.perf_counter() - start, cell_type_key=cell_type_key,
        radius=radius, spots=spots, spot_distance=spot_distance if spots else None, library_key=library_key,
        key_added=key_added,
    )  # fmt: skip
    mean = float(adata.obsm[key_added].to_numpy().sum(axis=1).mean())
    what = "spots" if spots else "cells"
    log.info("%d %s: %.1f cells of %d types within %.1f um", adata.n_obs, what, mean, len(types.categories), radius)
    return data if copy or spots else None


def _around(xy: NDArray[np.float64], radius: float, split: NDArray[np.str_], library: NDArray[np.int64]) -> csr_matrix:
    """Ones where a cell counts another, (n, n): near, of the same library, and not on the other side of the split."""
    graph = radius_graph(xy, radius, library)
    side = np.select([split == Split.TRAIN, split == Split.TEST], [1, -1], 0).astype(np.int8)
    other = np.repeat(side, np.diff(graph.indptr)) * side[graph.indices]
    return csr_matrix(((other >= 0).astype(np.float32), graph.indices, graph.indptr), shape=(len(xy), len(xy)))


def _check_length(value: float | None, name: str) -> None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value!r} has to be a positive number of µm.")


def _radius(
    data: AnnData | SpatialData,
    adata: AnnData,
    radius: float | None,
    *,
    split_key: str | None,
    library_key: str | None,
    table_key: str,
) -> float:
    if radius is None:
        radius = notes(adata).get(Keys.RADIUS)
    if radius is None:
        return estimate_radius(data, split_key=split_key, library_key=library_key, table_key=table_key)
    return float(radius)


def _one_hot(types: pd.Categorical) -> csr_matrix:
    """(n, K); a row of zeros for a cell without type."""
    typed = np.flatnonzero(types.codes >= 0)
    ones = np.ones(len(typed), dtype=np.float32)
    return csr_matrix((ones, (typed, types.codes[typed])), shape=(len(types), len(types.categories)))


def _table(counts: Any, types: pd.Categorical, index: Any = None) -> pd.DataFrame:
    values: NDArray[np.float32] = np.asarray(counts.todense(), dtype=np.float32)
    return pd.DataFrame(values, columns=list(types.categories), index=index)
