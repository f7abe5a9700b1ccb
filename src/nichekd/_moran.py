"""Bivariate Moran's R: which types of cells are found near each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._abundance import constant_types
from nichekd._keys import Keys
from nichekd._resolve import require

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from scipy.sparse import csr_array


def weights_among(adata: AnnData, cells: NDArray[np.intp]) -> csr_array:
    """Weights of squidpy's graph among some cells, (m, m), none of a cell to itself.

    Raises
    ------
    KeyError
        If there is no graph.
    ValueError
        If none of these cells has a neighbor among them.
    """
    from scipy.sparse import csr_array

    graph = require(adata, "obsp", Keys.CONNECTIVITIES, run="nk.pp.neighborhoods or squidpy.gr.spatial_neighbors")
    part = csr_array(graph)[cells][:, cells].tocoo()
    off = part.row != part.col
    weights = csr_array((part.data[off].astype(np.float64), (part.row[off], part.col[off])), shape=part.shape)
    if not weights.sum() > 0:
        raise ValueError(
            f"obsp[{Keys.CONNECTIVITIES!r}] connects none of the {len(cells):,} cells or spots looked at. Run "
            "nk.pp.neighborhoods with a larger radius=, or squidpy.gr.spatial_neighbors."
        )
    return weights


def morans_r(weights: csr_array, values: NDArray[np.float64]) -> NDArray[np.float64]:
    r"""Between all columns of ``values`` (m, K), (K, K), symmetric; NaN where a column is constant.

    :math:`R_{ab} = \frac{n}{\sum_{ij} w_{ij}} \frac{\sum_{ij} w_{ij} (a_i - \bar a)(b_j - \bar b)}{\sqrt{\sum_i (a_i -
    \bar a)^2} \sqrt{\sum_i (b_i - \bar b)^2}}`, the mean of both directions where weights are not symmetric.
    """
    z, usable = standardized(values)
    r = cross_products(weights, z, z)
    r = (r + r.T) / 2
    r[~usable], r[:, ~usable] = np.nan, np.nan
    return r


def standardized(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Columns of mean 0 and squares that sum up to 1, (m, K), and which of them are not constant, (K,)."""
    centred = values - values.mean(axis=0)
    norm = np.sqrt((centred**2).sum(axis=0))
    usable = ~constant_types(values) & (norm > 0)
    return np.divide(centred, norm, out=np.zeros_like(centred), where=usable), usable


def cross_products(weights: csr_array, left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    r""":math:`n / W` times left' weights right, of columns that :func:`standardized` made."""
    product: Any = weights @ right
    return left.T @ product * (len(left) / float(weights.sum()))
