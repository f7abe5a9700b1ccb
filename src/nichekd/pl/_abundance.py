from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._abundance import Abundance, abundance_of, both_abundances, pearson
from nichekd._keys import Keys
from nichekd._labels import subset_mask
from nichekd._resolve import centres_um
from nichekd._sections import library_names
from nichekd.pl._figure import BAR_IN, check_save, finish, scale_bar, styled
from nichekd.pl._places import table_to_draw
from nichekd.pl._tissue import Extent, dot_area, dots, frame

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from spatialdata import SpatialData

MOST = 6  # types that are shown unasked
PANEL_IN = 2.3  # width of a map
WIDE = 0.5  # height over width of a strip


def abundance(
    data: AnnData | SpatialData,
    *,
    prediction: str = Keys.ABUNDANCE,
    truth: str | None = None,
    types: Sequence[str] | str | None = None,
    subset: str | None = None,
    library_key: str | None = None,
    library: str | None = None,
    split_key: str = Keys.SPLIT,
    table_key: str = "table",
    save: str | Path | None = None,
    dpi: float = 200,
) -> Figure:
    """Maps of predicted abundances of each type, and beside them the true ones.

    Both maps of a type share their colours, from 0 to the 99th percentile of the truth (of the prediction, where there
    is none). Beside the prediction's name stands its correlation with the truth over the cells shown.

    Parameters
    ----------
    data
        Cells or spots with abundances and centres in µm.
    prediction, truth
        ``obsm`` keys; no truth is shown for ``None``.
    types
        To show, in this order; the six that there is most of if left out.
    subset
        Show the ``"train"``, ``"test"`` or ``"buffer"`` cells alone.
    library_key, library
        Column of ``obs`` that tells slides apart, and the one to show; may be left out where there is one.
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
    The figure.

    Raises
    ------
    KeyError
        If a key, a type, or the split of a ``subset`` is missing.
    FileNotFoundError
        If the folder of ``save`` is missing.
    ValueError
        If truth and prediction are of other types, several libraries are there and none is named, or no cell is left;
        if ``save`` is a folder or ends in no format of figures.
    """
    import matplotlib.pyplot as plt

    check_save(save)
    adata = table_to_draw(data, table_key)
    rows = _rows(adata, prediction, truth)
    mask = subset_mask(adata, subset, split_key=split_key) & _of_library(adata, library_key, library)
    if not mask.any():
        raise ValueError(f"No cell of subset {subset!r} is in library {library!r}. Choose another of either.")
    cells = np.flatnonzero(mask)
    shown = _types(rows[0][1], types, cells)
    xy = centres_um(adata[cells])  # of one slide: places repeat on others
    extent = Extent.of(xy)
    wide = extent.aspect < WIDE  # a strip: its maps go below each other, a type a row
    nrows, ncols = (len(shown), len(rows)) if wide else (len(rows), len(shown))
    width = PANEL_IN * (1.8 if wide else 1.0)
    with styled():
        fig, axes = plt.subplots(
            nrows,
            ncols,
            figsize=(
                ncols * width + 0.6 * (1 if wide else ncols),
                nrows * (width * extent.aspect + 0.3) + 0.1 + BAR_IN,
            ),
            layout="constrained",
            squeeze=False,
        )
        maps = axes.T if wide else axes  # (truth and prediction, types)
        area = dot_area(xy, extent, width)
        for column, kind in enumerate(shown):
            values = [table.values[cells, table.types.index(kind)] for _, table in rows]
            highest = float(values[0].max())
            top = max(float(np.percentile(values[0], 99)), highest / 10, 1e-30)
            for row, (name, _) in enumerate(rows):
                note = f" (r = {_correlation(*values):.2f})" if row else ""
                frame(maps[row, column], extent, title=f"{kind}, {name}{note}")
                points = _map(maps[row, column], xy, values[row], area, top)
            last = maps[-1, column] if wide else maps[:, column]
            bar = fig.colorbar(points, ax=last, shrink=0.8 if wide else 0.6, aspect=12 if wide else 40, pad=0.01)
            bar.outline.set_visible(False)
            if wide or column == len(shown) - 1:
                bar.set_label("abundance")
        scale_bar(axes[0, 0])
        return finish(fig, save, dpi)


def _rows(adata: AnnData, prediction: str, truth: str | None) -> list[tuple[str, Abundance]]:
    """What is drawn below each other, the truth first."""
    if truth is None:
        return [("predicted", abundance_of(adata, prediction, run="nk.tl.predict_abundance"))]
    true, predicted = both_abundances(adata, truth, prediction)
    return [("true", true), ("predicted", predicted)]


def _of_library(adata: AnnData, library_key: str | None, library: str | None) -> NDArray[np.bool_]:
    if library_key is None:
        if library is not None:
            raise ValueError(f"library={library!r} without library_key=; name the column of obs it is in.")
        return np.ones(adata.n_obs, dtype=bool)
    names = library_names(adata, library_key)
    there = sorted(set(names))
    if library is None:
        if len(there) > 1:
            raise ValueError(f"obs[{library_key!r}] has {there}; a map shows one of them: name it by library=.")
        library = there[0]
    if library not in there:
        raise KeyError(f"obs[{library_key!r}] has no {library!r}; it has {there}.")
    return names == library


def _types(table: Abundance, types: Sequence[str] | str | None, cells: NDArray[np.intp]) -> list[str]:
    if types is None:
        order = np.argsort(-table.values[cells].sum(axis=0), kind="stable")[:MOST]
        return [table.types[i] for i in order]
    shown = [types] if isinstance(types, str) else list(types)
    if unknown := [name for name in shown if name not in table.types]:
        raise KeyError(f"There is no type {unknown}; there are {list(table.types)}.")
    if not shown:
        raise ValueError("types=[]: name at least one type, or leave types out.")
    return shown


def _correlation(true: NDArray[np.float64], predicted: NDArray[np.float64]) -> float:
    return float(pearson(true[:, None], predicted[:, None])[0])


def _map(ax: Axes, xy: NDArray[np.float64], values: NDArray[np.float64], area: float, top: float) -> Any:
    order = np.argsort(values, kind="stable")  # where there is much on top
    return dots(ax, xy[order], values[order], area, cmap="magma_r", vmin=0, vmax=top)
