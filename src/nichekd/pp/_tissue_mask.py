"""Where a slide holds tissue, at a few µm per pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import dask.array as da
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd._image import CellImage

COARSE_UM = 8.0  # µm per pixel at most: nuclei are gone, thin strands are not
COLOURED = (0.05, 0.15)  # difference of optical densities between which tissue begins, whatever Otsu says
SMALLEST_UM2 = 2_500.0  # pieces of tissue below are dust
MARGIN_UM = 16.0  # nuclei at the edge belong to it


class TissueMask(NamedTuple):
    """Tissue on a coarse grid over the image."""

    mask: NDArray[np.bool_]  # (rows, columns)
    step: tuple[float, float]  # pixels of the full resolution in a row, and in a column
    mpp: float  # µm per pixel of the mask

    @property
    def area_um2(self) -> float:
        """Tissue."""
        return float(self.mask.sum()) * self.mpp**2

    def at(self, xy_px: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether positions, (n, 2), in pixels of the full resolution, are in tissue."""
        row = np.clip(xy_px[:, 1] // self.step[0], 0, self.mask.shape[0] - 1).astype(np.int64)
        column = np.clip(xy_px[:, 0] // self.step[1], 0, self.mask.shape[1] - 1).astype(np.int64)
        return self.mask[row, column]

    def share(self, top: float, bottom: float, left: float, right: float) -> float:
        """How much of a box, in pixels of the full resolution, is tissue."""
        rows = _between(top / self.step[0], bottom / self.step[0], self.mask.shape[0])
        columns = _between(left / self.step[1], right / self.step[1], self.mask.shape[1])
        return float(self.mask[rows, columns].mean())


def _between(start: float, stop: float, size: int) -> slice:
    first = min(int(start), size - 1)  # the last pixel may reach a little further than the grid
    return slice(first, max(first + 1, min(int(np.ceil(stop)), size)))


def tissue_mask(sdata: SpatialData, image: CellImage, *, n_jobs: int = 1) -> TissueMask:
    """Find tissue by its colour: what absorbs one colour more than another.

    The difference between a pixel's largest and smallest optical density is 0 for glass under any lamp. Its threshold
    is Otsu's :cite:`Otsu1979`, kept between fixed ones, for a slide may be all tissue or all glass.

    Parameters
    ----------
    sdata
        Holds the image; a coarse level of it is read where there is one.
    image
        The image.
    n_jobs
        Threads.

    Raises
    ------
    ValueError
        If there is no tissue.
    """
    from scipy import ndimage as ndi
    from skimage.filters import threshold_otsu

    pixels, step = _coarse(sdata, image, n_jobs)
    mpp = image.mpp * float(np.sqrt(step[0] * step[1]))
    density = -np.log(np.maximum(pixels, 1) / 255)  # (3, y, x)
    colour = ndi.gaussian_filter(density.max(axis=0) - density.min(axis=0), 1.0)
    low, high = COLOURED
    otsu = float(threshold_otsu(colour)) if np.ptp(colour) > 0 else low
    pieces, n_pieces = ndi.label(colour > np.clip(otsu, low, high), np.ones((3, 3)))
    large = np.bincount(pieces.ravel()) * mpp**2 >= min(SMALLEST_UM2, 0.1 * colour.size * mpp**2)
    large[0] = False
    mask = large[pieces]
    if not mask.any():
        raise ValueError(
            f"Image {image.key!r} shows no tissue: at {mpp:.1f} µm per pixel its colours differ by an optical density of "
            f"{colour.max():.2f} at most, and tissue begins at {low}. Is it the H&E, and not a mask or a label of the "
            "slide? Name another by image_key=; nuclei found elsewhere come in by shapes=."
        )
    mask = ndi.binary_dilation(mask, iterations=max(1, round(MARGIN_UM / mpp)))
    return TissueMask(mask, step, mpp)


def _coarse(sdata: SpatialData, image: CellImage, n_jobs: int) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Mean colours (3, y, x) on a grid of at most ``COARSE_UM``, and its step in pixels of the full resolution."""
    import dask.array as da

    level = _level(sdata, image, COARSE_UM / image.mpp)
    _, height, width = level.shape
    wanted = COARSE_UM / image.mpp * width / image.pixels.shape[2]
    # a power of two: chunks are its multiples, and none has to be cut
    factor = min(2 ** int(np.log2(max(wanted, 1))), height, width)
    if factor > 1:
        level = da.coarsen(np.mean, level, {1: factor, 2: factor}, trim_excess=True)
    pixels = np.asarray(level.astype(np.float32).compute(num_workers=n_jobs))
    return pixels, (factor * image.pixels.shape[1] / height, factor * image.pixels.shape[2] / width)


def _level(sdata: SpatialData, image: CellImage, wanted: float) -> da.Array:
    """The coarsest level, (3, y, x), with at most ``wanted`` pixels of the full resolution in one of its own."""
    import dask.array as da

    best = image.pixels
    for node in getattr(sdata.images[image.key], "children", {}).values():
        array = next(iter(node.data_vars.values()))
        if array.dims != ("c", "y", "x") or array.shape[0] < 3 or array.dtype != np.uint8:
            continue  # the full resolution was brought into this form for us
        if array.shape[2] < best.shape[2] and image.pixels.shape[2] / array.shape[2] <= wanted:
            best = da.asarray(array.data)[:3]
    return best
