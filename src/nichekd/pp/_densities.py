"""How densely each cell's crop is stained, in red, green and blue: what a scanner or a laboratory changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nichekd.pp._plan import make_reader

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nichekd._image import CellImage
    from nichekd.pp._stain import Stain

DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)  # of 8-bit light; a black pixel has one too
STEP = 4  # every fourth pixel each way tells a mean


def mean_densities(
    image: CellImage, *, crop_px: int, mpp: float | None, stain: Stain | None = None
) -> NDArray[np.float32]:
    """Mean optical density of each cell's crop, (n, 3), natural logarithm.

    Parameters
    ----------
    image
        The image with the cells in it.
    crop_px, mpp, stain
        Of the crops, as :func:`nichekd.pp.histology_features` takes them.
    """
    reader = make_reader(image, crop_px, mpp, stain)
    found = np.empty((len(reader.centre_px), 3), dtype=np.float32)
    for cells, crops in reader.batches(reader.order()):
        found[cells] = DENSITY[crops[..., ::STEP, ::STEP]].mean(axis=(2, 3))
    return found
