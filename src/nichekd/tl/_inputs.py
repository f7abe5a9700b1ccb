"""What the networks read, from the table: neighborhoods, features, and the steps that are missing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._keys import Keys
from nichekd._record import notes
from nichekd._resolve import centres_um, get_table, require, sides_of

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd.models import NeighborhoodIndex

log = logging.getLogger(__name__)

IN_MEMORY_BYTES = 2**30
LARGEST = 1e18  # its square is a float32
BLOCK = 16_384  # rows that are read, or looked at, at once


def neighborhood_index(data: AnnData | SpatialData, *, split_key: str, table_key: str) -> NeighborhoodIndex:
    """Neighborhoods of all cells; :func:`nichekd.pp.neighborhoods` runs where it has not."""
    from nichekd import pp
    from nichekd.models import NeighborhoodIndex

    adata = get_table(data, table_key)
    xy = centres_um(adata)
    if Keys.CONNECTIVITIES not in adata.obsp or Keys.RADIUS not in notes(adata):
        pp.neighborhoods(data, split_key=split_key, table_key=table_key)
    if (other := radius_of_another_graph(adata)) is not None:
        raise ValueError(
            f"obsp[{Keys.CONNECTIVITIES!r}] is another graph than that of the radius in uns['nichekd'], "
            f"{notes(adata)[Keys.RADIUS]:.4g} µm: it was made with {other}. Run nk.pp.neighborhoods again."
        )
    graph = adata.obsp[Keys.CONNECTIVITIES].tocsr()
    split = sides_of(adata, split_key)
    crossing = _crossing_edges(graph, split)
    if crossing:
        raise ValueError(
            f"obsp[{Keys.CONNECTIVITIES!r}] has {crossing:,} edges between parts of obs[{split_key!r}]: it was made "
            "before the split. Run nk.pp.neighborhoods again."
        )
    return NeighborhoodIndex.from_graph(graph, xy, notes(adata)[Keys.RADIUS])


def radius_of_another_graph(adata: AnnData) -> str | None:
    """With what the graph was made, if not with the noted radius: squidpy writes others to the same place."""
    params = adata.uns.get(Keys.SPATIAL_NEIGHBORS, {}).get("params")
    if params is None:
        return None
    radius = params.get("radius")
    same = isinstance(radius, (int, float, np.number)) and np.isclose(float(radius), notes(adata)[Keys.RADIUS])
    return None if same else ", ".join(f"{name}={value}" for name, value in params.items() if value is not None)


def _crossing_edges(graph: Any, split: NDArray[np.str_]) -> int:
    _, code = np.unique(split, return_inverse=True)
    if code.max() == 0:
        return 0
    row = np.repeat(code.astype(np.int8), np.diff(graph.indptr))
    return int(np.count_nonzero(row != code.astype(np.int8)[graph.indices]))


def image_rep(data: AnnData | SpatialData, use_rep: str | None, *, device: str | None = None, table_key: str) -> str:
    """``obsm`` key of the image features: ``use_rep``, or those written last, or those of ``nk.settings.encoder``."""
    from nichekd import pp
    from nichekd._settings import settings

    adata = get_table(data, table_key)
    if use_rep is None:
        use_rep = notes(adata).get(Keys.LAST_REP)
        if use_rep is not None:
            log.info("image features: obsm[%r]", use_rep)
    if use_rep is None:
        log.info("no image features yet: encoding crops with %s", settings.encoder)
        pp.histology_features(data, encoder=settings.encoder, device=device, table_key=table_key)
        use_rep = notes(adata)[Keys.LAST_REP]
    require(adata, "obsm", use_rep, run="nk.pp.histology_features")
    return use_rep


def features_of(adata: AnnData, use_rep: str, *, run: str) -> Any:
    """``obsm[use_rep]``, (n, F), in memory, or lazy where it would take more than 1 GB.

    Raises
    ------
    KeyError
        If it is missing.
    TypeError
        If it holds no real numbers.
    ValueError
        If it is not a matrix, or holds NaN, infinite values, or values beyond ±1e18, whose squares are infinite to the
        networks, which are float32.
    """
    features = require(adata, "obsm", use_rep, run=run)
    for in_memory in ("to_numpy", "toarray"):  # of a DataFrame, of a sparse matrix
        if hasattr(features, in_memory):
            features = getattr(features, in_memory)()
    if features.dtype.kind not in "biuf":
        raise TypeError(f"obsm[{use_rep!r}] is of type {features.dtype}; features are numbers. Run {run} again.")
    if features.ndim != 2:
        raise ValueError(f"obsm[{use_rep!r}] has shape {features.shape}; it has to be (n_cells, n_features).")
    if hasattr(features, "compute") and features.nbytes <= IN_MEMORY_BYTES:
        features = _in_memory(features)  # batches of rows at random are fifty times slower out of a lazy array
    if isinstance(features, np.ndarray):
        blocks = range(0, len(features), BLOCK)
        # one pass; NaN and infinity pass through both
        largest = float(np.max([np.abs(features[i : i + BLOCK]).max(initial=0) for i in blocks], initial=0))
        if not np.isfinite(largest):
            bad = sum(int((~np.isfinite(features[i : i + BLOCK])).any(axis=1).sum()) for i in blocks)
            raise ValueError(
                f"obsm[{use_rep!r}] is NaN or infinite for {bad:,} of {len(features):,} cells; run {run} again."
            )
        if largest > LARGEST:
            raise ValueError(
                f"obsm[{use_rep!r}] has values of up to {largest:.3g}, which networks can't learn from; scale them, or run "
                f"{run} again."
            )
    return features


def _in_memory(lazy: Any) -> NDArray[Any]:
    """A lazy array, read part by part into one: to compute it at once takes twice the memory."""
    features = np.empty(lazy.shape, dtype=lazy.dtype)
    for start in range(0, len(features), BLOCK):
        features[start : start + BLOCK] = np.asarray(lazy[start : start + BLOCK])
    return features


def check_n_niches(n_niches: Any, n_cells: int) -> int:
    """K, checked.

    Raises
    ------
    TypeError
        If it is no whole number.
    ValueError
        If it is below 2 or above the number of training cells.
    """
    if isinstance(n_niches, bool) or not isinstance(n_niches, (int, np.integer)):
        raise TypeError(f"K is {n_niches!r}; it has to be a whole number of niches, e.g. K=10.")
    if not 2 <= n_niches <= n_cells:
        raise ValueError(f"K={n_niches} niches for {n_cells:,} training cells; K has to be from 2 to their number.")
    return int(n_niches)
