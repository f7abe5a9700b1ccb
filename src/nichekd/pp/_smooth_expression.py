from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from nichekd._keys import Keys
from nichekd._record import record
from nichekd._resolve import get_table, require, working_copy
from nichekd.pp._log_normalize import log_normalized

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

log = logging.getLogger(__name__)


def smooth_expression(
    data: AnnData | SpatialData,
    *,
    layer: str | None = None,
    key_added: str = Keys.SMOOTHED,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | SpatialData | None:
    r"""Mean expression of a cell and its neighbors.

    A cell's few counts are mostly noise; what an image can know of them it shares with its surroundings.

    .. math:: \bar x_i = \frac{1}{1 + |N_i|} \Big( x_i + \sum_{j \in N_i} x_j \Big)

    over the neighbors of the graph, whatever its lattice; :math:`x` are values of :math:`\log(1 + 10^4 \cdot
    \text{count} / \text{total})` where the layer holds counts, else its own. The graph of
    :func:`nichekd.pp.neighborhoods` crosses neither the split nor sections, so that nothing of a test cell gets into a
    training cell. Smoothed targets are easier to predict than a cell's own expression: report both.

    Parameters
    ----------
    data
        Cells with ``obsp["spatial_connectivities"]``; for spots, :func:`squidpy.gr.spatial_neighbors` makes one.
    layer
        Layer with the expression; default ``X``.
    key_added
        Layer to write.
    table_key
        Table of a ``SpatialData``.
    copy
        Leave ``data`` as it is and return a new object.

    Returns
    -------
    ``None``, or the new object for ``copy=True``. Writes ``layers["smoothed"]``, float32 (n, n_genes), sparse where
    the expression is, and ``uns["nichekd"]["smooth_expression"]``.

    Raises
    ------
    KeyError
        If the graph or the layer is missing.
    ValueError
        If there are no genes, or values are NaN or infinite.

    Examples
    --------
    >>> import numpy as np
    >>> import nichekd as nk
    >>> from anndata import AnnData
    >>> cells = AnnData(np.array([[0.5], [1.5], [9.0]]), obsm={"spatial": np.array([[0.0, 0], [3, 4], [99, 99]])})
    >>> nk.pp.neighborhoods(cells, radius=5)
    >>> nk.pp.smooth_expression(cells)
    >>> cells.layers["smoothed"].ravel().tolist()
    [1.0, 1.0, 9.0]
    """
    started = time.perf_counter()
    data = working_copy(data, copy)
    adata = get_table(data, table_key)
    graph = require(adata, "obsp", Keys.CONNECTIVITIES, run="nk.pp.neighborhoods")
    expression = log_normalized(adata, layer)
    near = sparse.csr_matrix(graph > 0, dtype=np.float32) + sparse.identity(adata.n_obs, dtype=np.float32, format="csr")
    near.data[:] = 1  # the cell itself counts once, also where a graph has it among its neighbors
    share = sparse.diags((1 / np.asarray(near.sum(axis=1)).ravel()).astype(np.float32))
    smoothed = share @ (near @ expression)
    adata.layers[key_added] = sparse.csr_matrix(smoothed) if sparse.issparse(smoothed) else smoothed
    n_alone = int(np.count_nonzero(np.diff(near.indptr) == 1))
    record(adata, "smooth_expression", seconds=time.perf_counter() - started, layer=layer, key_added=key_added)
    log.info("mean expression of %d cells and their neighbors; %d have none", adata.n_obs, n_alone)
    return data if copy else None
