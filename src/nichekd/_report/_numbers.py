"""What the report counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nichekd._keys import Keys
from nichekd._labels import labels_of
from nichekd._palette import MISSING, colors_of
from nichekd._resolve import centres_um
from nichekd._units import nearest_distances

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

TISSUE_SPACINGS = 3  # tissue is what lies within as many median distances between nearest cells
LONE_UM = 10.0  # that distance, where there is one cell
MOST_POINTS = 2_000_000  # of the grid that areas are counted on
NO_NICHE = "no niche"


def niche_table(adata: AnnData, key: str = Keys.NICHE) -> pd.DataFrame:
    """A row per niche, and one for the cells without, where there are some.

    Returns
    -------
    ``niche``, ``color``, ``n_cells``, ``share`` of all cells, ``mm2`` of the tissue whose nearest cell is of the niche,
    ``confidence``, the mean of the cells' highest probabilities, and ``ood``, the share of cells with a score over 1;
    NaN where there is no cell, or no score.
    """
    import pandas as pd

    labels = labels_of(adata, key)
    proba = np.asarray(adata.obsm[Keys.student(key)[1]]).max(axis=1)
    score = (
        adata.obs[Keys.ood(key)].to_numpy(dtype=float) if Keys.ood(key) in adata.obs else np.full(len(proba), np.nan)
    )
    n = len(labels.categories)
    code = np.where(labels.codes < 0, n, labels.codes)
    n_cells = np.bincount(code, minlength=n + 1)
    with np.errstate(invalid="ignore"):  # of niches without a cell
        confidence = np.bincount(code, weights=proba, minlength=n + 1) / n_cells
        ood = np.bincount(code, weights=np.where(np.isnan(score), np.nan, score > 1), minlength=n + 1) / n_cells
    table = pd.DataFrame(
        {
            "niche": [*labels.categories, NO_NICHE],
            "color": [*colors_of(adata, key).values(), MISSING],
            "n_cells": n_cells,
            "share": n_cells / len(code),
            "mm2": areas(centres_um(adata), code, n + 1),
            "confidence": confidence,
            "ood": ood,
        }
    )
    return table if n_cells[-1] else table.iloc[:-1]


def areas(xy: NDArray[np.float64], code: NDArray[np.integer], n: int) -> NDArray[np.float64]:
    """Tissue whose nearest cell has each code, (n,), mm².

    Counted on a grid as wide as cells are apart. Tissue is what lies within three median distances of nearest cells.

    Parameters
    ----------
    xy
        Centres, (n_cells, 2), µm.
    code
        0 to n - 1, (n_cells,).
    n
        Number of codes.
    """
    from scipy.spatial import cKDTree

    spacing = float(np.median(nearest_distances(xy))) if len(xy) > 1 else LONE_UM
    reach = TISSUE_SPACINGS * spacing
    low, high = xy.min(axis=0) - reach, xy.max(axis=0) + reach
    step = max(spacing / 2, float(np.sqrt(np.prod(high - low) / MOST_POINTS)))
    xs, ys = (np.arange(start + step / 2, stop, step) for start, stop in zip(low, high, strict=True))
    tree, counts = cKDTree(xy), np.zeros(n)
    rows = max(1, 200_000 // len(xs))
    for first in range(0, len(ys), rows):
        points = np.stack(np.meshgrid(xs, ys[first : first + rows]), axis=-1).reshape(-1, 2)
        _, nearest = tree.query(points, distance_upper_bound=reach)
        counts += np.bincount(code[nearest[nearest < len(xy)]], minlength=n)
    return counts * step**2 / 1e6
