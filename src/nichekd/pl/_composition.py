from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nichekd._keys import Keys
from nichekd._labels import REFERENCE, labels_of, natural_order, niche_keys, subset_mask
from nichekd._matching import contingency, match_by_composition
from nichekd._palette import shared_colors
from nichekd.pl._figure import check_save, finish, styled
from nichekd.pl._places import table_to_draw
from nichekd.pl._titles import title_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from numpy.typing import NDArray
    from spatialdata import SpatialData


def composition(
    data: AnnData | SpatialData,
    *,
    cell_type_key: str,
    keys: Sequence[str] | str | None = None,
    reference: str = REFERENCE,
    subset: str | None = None,
    split_key: str = Keys.SPLIT,
    table_key: str = "table",
    save: str | Path | None = None,
    dpi: float = 200,
) -> Figure:
    """What cell types the niches are made of: the reference's, and beside them their partners in each method.

    Partners are those of :func:`nichekd.tl.composition_divergence`; the Jensen-Shannon divergence of each pair, in
    bits, stands at the end of its row. Niches without a partner come last, and leave the other side's row empty.

    Parameters
    ----------
    data
        Cells with types and with the niches of the reference and of the methods.
    cell_type_key
        Column of ``obs`` with cell types; cells without one are left out.
    keys
        Columns of ``obs`` to set beside the reference; as in :func:`nichekd.tl.agreement`.
    reference
        Column of ``obs`` with the reference's niches.
    subset
        ``"train"``, ``"test"`` or ``"buffer"``; all cells for ``None``.
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
    The figure. Writes ``uns["<key>_colors"]`` of the columns shown.

    Raises
    ------
    KeyError
        If a column, or the split of a ``subset``, is missing, or no method has been run.
    FileNotFoundError
        If the folder of ``save`` is missing.
    ValueError
        If ``subset`` has no cell, or no cell has a type and a niche of a method and of the reference; if ``save`` is a
        folder or ends in no format of figures.
    """
    check_save(save)
    adata = table_to_draw(data, table_key)
    types = labels_of(adata, cell_type_key, run="your cell typing")
    target = labels_of(adata, reference)
    shown = niche_keys(adata, keys, reference=reference)
    colors = shared_colors(adata, [reference, *shown], reference=reference)
    mask = subset_mask(adata, subset, split_key=split_key) & (types.codes >= 0)
    blocks = [_block(adata, reference, target, types, mask)]
    blocks += [_matched(blocks[0], _block(adata, key, labels_of(adata, key), types, mask)) for key in shown]
    n_rows = max(len(block.names) for block in blocks)
    kinds = np.flatnonzero(sum(np.nan_to_num(block.shares).sum(axis=0) for block in blocks))
    # types in the order of the niche they are most of: large shares fall on a diagonal
    kinds = kinds[np.argsort(np.argmax(np.nan_to_num(blocks[0].shares[:, kinds]), axis=0), kind="stable")]
    with styled():
        fig, axes = _panels(len(blocks), n_rows, len(kinds))
        for ax, block in zip(axes, blocks, strict=True):
            drawn = _heatmap(ax, block, [types.categories[i] for i in kinds], kinds, n_rows, colors[block.key])
        where = "" if subset is None else f" ({subset} cells)"
        bar = fig.colorbar(drawn, ax=axes, label=f"share of the niche's cells{where}", shrink=0.7, aspect=25, pad=0.015)
        bar.outline.set_visible(False)
        return finish(fig, save, dpi)


@dataclass(frozen=True)
class _Block:
    """Rows of one panel: ``names`` (missing where a row stays empty), shares (n_rows, n_types), divergences."""

    key: str
    names: list[str | None]
    counts: NDArray[np.int64]
    jsd: NDArray[np.float64] | None = None

    @property
    def shares(self) -> NDArray[np.float64]:
        total = self.counts.sum(axis=1, keepdims=True)
        return np.divide(self.counts, total, out=np.full(self.counts.shape, np.nan), where=total > 0)


def _block(adata: AnnData, key: str, labels: pd.Categorical, types: pd.Categorical, mask: NDArray[np.bool_]) -> _Block:
    counts = contingency(labels[mask], types[mask])
    if not counts.any():
        raise ValueError(
            f"No cell shown has both a niche in obs[{key!r}] and a cell type; {mask.sum():,} of {adata.n_obs:,} cells "
            "are shown and have a type. Choose another subset=, cell_type_key= or keys=."
        )
    names = [name for name in natural_order(labels.categories) if counts[labels.categories.get_loc(name)].any()]
    return _Block(key, list(names), counts[[labels.categories.get_loc(name) for name in names]])


def _matched(reference: _Block, block: _Block) -> _Block:
    """``block`` with its rows beside their partners, those without one below."""
    rows, columns, jsd = match_by_composition(reference.counts, block.counts)
    partner = dict(zip(rows, columns, strict=True))
    alone = [j for j in range(len(block.names)) if j not in set(columns)]
    n = len(reference.names)
    names = [block.names[partner[i]] if i in partner else None for i in range(n)] + [block.names[j] for j in alone]
    counts = np.zeros((len(names), block.counts.shape[1]), dtype=np.int64)
    counts[rows] = block.counts[columns]
    counts[n:] = block.counts[alone]
    divergence = np.full(len(names), np.nan)
    divergence[rows] = jsd
    return _Block(block.key, names, counts, divergence)


def _panels(n: int, n_rows: int, n_types: int) -> tuple[Figure, list[Axes]]:
    import matplotlib.pyplot as plt

    width, height = 0.22 * n_types + 0.9, 0.22 * n_rows + 1.5
    fig, axes = plt.subplots(1, n, figsize=(n * width + 0.7, height), layout="constrained", squeeze=False)
    return fig, list(axes[0])


def _heatmap(
    ax: Axes, block: _Block, types: Sequence[str], kinds: NDArray[np.intp], n_rows: int, colors: Mapping[str, str]
) -> AxesImage:
    from matplotlib.transforms import ScaledTranslation

    shares = np.full((n_rows, len(kinds)), np.nan)
    shares[: len(block.names)] = block.shares[:, kinds]
    drawn = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    ax.set_title(title_of(block.key).replace(" (", "\n("))
    rows = [i for i, name in enumerate(block.names) if name is not None]
    names = [str(block.names[i]) for i in rows]
    ax.set_yticks(rows, names)
    ax.set_xticks(range(len(types)), types, rotation=90)
    ax.tick_params(length=0)
    ax.tick_params(axis="y", pad=13)
    ax.spines[:].set_visible(False)
    # x in points left of the panel, y in rows
    beside = ax.get_yaxis_transform() + ScaledTranslation(-7 / 72, 0, ax.figure.dpi_scale_trans)
    chips = [colors[name] for name in names]
    ax.scatter(np.zeros(len(rows)), rows, c=chips, s=30, marker="s", transform=beside, clip_on=False)
    ax.set_xlim(-0.5, len(kinds) - 0.5)
    if block.jsd is not None:
        there = np.flatnonzero(np.isfinite(block.jsd))
        right = ax.secondary_yaxis("right")
        right.set_yticks(there, [f"{value:.2f}" for value in block.jsd[there]])
        right.tick_params(length=0, labelsize=6.5, labelcolor="#555555")
        right.spines[:].set_visible(False)
        ax.text(1.02, 1.0, "JSD", transform=ax.transAxes, fontsize=6.5, color="#555555", va="bottom")
    return drawn
