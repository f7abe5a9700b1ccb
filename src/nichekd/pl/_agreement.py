from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from nichekd._keys import Keys
from nichekd._labels import REFERENCE, label_pairs, natural_order
from nichekd._matching import ari_nmi, contingency, match_by_overlap
from nichekd._resolve import get_table
from nichekd.pl._bars import bars
from nichekd.pl._figure import check_save, finish, styled
from nichekd.pl._titles import short_title_of, title_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from spatialdata import SpatialData

COLUMNS: Final = ("key", "ARI", "NMI")


def agreement(
    data: AnnData | SpatialData | pd.DataFrame,
    *,
    keys: Sequence[str] | str | None = None,
    reference: str = REFERENCE,
    subset: str | None = "test",
    split_key: str = Keys.SPLIT,
    table_key: str = "table",
    save: str | Path | None = None,
    dpi: float = 200,
) -> Figure:
    """How well the methods agree with the reference: confusion of matched niches, and bars of ARI and NMI.

    Parameters
    ----------
    data
        Cells with the labels of the methods and of the reference, or a table of :func:`nichekd.tl.agreement` or
        :func:`nichekd.tl.evaluate`: ``key``, ``ARI``, ``NMI`` and, if it has them, ``K`` (a row of panels each),
        ``ARI_sd`` and ``NMI_sd`` (error bars), and ``role``: rows that are a ``"floor"`` or a ``"ceiling"`` are drawn
        as lines across the bars of the others. Rows with the same ``key`` and ``K``, such as those of several seeds,
        become their mean ± sd. A table has no cells, so there is no confusion to show.
    keys
        Columns of ``obs``, or rows of the table, to show, in this order; as in :func:`nichekd.tl.agreement`.
    reference
        Column of ``obs`` with the reference's niches.
    subset
        ``"train"``, ``"test"`` or ``"buffer"``; all cells for ``None``. Not read for a table.
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
        If a column of the table or of ``obs``, a row of the table, or the split of a ``subset``, is missing.
    FileNotFoundError
        If the folder of ``save`` is missing.
    ValueError
        If the table is empty, ``subset`` has no cell, or a method and the reference label no cell in common; if
        ``save`` is a folder or ends in no format of figures.
    """
    import matplotlib.pyplot as plt

    check_save(save)
    confusions: dict[str, pd.DataFrame] = {}
    if isinstance(data, pd.DataFrame):
        table = _checked(data, keys)
    else:
        table, confusions = _compared(get_table(data, table_key), keys, reference, subset, split_key)
    n_facets = table["K"].nunique() if "K" in table else 1
    n_bars = table["key"].nunique()
    with styled():
        bars_in = n_facets * (0.26 * n_bars + 0.75)
        side = max(2.1, 0.125 * max((max(it.shape) for it in confusions.values()), default=0))
        size = max(7.0, len(confusions) * (side + 0.5) + 0.8), bars_in + (side + 0.8 if confusions else 0)
        fig = plt.figure(figsize=size, layout="constrained")
        if confusions:
            parts: Any = fig.subfigures(2, 1, height_ratios=[size[1] - bars_in, bars_in])
            above, below = parts
            axes = above.subplots(1, len(confusions), squeeze=False)[0]
            for ax, (key, counts) in zip(axes, confusions.items(), strict=True):
                drawn = _confusion(ax, counts, title_of(key), reference if ax is axes[0] else None)
            above.colorbar(drawn, ax=axes, label="share of the\nreference's niche", shrink=0.8, aspect=20, pad=0.01)
            bars(below, table)
        else:
            bars(fig, table)
        return finish(fig, save, dpi)


def _checked(table: pd.DataFrame, keys: Sequence[str] | str | None) -> pd.DataFrame:
    if missing := [name for name in COLUMNS if name not in table]:
        raise KeyError(
            f"The table has no column {missing}; it has {list(map(str, table.columns))}. "
            "Hand in the table of nk.tl.agreement or nk.tl.evaluate."
        )
    if keys is not None:
        wanted = [keys] if isinstance(keys, str) else list(keys)
        if unknown := [key for key in wanted if key not in set(table["key"])]:
            raise KeyError(f"The table has no row {unknown}; its keys are {list(table['key'].unique())}.")
        table = table[table["key"].isin(wanted)].sort_values("key", key=lambda it: it.map(wanted.index), kind="stable")
    table = table[table["ARI"].notna() | table["NMI"].notna()]  # the teacher has no agreement with itself
    if table.empty:
        raise ValueError("The table is empty. Run nk.tl.agreement or nk.tl.evaluate.")
    return table


def _compared(
    adata: AnnData, keys: Sequence[str] | str | None, reference: str, subset: str | None, split_key: str
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """ARI and NMI of each method, and its cells by niche of the reference and own niche, partners on the diagonal."""
    rows, confusions = [], {}
    for key, target, labels in label_pairs(adata, keys, reference=reference, subset=subset, split_key=split_key):
        ari, nmi = ari_nmi(target.codes, labels.codes)
        rows.append({"key": key, "ARI": ari, "NMI": nmi})
        confusions[key] = _on_diagonal(contingency(target, labels), target, labels)
    return pd.DataFrame(rows), confusions


def _on_diagonal(counts: NDArray[np.int64], target: pd.Categorical, labels: pd.Categorical) -> pd.DataFrame:
    table = pd.DataFrame(counts, index=list(target.categories), columns=list(labels.categories))
    rows, columns = match_by_overlap(counts)
    partner = {table.index[i]: table.columns[j] for i, j in zip(rows, columns, strict=True)}
    live = [name for name in natural_order(table.index) if table.loc[name].any()]
    alone = [name for name in natural_order(table.columns) if name not in partner.values() and table[name].any()]
    # an empty column stands for a missing partner, or the diagonal would shift
    return table.loc[live].reindex(columns=[partner.get(name, f"–{name}") for name in live] + alone)


def _confusion(ax: Axes, counts: pd.DataFrame, title: str, reference: str | None) -> object:
    shares = counts.div(counts.sum(axis=1), axis=0).to_numpy(dtype=float)
    drawn = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    many = max(counts.shape) > 12
    size = 6 if many else 7.5
    names = ["–" if name.startswith("–") else name for name in counts.columns]
    ax.set_xticks(range(counts.shape[1]), names, fontsize=size, rotation=90 if many else 0)
    ax.set_yticks(range(counts.shape[0]), counts.index, fontsize=size)
    ax.tick_params(length=0)
    ax.set_title(title)
    ax.set_xlabel("its niche")
    if reference is not None:
        ax.set_ylabel(f"{short_title_of(reference)}'s niche")
    return drawn
