from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nichekd._abundance import Abundance, abundance_of, both_abundances, libraries_of
from nichekd._keys import Keys
from nichekd._labels import subset_mask
from nichekd._moran import morans_r, weights_among
from nichekd.pl._figure import check_save, finish, styled
from nichekd.pl._places import table_to_draw

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from numpy.typing import NDArray
    from spatialdata import SpatialData


def colocalization(
    data: AnnData | SpatialData,
    *,
    prediction: str = Keys.ABUNDANCE,
    truth: str | None = None,
    subset: str | None = None,
    library_key: str | None = None,
    split_key: str = Keys.SPLIT,
    table_key: str = "table",
    save: str | Path | None = None,
    dpi: float = 200,
) -> Figure:
    """Bivariate Moran's R of all pairs of types as heatmaps: the true abundances', and the predicted ones'.

    Types are in one order, in which those found near each other lie side by side; see
    :func:`nichekd.tl.colocalization` for what R is. The Spearman correlation of both over the pairs stands above.

    Parameters
    ----------
    data
        Cells or spots with abundances and a spatial graph.
    prediction, truth
        ``obsm`` keys; the prediction alone is shown without a truth.
    subset
        Look at the ``"train"``, ``"test"`` or ``"buffer"`` cells alone.
    library_key
        Column of ``obs`` that tells slides apart; R is the mean over them.
    split_key
        Column of ``obs`` with the split, read only if ``subset`` is given.
    table_key
        Table of a ``SpatialData``.
    save
        File to write, in a folder that there is. Its ending names the format, such as ``.png`` or ``.pdf``; a path
        without one is refused.
    dpi
        Dots per inch of that file.

    Returns
    -------
    The figure. Pairs with a constant type are grey.

    Raises
    ------
    KeyError
        If abundances, graph, column, or the split of a ``subset`` is missing.
    FileNotFoundError
        If the folder of ``save`` is missing.
    ValueError
        If truth and prediction are of other types, ``subset`` has no cell, or no cell looked at has a neighbor; if
        ``save`` is a folder or ends in no format of figures.
    """
    import matplotlib.pyplot as plt

    check_save(save)
    adata = table_to_draw(data, table_key)
    mask = subset_mask(adata, subset, split_key=split_key)
    panels: dict[str, Abundance] = {}
    if truth is None:
        panels["predicted"] = abundance_of(adata, prediction, run="nk.tl.predict_abundance")
    else:
        panels["true"], panels["predicted"] = both_abundances(adata, truth, prediction)
    found = {name: _mean_r(adata, table, library_key, mask) for name, table in panels.items()}
    first = next(iter(found.values()))
    order, types = _order(first), panels["predicted"].types
    off = ~np.eye(len(types), dtype=bool)
    top = max(np.nanmax(np.abs(r[off]), initial=0) for r in found.values()) or 1.0
    side = 0.2 * len(types) + 1.1
    with styled():
        size = (len(found) * (side - 0.3) + 1.6, side + 0.8)
        fig, axes = plt.subplots(1, len(found), figsize=size, layout="constrained", squeeze=False)
        for ax, (name, r) in zip(axes[0], found.items(), strict=True):
            title = f"{name} abundances"
            if name == "predicted" and len(found) > 1:
                title += f"\nSpearman over pairs {_spearman(first, r):.2f}"
            drawn = _heatmap(ax, r[np.ix_(order, order)], [types[i] for i in order], title, top, names=ax is axes[0, 0])
        bar = fig.colorbar(drawn, ax=axes[0], label="bivariate Moran's R", shrink=0.7, aspect=25, pad=0.01)
        bar.outline.set_visible(False)
        return finish(fig, save, dpi)


def _mean_r(adata: AnnData, table: Abundance, library_key: str | None, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(K, K); NaN where a type is constant on a slide."""
    slides = libraries_of(adata, library_key, mask)
    return np.mean([morans_r(weights_among(adata, cells), table.values[cells]) for _, cells in slides], axis=0)


def _order(r: NDArray[np.float64]) -> NDArray[np.intp]:
    """Of the types, by average linkage of R; constant ones last."""
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    usable = np.flatnonzero(np.isfinite(np.diag(r)))
    last = np.setdiff1d(np.arange(len(r)), usable)
    if len(usable) < 3:
        return np.concatenate([usable, last])
    part = r[np.ix_(usable, usable)]
    distance = part.max() - part
    np.fill_diagonal(distance, 0)
    condensed = squareform(distance, checks=False)
    leaves = leaves_list(optimal_leaf_ordering(linkage(condensed, "average"), condensed))
    return np.concatenate([usable[leaves], last])


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    from scipy.stats import spearmanr

    pairs = np.triu_indices(len(a), k=1)
    both = np.isfinite(a[pairs]) & np.isfinite(b[pairs])
    return float(spearmanr(a[pairs][both], b[pairs][both]).statistic) if both.sum() > 2 else float("nan")


def _heatmap(ax: Axes, r: NDArray[np.float64], types: list[str], title: str, top: float, *, names: bool) -> AxesImage:
    from matplotlib import colormaps

    shown = r.copy()
    np.fill_diagonal(shown, np.nan)  # a type with itself is no pair
    cmap = colormaps["RdBu_r"].with_extremes(bad="#d3d3d3")
    drawn = ax.imshow(shown, cmap=cmap, vmin=-top, vmax=top, interpolation="nearest")
    ax.set_xticks(range(len(types)), types, rotation=90)
    ax.set_yticks(range(len(types)), types if names else [""] * len(types))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(title)
    return drawn
