from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from nichekd._keys import Keys
from nichekd._labels import REFERENCE, labels_of, natural_order, subset_mask
from nichekd._palette import shared_colors
from nichekd._resolve import require
from nichekd.pl._figure import check_save, count_of, finish, scale_bar, styled
from nichekd.pl._places import table_to_draw
from nichekd.pl._slide import crops_at
from nichekd.pl._titles import short_title_of

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd._image import CellImage

log = logging.getLogger(__name__)


def crops(
    data: SpatialData,
    *,
    key: str = Keys.NICHE,
    proba_key: str | None = None,
    n_crops: int = 6,
    subset: str | None = None,
    crop_px: int = 224,
    image_key: str | None = None,
    reference: str = REFERENCE,
    split_key: str = Keys.SPLIT,
    table_key: str = "table",
    save: str | Path | None = None,
    dpi: float = 200,
) -> Figure:
    """The crops the student is surest of, a row per niche: what a pathologist looks at first.

    Of each niche the cells with the highest probability, surest first; a cell nearer than a crop's width to one
    already taken is passed over, and so is one whose crop reaches beyond the slide, as long as there are others among
    the surest quarter of the niche.

    Parameters
    ----------
    data
        Cells with a student's predictions, and their slide.
    key
        Column of ``obs`` with the niches.
    proba_key
        Slot of ``obsm`` with their probabilities, (n, K), columns in the order of the categories of ``key``. Default:
        what the student of ``key`` wrote, ``"student_proba"`` of ``"niche"``, ``"old_proba"`` of ``"niche_old"``.
    n_crops
        Crops per niche; fewer where a niche has fewer cells.
    subset
        Cells of the ``"train"``, ``"test"`` or ``"buffer"`` part alone.
    crop_px
        Side of a crop in pixels of the image.
    image_key
        Image of the ``SpatialData``; may be left out where there is one.
    reference
        Column of ``obs`` whose colours the niches take on, where there is one.
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
    The figure. Writes ``uns["<key>_colors"]``.

    Raises
    ------
    KeyError
        If the niches, their probabilities, the image, or the split of a ``subset``, is missing.
    TypeError
        If ``data`` is an ``AnnData``, which has no slide.
    FileNotFoundError
        If the folder of ``save`` is missing.
    ValueError
        If the probabilities are not one column per niche, ``n_crops`` or ``crop_px`` is no whole number from 1 on, the
        crops take more than 1 GiB, or no cell is left; if ``save`` is a folder or ends in no format of figures.
    """
    from nichekd._image import get_image

    check_save(save)
    adata = table_to_draw(data, table_key)
    if adata is data:
        raise TypeError("data is an AnnData, and the crops are in the slide. Hand in the SpatialData of nk.io.paired.")
    n_crops, crop_px = count_of(n_crops, "n_crops"), count_of(crop_px, "crop_px")
    labels = labels_of(adata, key)
    proba = _sureness(adata, proba_key or Keys.student(key)[1], labels, key)
    mask = subset_mask(adata, subset, split_key=split_key)
    image = get_image(data, adata, image_key=image_key)
    chosen = {
        name: choose(np.flatnonzero(mask & (labels == name)), proba, image, n_crops, crop_px)
        for name in natural_order(labels.categories)
    }
    chosen = {name: cells for name, cells in chosen.items() if len(cells)}
    if not chosen:
        raise ValueError(f"None of the {mask.sum():,} cells of subset {subset!r} has a niche in obs[{key!r}].")
    if empty := [name for name in natural_order(labels.categories) if name not in chosen]:
        log.info("pl.crops: no cell of subset %r in the niches %s", subset, ", ".join(empty))
    colors = shared_colors(adata, [key], reference=reference)[key]
    pictures = crops_at(image, np.concatenate(list(chosen.values())), crop_px)
    return _gallery(pictures, chosen, proba, colors, n_crops, image.mpp, short_title_of(key), save, dpi)


def _sureness(adata: AnnData, proba_key: str, labels: pd.Categorical, key: str) -> NDArray[np.float64]:
    """Probability of each cell's own niche, (n,)."""
    proba = np.asarray(require(adata, "obsm", proba_key, run="nk.tl.distill or nk.tl.predict_niches"))
    if proba.ndim != 2 or proba.shape[1] != len(labels.categories):
        raise ValueError(
            f"obsm[{proba_key!r}] has shape {proba.shape}, and obs[{key!r}] has {len(labels.categories)} niches; "
            "there has to be a column per niche. Name the two of one method by key= and proba_key=."
        )
    own = proba[np.arange(len(proba)), labels.codes]
    return np.where(labels.codes >= 0, own, np.nan).astype(np.float64)


def choose(
    cells: NDArray[np.intp], proba: NDArray[np.float64], image: CellImage, n: int, crop_px: int
) -> NDArray[np.intp]:
    """The ``n`` of ``cells`` with the highest ``proba``, surest first, from as many spots of the slide as there are."""
    corner = image.centre_px - crop_px // 2
    within = np.all((corner >= 0) & (corner + crop_px <= np.array(image.size_px)), axis=1)
    ranked = cells[np.argsort(-proba[cells], kind="stable")]
    surest = ranked[: max(n, len(ranked) // 4)]
    surest = surest[within[surest]]
    taken: list[int] = []
    for candidates, apart in ((surest, crop_px), (surest, crop_px / 3), (ranked, 0)):
        for cell in candidates:
            if len(taken) == n:
                break
            gaps = np.abs(image.xy_px[taken] - image.xy_px[cell]).max(axis=1)
            if cell not in taken and (gaps >= apart).all():
                taken.append(int(cell))
    return np.array(sorted(taken, key=lambda cell: -proba[cell]), dtype=np.intp)


def _gallery(
    pictures: NDArray[np.uint8],
    chosen: dict[str, NDArray[np.intp]],
    proba: NDArray[np.float64],
    colors: dict[str, str],
    n_crops: int,
    mpp: float,
    method: str,
    save: str | Path | None,
    dpi: float,
) -> Figure:
    import matplotlib.pyplot as plt
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    pictured = iter(pictures)
    with styled():
        side = 1.15 if len(chosen) <= 12 else 0.85  # inches
        size = (side * n_crops + 0.5, side * len(chosen) + 0.35)
        tight = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
        fig, axes = plt.subplots(len(chosen), n_crops, figsize=size, layout=tight, squeeze=False)
        for line, (name, cells) in zip(axes, chosen.items(), strict=True):
            for ax, cell in zip(line, cells, strict=False):
                _crop(ax, next(pictured), colors[name], proba[cell])
            for ax in line[len(cells) :]:
                ax.set_axis_off()
            line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10, fontweight="bold", labelpad=6)
        scale_bar(axes[0, 0], um_per_unit=mpp, inside=True)
        fig.suptitle(f"{method}: the surest crops of each niche, with their probability", fontsize=9)
        return finish(fig, save, dpi)


def _crop(ax: Axes, picture: NDArray[np.uint8], color: str, proba: float) -> None:
    ax.imshow(picture)
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(color=color, linewidth=2.5)
    if np.isfinite(proba):
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1}
        ax.text(0.96, 0.95, f"{proba:.2f}", transform=ax.transAxes, ha="right", va="top", fontsize=6.5, bbox=box)
