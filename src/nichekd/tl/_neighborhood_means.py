from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nichekd.models import NeighborhoodIndex


def neighborhood_means(
    index: NeighborhoodIndex, values: NDArray[np.floating], cells: NDArray[np.integer] | None = None
) -> NDArray[np.float32]:
    """Mean of ``values`` (n, C) over each neighborhood, the centre included: of ``cells`` (B, C), or of all (n, C)."""
    n = len(index.xy)
    values = np.asarray(values, dtype=np.float32)
    graph = csr_matrix((np.ones(len(index.indices), dtype=np.float32), index.indices, index.indptr), shape=(n, n))
    if cells is None:
        return (graph @ values + values) / index.sizes[:, None].astype(np.float32)
    return (graph[cells] @ values + values[cells]) / index.sizes[cells, None].astype(np.float32)
