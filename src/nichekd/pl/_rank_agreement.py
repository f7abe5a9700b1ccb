from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from nichekd._keys import Keys
from nichekd._labels import subset_mask
from nichekd._resolve import get_table
from nichekd._seeds import check_seed
from nichekd._triplets import FEWEST, default_subset, draw_triplets, gaps, order_agreement, representation, unit_rows
from nichekd.pl._figure import INK, check_save, finish, styled

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from spatialdata import SpatialData

COLUMNS: Final = ("a", "scale", "agreement")
CHANCE: Final = 0.5
N_BINS: Final = 10
FEWEST_ROWS: Final = 4  # there is room for: two bars alone would be as thick as a fist
COLORS: Final = ("#9db7d5", "#e08a4a", "#6f9d76", "#8f78a8", "#c6a44a", "#7f7f7f")


def rank_agreement(
    data: AnnData | SpatialData | pd.DataFrame,
    *,
    a: str | Sequence[str] | None = None,
    b: str = Keys.SMOOTHED,
    n_triplets: int = 100_000,
    subset: str | None = "auto",
    split_key: str = Keys.SPLIT,
    seed: int = 0,
    table_key: str = "table",
    save: str | Path | None = None,
    dpi: float = 200,
) -> Figure:
    """How often image features agree with gene expression on which of two cells is more like a third.

    Parameters
    ----------
    data
        A table of :func:`nichekd.tl.rank_agreement`, several of them one below the other if you like: rows with the
        same representation and scale, such as those of several slides or seeds, become their mean, with each row as a
        dot. Or cells: then a second panel shows the agreement by how much the expression tells the two cells apart.
    a
        Representations to show, in this order; default those of the table. Cells need it.
    b
        The one whose order they should have. Not read for a table.
    n_triplets
        Triplets drawn of the cells. Not read for a table.
    subset
        ``"train"``, ``"test"`` or ``"buffer"``; all cells for ``None``; ``"auto"``: the test cells where there is a
        split. Not read for a table.
    split_key
        Column of ``obs`` with the split.
    seed
        Of the triplets.
    table_key
        Table of a ``SpatialData``.
    save
        File to write, in a folder that there is. Its ending names the format, such as ``.png`` or ``.pdf``; a path
        without one is refused.
    dpi
        Dots per inch of that file.

    Returns
    -------
    The figure; the line at ½ is chance.

    Raises
    ------
    KeyError
        If a column or row of the table, or a representation, is missing.
    TypeError
        If ``data`` are cells, and ``a`` is not given.
    FileNotFoundError
        If the folder of ``save`` is missing.
    ValueError
        If the table is empty, or there are fewer than 4 cells; if ``save`` is a folder or ends in no format of figures.
    """
    import matplotlib.pyplot as plt

    check_save(save)
    check_seed(seed)
    keys = None if a is None else [a] if isinstance(a, str) else list(a)
    curves: dict[str, NDArray[np.float64]] = {}
    if isinstance(data, pd.DataFrame):
        table = _checked(data, keys)
    else:
        if keys is None:
            raise TypeError("a= is missing: name the representations to show, e.g. a=['X_uni2', 'X_rank_by_gene'].")
        adata = get_table(data, table_key)
        mask = subset_mask(adata, default_subset(adata, subset, split_key), split_key=split_key)
        table, curves = _compared(adata, keys, b, np.flatnonzero(mask), n_triplets, seed)
    groups = list(table.groupby("scale", sort=False))
    with styled():
        height = 0.45 + 0.3 * table["a"].nunique() * len(groups)
        columns = 2 if curves else 1
        fig, axes = plt.subplots(
            1, columns, figsize=(3.9 * columns, max(1.9 if not curves else 2.6, height)), layout="constrained",
            squeeze=False,
        )  # fmt: skip
        names = list(dict.fromkeys(table["a"]))
        colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(names)}
        _bars(axes[0, 0], groups, colors)
        if curves:
            _curves(axes[0, 1], curves, colors)
        return finish(fig, save, dpi)


