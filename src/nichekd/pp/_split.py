from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nichekd._added import check_split_column
from nichekd._image import get_image, has_image
from nichekd._keys import Keys, Split
from nichekd._record import record
from nichekd._resolve import get_table, working_copy
from nichekd._units import check_mpp, warn_if_pixels
from nichekd.pp._before_split import warn_of_older
from nichekd.pp._libraries import centres_by_library
from nichekd.pp._overlap import nearest_px, warn_of_wider_features

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

log = logging.getLogger(__name__)


def split(
    data: AnnData | SpatialData,
    *,
    n_strips: int = 4,
    test_strip: int = 1,
    crop_px: int = 224,
    mpp: float | None = None,
    image_key: str | None = None,
    library_key: str | None = None,
    key_added: str = Keys.SPLIT,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Split the cells into training and test strips with disjoint image crops.

    The tissue (the range of the cells' y) is cut into strips of equal height; one is test, the rest train. Cells whose
    centre lies within ``crop_px`` / 2 image pixels of a boundary between the two are ``buffer``, and take part in
    nothing. That no training crop then overlaps a test crop is checked on the crops' pixels. In an image that is
    turned against the strips it does not follow from the rule; the buffer is widened until it holds.

    Parameters
    ----------
    data
        Cells with centres in µm.
    n_strips
        Number of strips.
    test_strip
        The one to test on; 0 is the top, the smallest y.
    crop_px
        Side of the image crops in pixels of the image; 0 if there won't be any, which leaves no buffer. For crops
        that are resampled (``mpp=`` of ``nk.pp.histology_features``), the side before resampling.
    mpp
        µm per pixel, for data without an image; with one, it has to agree with the image's.
    image_key
        Name of the image, if there are several.
    library_key
        Column of ``obs`` that tells sections apart, each of which is cut into strips of its own. Without an image,
        every section has coordinates of its own; with one, they lie on it together.
    key_added
        Column to write; an earlier split there is replaced, and by its default name whatever is there.
    table_key
        Table of a ``SpatialData``.
    copy
        Leave ``data`` as it is and return a new object.

    Returns
    -------
    ``None``, or the new object for ``copy=True``. Writes ``obs[key_added]``, categorical, ``train`` / ``test`` /
    ``buffer``; and in ``uns["nichekd"]["split"]`` among others ``buffer_um``, the buffer's width on either side of a
    boundary, and ``min_distance_px``, the smallest distance (in rows or columns, whichever is larger) between the
    centre pixels of a training and a test crop: crops are disjoint if it is at least ``crop_px``.

    Raises
    ------
    KeyError
        If the table, the image, ``obsm["spatial"]`` or ``library_key`` is missing.
    TypeError
        If ``n_strips``, ``test_strip`` or ``crop_px`` is not a whole number, or ``key_added`` no string.
    ValueError
        If there are fewer than two strips, or no such strip; if crops are asked for and µm per pixel is not known; if
        no training or no test cell is left; if a cell has no section; if ``key_added`` is a name that no file can hold or
        another function's, or is none of its own and holds what this function did not write; or whatever is wrong with the
        centres or the image.

    Warns
    -----
    UserWarning
        If centres seem to be in pixels and there is no image to check them against; if there is a neighborhood graph,
        which does not know of the new split, or a network that was trained before it; if there are image features that
        see more of the image than the split leaves between training and test cells.

    Examples
    --------
    >>> import numpy as np
    >>> import nichekd as nk
    >>> from anndata import AnnData
    >>> cells = AnnData(obsm={"spatial": np.column_stack([np.zeros(9), np.arange(9.0)])})
    >>> nk.pp.split(cells, n_strips=2, test_strip=1, crop_px=2, mpp=1.0)
    >>> cells.obs["split"].tolist()
    ['train', 'train', 'train', 'buffer', 'buffer', 'buffer', 'test', 'test', 'test']
    """
    start = time.perf_counter()
    n_strips, test_strip, crop_px = _whole(n_strips=n_strips, test_strip=test_strip, crop_px=crop_px)
    if n_strips < 2 or not 0 <= test_strip < n_strips or crop_px < 0:
        raise ValueError(
            f"n_strips={n_strips}, test_strip={test_strip}, crop_px={crop_px}: there have to be at least 2 strips, the "
            "test strip is one of 0 ... n_strips - 1, and crops are not negative."
        )
    data = working_copy(data, copy)
    adata = get_table(data, table_key)
    check_split_column(data, adata, key_added, library_key=library_key)
    xy, library = centres_by_library(adata, library_key)
    centre_px, mpp = _centre_px(data, adata, xy, library, crop_px, mpp, image_key)
    is_test, distance_um, boundaries = _strips(xy[:, 1], library, n_strips, test_strip)
    labels, buffer_um, min_distance_px = _label(is_test, distance_um, centre_px, crop_px, mpp)

    warn_of_older(adata, labels, key_added)
    if min_distance_px is not None and mpp is not None:
        warn_of_wider_features(adata, room_um=min_distance_px * mpp, mpp=mpp)
    adata.obs[key_added] = pd.Categorical(labels, categories=list(Split.ALL))
    counts = {name: int(np.count_nonzero(labels == name)) for name in Split.ALL}
    record(
        adata,
        "split",
        seconds=time.perf_counter() - start,
        n_strips=n_strips,
        test_strip=test_strip,
        crop_px=crop_px,
        mpp=mpp,
        library_key=library_key,
        key_added=key_added,
        boundaries_um=boundaries,
        buffer_um=buffer_um,
        min_distance_px=min_distance_px,
        **{f"n_{name}": n for name, n in counts.items()},
    )
    log.info("split: %s", ", ".join(f"{n:,} {name}" for name, n in counts.items()))
    if min_distance_px is not None:
        log.info(
            "Train and test crops are disjoint: their centres are at least %d px apart, crops are %d px wide",
            min_distance_px,
            crop_px,
        )
    return data if copy else None


def _whole(**numbers: int) -> list[int]:
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)):
            raise TypeError(f"{name}={number!r} has to be a whole number.")
    return [int(number) for number in numbers.values()]


def _centre_px(
    data: AnnData | SpatialData,
    adata: AnnData,
    xy: NDArray[np.float64],
    library: NDArray[np.int64],
    crop_px: int,
    mpp: float | None,
    image_key: str | None,
) -> tuple[NDArray[np.int64], float | None]:
    """Centre pixel of each cell's crop, (n, 2), and µm per pixel; (0, 2) and ``None`` where no crops are asked for."""
    if not has_image(data) and not library.any():
        warn_if_pixels(xy)
    if crop_px == 0:
        return np.empty((0, 2), dtype=np.int64), mpp
    if has_image(data) or image_key is not None:
        image = get_image(data, adata, image_key=image_key, mpp=mpp)
        return image.centre_px, image.mpp
    if mpp is None:
        raise ValueError(
            f"Crops of {crop_px} px need the image's µm per pixel, and there is no image. Hand in mpp=, or a "
            "SpatialData with the image (nk.io.paired); or crop_px=0 if no crops will be made."
        )
    centre_px = np.floor(xy / check_mpp(mpp, "mpp=")).astype(np.int64)
    centre_px[:, 0] += library * (np.ptp(centre_px[:, 0]) + crop_px) if len(xy) else 0  # images of their own: far apart
    return centre_px, float(mpp)


def _strips(
    y: NDArray[np.float64], library: NDArray[np.int64], n_strips: int, test_strip: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    """Who is in the test strip, (n,), how far from its nearest boundary, (n,), and the boundaries, µm.

    Boundaries with training strips: one or two, (b,), or as many of each library, (libraries, b).
    """
    if not len(y):
        raise ValueError("The table has no cells, so there is nothing to split. Run nk.pp.segment_nuclei, or check it.")
    inner = [i for i in (test_strip, test_strip + 1) if 0 < i < n_strips]
    is_test, boundaries = np.zeros(len(y), dtype=bool), []
    for one in range(library.max() + 1):
        here = y[library == one]
        low, high = float(here.min()), float(here.max())
        if not high > low:
            section = " of a section" if library.any() else ""
            raise ValueError(f"All {len(here):,} cells{section} have y = {low:g} µm: there are no strips to cut.")
        edges = np.linspace(low, high, n_strips + 1)
        strip = np.clip(np.searchsorted(edges, here, side="right") - 1, 0, n_strips - 1)
        is_test[library == one] = strip == test_strip
        boundaries.append(edges[inner])
    of_all = np.array(boundaries)
    distance = np.abs(y[:, None] - of_all[library]).min(axis=1)
    return is_test, distance, of_all[0] if len(of_all) == 1 else of_all


def _label(
    is_test: NDArray[np.bool_],
    distance_um: NDArray[np.float64],
    centre_px: NDArray[np.int64],
    crop_px: int,
    mpp: float | None,
) -> tuple[NDArray[np.str_], float, float | None]:
    """Labels (n,) with the narrowest buffer that keeps crops disjoint, its half-width in µm, and the proof in px.

    Two windows [c - s/2, c + s/2) are disjoint if and only if their centres differ by at least s in rows or columns.
    """
    labels = np.where(is_test, Split.TEST, Split.TRAIN).astype("<U6")
    if crop_px == 0 or mpp is None:
        _require_both(labels, 0.0)
        return labels, 0.0, None
    buffer_um = crop_px / 2 * mpp
    while True:
        labels[distance_um <= buffer_um] = Split.BUFFER
        _require_both(labels, buffer_um)
        distance_px = nearest_px(centre_px[labels == Split.TRAIN], centre_px[labels == Split.TEST])
        if distance_px >= crop_px:
            return labels, buffer_um, distance_px
        log.info("Crops overlap by %d px across a buffer of %.1f µm: it is widened", crop_px - distance_px, buffer_um)
        buffer_um += max(1.0, (crop_px - distance_px) / 4) * mpp


def _require_both(labels: NDArray[np.str_], buffer_um: float) -> None:
    for side in (Split.TRAIN, Split.TEST):
        if not (labels == side).any():
            raise ValueError(
                f"No {side} cell is left (the buffer is {buffer_um:.1f} µm wide on either side of a boundary). Choose "
                "fewer strips (n_strips=), another test_strip=, or smaller crops (crop_px=)."
            )
