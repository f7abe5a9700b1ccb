from __future__ import annotations

import logging
import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._keys import Keys, Split
from nichekd._record import record
from nichekd._resolve import get_table, split_of, working_copy
from nichekd._seeds import check_seed
from nichekd.tl._inputs import check_n_niches, features_of, image_rep
from nichekd.tl._write_niches import write_labels

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

log = logging.getLogger(__name__)

APPROXIMATE_FROM = 8192  # training cells; exact neighbors below
BISECTIONS = 25


def histology_leiden(
    data: AnnData | SpatialData,
    K: int = 10,
    *,
    use_rep: str | None = None,
    split_key: str = Keys.SPLIT,
    seed: int = 0,
    key_added: str = Keys.HISTOLOGY_LEIDEN,
    n_pcs: int = 50,
    n_neighbors: int = 15,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Baseline: Leiden clusters of the student's image features, cell by cell.

    Principal components and the nearest-neighbor graph are made once, on training cells; the resolution that gives K
    clusters is found by bisection on that graph. Every other cell takes the majority label of its nearest training
    cells.

    Parameters
    ----------
    data
        Cells with image features.
    K
        Number of clusters aimed at.
    use_rep
        ``obsm`` key of the image features; default: those written last.
    split_key
        Column of ``obs`` with ``train`` cells to fit on.
    seed
        Of Leiden and PCA.
    key_added
        Name of the result.
    n_pcs
        Principal components.
    n_neighbors
        Of the graph, and of the vote.
    table_key
        Table of a ``SpatialData``.
    copy
        Return a new object and leave ``data`` as it is.

    Returns
    -------
    ``None``, or the new object. Writes ``obs["niche_histology_leiden"]``, categorical, and
    ``uns["nichekd"]["histology_leiden"]`` with the ``resolution`` and ``n_clusters``. Where no resolution gives K
    clusters, the nearest number is taken, with a warning.

    Raises
    ------
    KeyError
        If the features are missing.
    TypeError
        If K is no whole number.
    ValueError
        If K is below 2 or above the number of training cells, features are NaN, or ``key_added`` is the name of another
        method.
    """
    check_seed(seed)
    started = time.perf_counter()
    Keys.check_name(key_added, own=Keys.HISTOLOGY_LEIDEN)
    data = working_copy(data, copy)
    adata = get_table(data, table_key)
    is_train = split_of(adata, split_key) == Split.TRAIN
    train, rest = np.flatnonzero(is_train), np.flatnonzero(~is_train)
    n_niches = check_n_niches(K, len(train))
    use_rep = image_rep(data, use_rep, table_key=table_key)
    components = _components(features_of(adata, use_rep, run="nk.pp.histology_features"), train, n_pcs, seed)
    graph, approximate = _train_graph(components[train], n_neighbors, seed)
    labels, resolution = leiden_with_k(graph, n_niches, seed)
    n_clusters = int(labels.max()) + 1
    if n_clusters != n_niches:
        warnings.warn(
            f"No resolution gave {n_niches} Leiden clusters; {n_clusters} at {resolution:.3g} is the nearest.",
            UserWarning,
            stacklevel=2,
        )
    codes = np.empty(adata.n_obs, dtype=np.int64)
    codes[train] = labels
    if len(rest):
        codes[rest] = _vote(components[train], labels, components[rest], n_neighbors, approximate)
    write_labels(adata, Keys.niche(key_added), codes, n_niches=max(n_niches, n_clusters))
    parameters = {"K": n_niches, "use_rep": use_rep, "seed": seed, "key_added": key_added}
    parameters |= {"n_pcs": n_pcs, "n_neighbors": n_neighbors, "resolution": resolution, "n_clusters": n_clusters}
    record(adata, "histology_leiden", seconds=time.perf_counter() - started, **parameters)
    log.info("Leiden: %d clusters at resolution %.3g", n_clusters, resolution)
    return data if copy else None


def _components(features: Any, train: NDArray[np.integer], n_pcs: int, seed: int) -> NDArray[np.float32]:
    """Principal components of the standardised training features, for all cells, (n, n_pcs), in blocks."""
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(seed)
    sample = train if len(train) <= 50_000 else np.sort(rng.choice(train, 50_000, replace=False))
    rows = np.asarray(features[sample], dtype=np.float32)
    mean, sd = rows.mean(0), np.maximum(rows.std(0), 1e-6)
    n_pcs = min(n_pcs, rows.shape[1], len(sample) - 1)
    pca = PCA(n_pcs, svd_solver="randomized", random_state=seed).fit((rows - mean) / sd)
    blocks = [
        pca.transform((np.asarray(features[i : i + 16_384], dtype=np.float32) - mean) / sd)
        for i in range(0, features.shape[0], 16_384)
    ]
    return np.concatenate(blocks).astype(np.float32)


def _train_graph(components: NDArray[np.float32], n_neighbors: int, seed: int) -> tuple[Any, Any]:
    """Scanpy's weighted neighbor graph of the training cells, as igraph; and what found the neighbors, if approximately."""
    import igraph
    import scanpy as sc
    from anndata import AnnData
    from scipy.sparse import triu

    cells = AnnData(obsm={"X_pca": components})
    approximate = _approximate_neighbors(cells.n_obs, n_neighbors, seed) if cells.n_obs >= APPROXIMATE_FROM else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="umap")
        sc.pp.neighbors(
            cells,
            n_neighbors=min(n_neighbors, len(components) - 1),
            use_rep="X_pca",
            random_state=seed,
            transformer=approximate,
        )
    edges = triu(cells.obsp["connectivities"], k=1, format="coo")
    pairs = np.column_stack([edges.row, edges.col])
    return igraph.Graph(n=cells.n_obs, edges=pairs, edge_attrs={"weight": edges.data}), approximate


