"""Two partitions of the same cells: how much they agree, and which niche of one is which of the other."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray


def contingency(a: pd.Categorical, b: pd.Categorical) -> NDArray[np.int64]:
    """Number of cells with each pair of labels, (n_a, n_b); cells that miss either are left out."""
    n_a, n_b = len(a.categories), len(b.categories)
    i, j = a.codes.astype(np.int64), b.codes.astype(np.int64)
    both = (i >= 0) & (j >= 0)
    return np.bincount(i[both] * n_b + j[both], minlength=n_a * n_b).reshape(n_a, n_b)


def ari_nmi(a: NDArray[np.integer], b: NDArray[np.integer]) -> tuple[float, float]:
    """Adjusted Rand index, and mutual information over the arithmetic mean of the two entropies, of two labelings."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return float(adjusted_rand_score(a, b)), float(normalized_mutual_info_score(a, b, average_method="arithmetic"))


def jensen_shannon(p: NDArray[np.number], q: NDArray[np.number]) -> NDArray[np.float64]:
    r"""Jensen-Shannon divergence in bits between every row of ``p`` and every row of ``q``, (n_p, n_q).

    :math:`\tfrac12 KL(p‖m) + \tfrac12 KL(q‖m)` with :math:`m = (p + q)/2`, in [0, 1]; scipy's ``jensenshannon`` is its
    square root. Rows are counts or shares, each with a sum above 0.
    """
    from scipy.special import rel_entr

    left = (p / p.sum(axis=1, keepdims=True))[:, None, :]  # (n_p, 1, n_types)
    right = (q / q.sum(axis=1, keepdims=True))[None, :, :]  # (1, n_q, n_types)
    middle = (left + right) / 2
    nats = (rel_entr(left, middle) + rel_entr(right, middle)).sum(axis=-1) / 2  # (n_p, n_q)
    return np.clip(nats / np.log(2), 0, 1)


def match_by_overlap(counts: NDArray[np.integer]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs of row and column, one-to-one, that share the most cells; pairs that share none are dropped."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(counts, maximize=True)
    shared = counts[rows, columns] > 0
    return rows[shared], columns[shared]


def match_by_composition(
    p: NDArray[np.integer], q: NDArray[np.integer]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Pairs of niches, one-to-one, with the least summed Jensen-Shannon divergence between their compositions.

    Parameters
    ----------
    p, q
        Cells of each type in each niche, (n_p, n_types) and (n_q, n_types). Niches with no cell stay unmatched.

    Returns
    -------
    Rows of ``p`` and of ``q``, and the divergence of each pair, (n_matched,) each.
    """
    from scipy.optimize import linear_sum_assignment

    live_p, live_q = np.flatnonzero(p.sum(axis=1)), np.flatnonzero(q.sum(axis=1))
    cost = jensen_shannon(p[live_p], q[live_q])
    rows, columns = linear_sum_assignment(cost)
    return live_p[rows], live_q[columns], cost[rows, columns]


def fingerprint(*columns: pd.Categorical) -> str:
    """Changes when a label of a column, or a name of a category, changes."""
    value = 0
    for column in columns:
        value = zlib.crc32("\x1f".join(map(str, column.categories)).encode(), value)
        value = zlib.crc32(np.ascontiguousarray(column.codes.astype(np.int32)).tobytes(), value)
    return f"{value:08x}"
