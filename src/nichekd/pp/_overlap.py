"""Whether what is seen of training cells may be seen of test cells, too."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._keys import Keys
from nichekd._record import notes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from numpy.typing import NDArray

    from nichekd._image import CellImage


def warn_if_crops_overlap(adata: AnnData, image: CellImage, *, side_px: float, mpp: float, stacklevel: int = 3) -> None:
    """Warn where the split leaves less room between training and test cells than their crops take.

    Parameters
    ----------
    adata
        The table, with what :func:`nichekd.pp.split` noted, if it ran.
    image
        The image.
    side_px, mpp
        Side of the tissue that is seen of a cell, in pixels of so many µm.
    stacklevel
        Of the warning.
    """
    split = notes(adata).get("split", {})
    if split.get("min_distance_px") is None or split.get("mpp") is None:
        return
    room_um, seen_um = float(split["min_distance_px"]) * float(split["mpp"]), side_px * mpp
    if seen_um <= room_um + mpp / 2:
        return
    warnings.warn(
        f"Of each cell {seen_um:.0f} µm of the image are seen, and the split leaves {room_um:.0f} µm between training and test "
        "cells: some of the same tissue is in both. Before this, run "
        f"nk.pp.split(sdata, crop_px={math.ceil(seen_um / image.mpp)}).",
        UserWarning,
        stacklevel=stacklevel,
    )


def seen_um(about: Mapping[str, Any]) -> float | None:
    """Side of the tissue that features are of, µm, by their record; ``None`` where it does not tell."""
    if "crop_px" not in about or "mpp" not in about:
        return None
    return (int(about["crop_px"]) + int(about.get("stride_px") or 0)) * float(about["mpp"])


def warn_of_wider_features(adata: AnnData, *, room_um: float, mpp: float) -> None:
    """Warn where features that are there already see more than a new split leaves between training and test cells."""
    known = {key: seen_um(about) for key, about in notes(adata).get(Keys.FEATURES, {}).items() if key in adata.obsm}
    wider = {key: seen for key, seen in known.items() if seen is not None and seen > room_um + mpp / 2}
    if wider:
        shown = ", ".join(f"obsm[{key!r}] {seen:.0f} µm" for key, seen in wider.items())
        warnings.warn(
            f"Features see more of the image than the {room_um:.0f} µm that this split leaves between training and test "
            f"cells: {shown}. So that none sees tissue of both, split by crop_px={math.ceil(max(wider.values()) / mpp)}.",
            UserWarning,
            stacklevel=3,
        )


def nearest_px(train: NDArray[np.int64], test: NDArray[np.int64]) -> float:
    """Smallest distance between a training and a test centre, the larger of rows and columns, px."""
    from scipy.spatial import cKDTree

    distance, _ = cKDTree(train).query(test, p=np.inf, workers=-1)
    return float(distance.min())
