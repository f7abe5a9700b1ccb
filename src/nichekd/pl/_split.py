from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from nichekd._keys import Keys, Split
from nichekd._resolve import require, split_of
from nichekd.pl._figure import Grid, check_save, finish, legend_handles, place_legend, scale_bar, styled
from nichekd.pl._places import places, sections, table_to_draw
from nichekd.pl._tissue import Extent, dot_area, dots, frame, frames_of_test, outline_test

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

COLORS: Final = {Split.TRAIN: "#9db7d5", Split.TEST: "#e66100", Split.BUFFER: "#40004b"}


def split(
    data: AnnData | SpatialData,
    *,
    split_key: str = Keys.SPLIT,
    ax: Axes | None = None,
    table_key: str = "table",
    save: str | Path | None = None,
    dpi: float = 200,
) -> Figure:
    """Which cells train, which test, and which are left out between them.

    Parameters
    ----------
    data
        Cells with a split.
    split_key
        Column of ``obs`` with the split.
    ax
        Panel to draw in; a figure of its own for ``None``.
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
        If the split is missing.
    FileNotFoundError
        If the folder of ``save`` is missing.
    ValueError
        If there is no cell, the split holds other words than ``train``, ``test`` and ``buffer``, or ``obsm["spatial"]``
        is malformed; if ``save`` is a folder or ends in no format of figures.
    """
    import matplotlib.pyplot as plt

    check_save(save)
    adata = table_to_draw(data, table_key)
    require(adata, "obs", split_key, run="nk.pp.split")
    words = split_of(adata, split_key)
    everything = np.ones(adata.n_obs, dtype=bool)
    xy = places(data, adata, everything)
    extent = Extent.of(xy)
    counts = {word: int((words == word).sum()) for word in Split.ALL}
    entries = {f"{word}: {n:,} cells": COLORS[word] for word, n in counts.items() if n}
    with styled():
        plan = Grid.of(1, extent.aspect, n_entries=len(entries))
        own = ax is None
        if ax is None:
            _, ax = plt.subplots(figsize=plan.figsize(), layout="compressed")
        fig = ax.figure.figure  # the whole, also where the panel is in a part of one
        frame(ax, extent, title="Training and test cells")
        area = dot_area(xy, extent, plan.width if own else ax.get_window_extent().width / fig.dpi)
        for word, color in COLORS.items():
            dots(ax, xy[words == word], color, area, label=word)
        scale_bar(ax)
        outline_test(ax, frames_of_test(xy, words, sections(adata, everything)), label=False)
        if own:
            place_legend(fig, legend_handles(entries))
        else:
            ax.legend(handles=legend_handles(entries), loc="upper right")
        return finish(fig, save, dpi)