def _checked(table: pd.DataFrame, keys: list[str] | None) -> pd.DataFrame:
    if missing := [name for name in COLUMNS if name not in table]:
        raise KeyError(
            f"The table has no column {missing}; it has {list(map(str, table.columns))}. Hand in that of "
            "nk.tl.rank_agreement."
        )
    if keys is not None:
        if unknown := [key for key in keys if key not in set(table["a"])]:
            raise KeyError(f"The table has no row {unknown}; its representations are {list(table['a'].unique())}.")
        table = table[table["a"].isin(keys)].sort_values("a", key=lambda it: it.map(keys.index), kind="stable")
    if table.empty:
        raise ValueError("The table is empty. Run nk.tl.rank_agreement.")
    return table


def _compared(
    adata: AnnData, keys: list[str], b: str, cells: NDArray[np.intp], n_triplets: int, seed: int
) -> tuple[pd.DataFrame, dict[str, NDArray[np.float64]]]:
    """Agreement of each representation, and its agreement by tenths of the gap of ``b``, narrow to wide."""
    if len(cells) < FEWEST:
        raise ValueError(f"{len(cells)} cells; an order of similarity needs {FEWEST}. Choose another subset=.")
    triplets = draw_triplets(len(cells), n_triplets, np.random.default_rng(seed))
    wide = gaps(unit_rows(representation(adata, b, cells)), triplets)
    tenth = np.minimum(np.argsort(np.argsort(np.abs(wide))) * N_BINS // len(wide), N_BINS - 1)
    rows, curves = [], {}
    for key in keys:
        found = gaps(unit_rows(representation(adata, key, cells)), triplets)
        rows.append({"a": key, "scale": "slide", "agreement": order_agreement(found, wide)[0]})
        curves[key] = np.array([order_agreement(found[tenth == i], wide[tenth == i])[0] for i in range(N_BINS)])
    return pd.DataFrame(rows), curves


def _bars(ax: Axes, groups: list[tuple[object, pd.DataFrame]], colors: dict[str, str]) -> None:
    position, ticks, labels = 0.0, [], []
    for scale, rows in groups:
        for name, values in rows.groupby("a", sort=False)["agreement"]:
            ax.barh(position, values.mean() - CHANCE, left=CHANCE, height=0.7, color=colors[str(name)])
            if len(values) > 1:
                ax.plot(values, np.full(len(values), position), "o", ms=2.5, color=INK, alpha=0.6, mew=0)
            ax.text(max(values.max(), CHANCE) + 0.005, position, f"{values.mean():.3f}", va="center", fontsize=7)
            ticks.append(position)
            labels.append(str(name).removeprefix("X_") + (f", {scale}" if len(groups) > 1 else ""))
            position += 1
        position += 0.5
    ax.axvline(CHANCE, color=INK, linewidth=0.8)
    ax.set_yticks(ticks, labels)
    middle, half = (position - 1.5) / 2, max(position - 0.5, FEWEST_ROWS) / 2 + 0.1
    ax.set_ylim(middle + half, middle - half)
    low, high = ax.get_xlim()
    ax.set_xlim(min(low, CHANCE - 0.01), high + 0.12 * (high - low))
    ax.set_xlabel("share of triplets in the genes' order")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)


def _curves(ax: Axes, curves: dict[str, NDArray[np.float64]], colors: dict[str, str]) -> None:
    x = (np.arange(N_BINS) + 0.5) * 100 / N_BINS
    for name, values in curves.items():
        ax.plot(x, values, "o-", color=colors[name], ms=3.5, linewidth=1.4, label=name.removeprefix("X_"))
    ax.axhline(CHANCE, color=INK, linewidth=0.8)
    ax.set_xlabel("how far apart the genes put the two cells, percentile")
    ax.set_ylabel("share in the genes' order")
    ax.set_xlim(0, 100)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="upper left")
