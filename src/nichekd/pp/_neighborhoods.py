from __future__ import annotations

import logging
import math
import time
import warnings
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix

from nichekd._image import has_image
from nichekd._keys import Keys, Split
from nichekd._record import notes, record
from nichekd._resolve import get_table, sides_of, working_copy
from nichekd._sections import recorded_library
from nichekd._units import as_number, warn_if_pixels
from nichekd.pp._estimate_radius import estimate_radius
from nichekd.pp._libraries import centres_by_library
from nichekd.pp._radius_graph import radius_graph

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

log = logging.getLogger(__name__)

MANY_ALONE = 0.1  # share of cells without a neighbor beyond which the radius is questioned
FEW_ALONE = 10  # so many are no reason to
CUT = 0.75  # of the training cells' neighbors that test cells have: fewer, and strips are narrow for the radius


def neighborhoods(
    data: AnnData | SpatialData,
    *,
    radius: float | None = None,
    split_key: str | None = Keys.SPLIT,
    library_key: str | None = None,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Connect cells whose centres are at most a radius apart.

    A cell is no neighbor of its own. Cells of different sides of the split, or of different libraries, are no
    neighbors however near they are, and ``buffer`` cells are nobody's. Distances are computed and compared in float64,
    so the graph is the one that ``squidpy.gr.spatial_neighbors(radius=...)`` makes of the same cells, under the same
    keys.

    Parameters
    ----------
    data
        Cells with centres in µm.
    radius
        In µm. ``None`` takes ``uns["nichekd"]["radius"]``, or else estimates it by ``nk.pp.estimate_radius``.
    split_key
        Column of ``obs`` with ``train`` / ``test`` / ``buffer``; if the default one is absent or holds other words,
        which is logged, or for ``None``, all cells are on one side. With a radius, there may be no ``train`` cell.
    library_key
        Column of ``obs`` that tells sections apart, each with coordinates of its own; default the one that an earlier
        call or :func:`nichekd.pp.split` was given.
    table_key
        Table of a ``SpatialData``.
    copy
        Leave ``data`` as it is and return a new object.

    Returns
    -------
    ``None``, or the new object for ``copy=True``. Writes ``obsp["spatial_connectivities"]`` (ones) and
    ``obsp["spatial_distances"]`` (µm), CSR, float32, symmetric, columns sorted; ``uns["spatial_neighbors"]``;
    ``obs["n_neighbors"]``; ``uns["nichekd"]["radius"]``.

    Raises
    ------
    KeyError
        If the table, ``obsm["spatial"]``, ``library_key``, or a ``split_key`` other than the default is missing.
    ValueError
        If ``radius`` is not a positive number, or whatever is wrong with centres and split.

    Warns
    -----
    UserWarning
        If more than a tenth of the cells, and more than ten, have no neighbor; if centres seem to be in pixels and
        there is no image to check them against.

    Examples
    --------
    >>> import numpy as np
    >>> import nichekd as nk
    >>> from anndata import AnnData
    >>> cells = AnnData(obsm={"spatial": np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])})
    >>> nk.pp.neighborhoods(cells, radius=5)
    >>> cells.obs["n_neighbors"].tolist()
    [1, 2, 1]
    """
    start = time.perf_counter()
    data = working_copy(data, copy)
    adata = get_table(data, table_key)
    library_key = library_key or recorded_library(adata)
    xy, library = centres_by_library(adata, library_key)
    if library_key is None and not has_image(data):
        warn_if_pixels(xy)
    split = sides_of(adata, split_key)
    radius = _radius(data, adata, radius, split_key=split_key, library_key=library_key, table_key=table_key)
    graph = radius_graph(xy, radius, _groups(split, library))

    shape = (adata.n_obs, adata.n_obs)
    ones = np.ones(len(graph.indices), dtype=np.float32)
    # each matrix has indices of its own: scipy edits them in place, as in eliminate_zeros
    adata.obsp[Keys.CONNECTIVITIES] = _csr(ones, graph.indices.copy(), graph.indptr.copy(), shape)
    adata.obsp[Keys.DISTANCES] = _csr(graph.distances, graph.indices, graph.indptr, shape)
    adata.uns[Keys.SPATIAL_NEIGHBORS] = {
        "connectivities_key": Keys.CONNECTIVITIES,
        "distances_key": Keys.DISTANCES,
        "params": {"coord_type": "generic", "radius": radius},
    }
    degree = np.diff(graph.indptr).astype(np.int32)
    adata.obs[Keys.N_NEIGHBORS] = degree
    notes(adata)[Keys.RADIUS] = radius
    _report(degree[split != Split.BUFFER], radius)
    _warn_of_cut_neighborhoods(degree, split, radius)
    record(
        adata,
        "neighborhoods",
        seconds=time.perf_counter() - start,
        radius=radius,
        split_key=split_key,
        library_key=library_key,
        n_edges=len(graph.indices),
    )
    return data if copy else None


def _radius(
    data: AnnData | SpatialData,
    adata: AnnData,
    radius: float | None,
    *,
    split_key: str | None,
    library_key: str | None,
    table_key: str,
) -> float:
    """The radius given, the one known, or the one estimated, µm."""
    if radius is None:
        radius = notes(adata).get(Keys.RADIUS)
    if radius is None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "obsm\\['spatial'\\] puts nearest", UserWarning)  # was said just now
            return estimate_radius(data, split_key=split_key, library_key=library_key, table_key=table_key)
    radius = as_number(radius, "radius=")
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"radius={radius!r} has to be a positive number of µm. nk.pp.estimate_radius finds one.")
    return radius


def _groups(split: NDArray[np.str_], library: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number for each library and side of the split, (n,); -1 for the buffer."""
    group = 2 * library + (split == Split.TEST)
    return np.where(split == Split.BUFFER, -1, group)


def _csr(
    values: NDArray[np.float32],
    indices: NDArray[np.integer],
    indptr: NDArray[np.integer],
    shape: tuple[int, int],
) -> csr_matrix:
    """The matrix of these very arrays, known to be sorted and free of duplicates."""
    matrix = csr_matrix((values, indices, indptr), shape=shape)
    matrix.has_canonical_format = True
    return matrix


def _warn_of_cut_neighborhoods(degree: NDArray[np.int32], split: NDArray[np.str_], radius: float) -> None:
    """Log where the test strip is so narrow that its neighborhoods are others than those of training."""
    here, there = (degree[split == side] for side in (Split.TEST, Split.TRAIN))
    if len(here) and len(there) and here.mean() < CUT * there.mean():
        log.warning(
            "test cells have %.1f neighbors on average, training cells %.1f: within %.4g µm most neighborhoods end at the "
            "border of a strip, and niches there are the border's doing. Take fewer neighbors, "
            "nk.pp.estimate_radius(data, n_neighbors=...), or larger tissue.",
            here.mean(), there.mean(), radius,
        )  # fmt: skip


def _report(degree: NDArray[np.int32], radius: float) -> None:
    n_alone = int(np.count_nonzero(degree == 0))
    if n_alone > max(MANY_ALONE * len(degree), FEW_ALONE):
        warnings.warn(
            f"{n_alone:,} of {len(degree):,} cells have no neighbor within {radius:g} µm: the radius seems too small, "
            "or the centres not in µm. nk.pp.estimate_radius finds one for 50 neighbors.",
            UserWarning,
            stacklevel=3,
        )
    mean = degree.mean() if len(degree) else 0.0
    log.info("%.1f neighbors within %.2f µm on average, %d of %d cells have none", mean, radius, n_alone, len(degree))