def _approximate_neighbors(n_cells: int, n_neighbors: int, seed: int) -> Any:
    """Nearest-neighbor descent as scanpy sets it up, with a result that it can read."""
    from pynndescent import PyNNDescentTransformer
    from scipy.sparse import csr_matrix

    class AsMatrix(PyNNDescentTransformer):
        """Newer releases of pynndescent give a sparse array, which scanpy takes for a matrix."""

        def fit_transform(self, X: Any, y: Any = None, **kwargs: Any) -> Any:
            return csr_matrix(super().fit_transform(X, y, **kwargs))

    return AsMatrix(
        n_neighbors=n_neighbors,
        random_state=seed,
        n_trees=min(64, 5 + round(n_cells**0.5 / 20)),
        n_iters=max(5, round(np.log2(n_cells))),
    )


def leiden_with_k(graph: Any, k: int, seed: int) -> tuple[NDArray[np.int64], float]:
    """Leiden's partition into ``k`` clusters, or the nearest number found, and its resolution."""
    import leidenalg

    def partition(resolution: float) -> NDArray[np.int64]:
        found = leidenalg.find_partition(
            graph,
            leidenalg.RBConfigurationVertexPartition,
            weights="weight",
            resolution_parameter=resolution,
            seed=seed,
            n_iterations=2,
        )
        return np.asarray(found.membership)

    low, high = 1e-3, 1.0
    best, best_resolution = partition(high), high
    while best.max() + 1 < k and high < 1e3:
        low, high = high, high * 2
        best, best_resolution = partition(high), high
    for _ in range(BISECTIONS):
        if best.max() + 1 == k:
            break
        middle = np.sqrt(low * high)
        labels = partition(middle)
        if abs(labels.max() + 1 - k) <= abs(best.max() + 1 - k):
            best, best_resolution = labels, middle
        low, high = (middle, high) if labels.max() + 1 < k else (low, middle)
    return best, float(best_resolution)


def _vote(
    train: NDArray[np.float32],
    labels: NDArray[np.int64],
    rest: NDArray[np.float32],
    n_neighbors: int,
    approximate: Any,
) -> NDArray[np.int64]:
    """Labels of the nearest training cells, by majority; the lower one of several that are as many."""
    k = min(n_neighbors, len(train))
    if approximate is None:
        from sklearn.neighbors import NearestNeighbors

        nearest = NearestNeighbors(n_neighbors=k, n_jobs=-1).fit(train).kneighbors(rest, return_distance=False)
    else:
        nearest, _ = approximate.index_.query(rest, k=k)
    votes = np.zeros((len(rest), labels.max() + 1), dtype=np.int16)
    for column in labels[nearest].T:
        votes[np.arange(len(rest)), column] += 1
    return votes.argmax(axis=1)
