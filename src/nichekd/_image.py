"""The H&E image of a ``SpatialData``, and where the cells are in it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._frames import apply, find_frame, full_resolution
from nichekd._image_notes import noted_mpp
from nichekd._resolve import centres_um
from nichekd._units import as_number, check_mpp, impossible_spacing, same_mpp, warn_if_pixels_of

if TYPE_CHECKING:
    import dask.array as da
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

MOST_UNEQUAL = 1.1  # width over height of a pixel in µm; more is no microscope's
WINDOWS, WINDOW = 8, 4  # the fingerprint looks at 8 × 8 windows of 4 × 4 px


@dataclass(frozen=True, eq=False)
class CellImage:
    """An image, and the cells in its own pixel frame.

    A pixel in column c covers x from c to c + 1, so that the pixel of a position is its floor.
    """

    key: str
    """Its name in ``sdata.images``."""
    pixels: da.Array
    """Full resolution, uint8, (3, y, x), lazy."""
    to_pixels: NDArray[np.floating]
    """(3, 3) affine that takes columns (x, y, 1) in µm to pixels; rotation and mirroring included."""
    mpp: float
    """µm per pixel, from that affine."""
    xy_px: NDArray[np.float64]
    """Cell centres in pixels, (n, 2): x, y."""

    @property
    def centre_px(self) -> NDArray[np.int64]:
        """Centre pixel of each cell, (n, 2): column, row."""
        return np.floor(self.xy_px).astype(np.int64)

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pixels.shape[2], self.pixels.shape[1]


def has_image(data: AnnData | SpatialData) -> bool:
    """Whether ``data`` is a ``SpatialData`` with at least one image."""
    return bool(getattr(data, "images", None))


def get_image(
    sdata: SpatialData, adata: AnnData, *, image_key: str | None = None, mpp: float | None = None
) -> CellImage:
    """Find the image, and the cells in it.

    Parameters
    ----------
    sdata
        Holds the image, and the element that the table annotates.
    adata
        The table, with centres in µm in ``obsm["spatial"]``.
    image_key
        Name of the image; ``None`` takes the only one, or the only one that is 8-bit RGB.
    mpp
        What the caller believes the image's µm per pixel to be; it is checked, never used instead.

    Returns
    -------
    The image at full resolution, with the cells' positions in it.

    Raises
    ------
    TypeError
        If ``sdata`` is no ``SpatialData``, or the image not 8-bit.
    KeyError
        If there is no image ``image_key``, or the annotated element is missing.
    ValueError
        If there is no image, or several and none named; if it is no RGB; if no usable transformation leads to it; if
        its µm per pixel is absurd or contradicts ``mpp`` or the file's metadata; if ``obsm["spatial"]`` is in pixels;
        if cells lie outside.

    Warns
    -----
    UserWarning
        If cells lie inside, but as far apart as if ``obsm["spatial"]`` were in pixels.
    """
    key = _image_key(sdata, image_key)
    pixels = _rgb(full_resolution(sdata.images[key]), key)
    xy = centres_um(adata, together=True)
    frame = find_frame(sdata, adata, key, xy)
    found = _mpp(frame.to_pixels, key)
    _check_against(found, key, asked=mpp, noted=noted_mpp(sdata, key))
    xy_px = apply(frame.to_pixels, xy)
    outside = ~_inside(xy_px, pixels)
    if outside.any():
        _report_outside(xy, frame.to_pixels, found, pixels, outside, key)
    if frame.problem is not None:
        raise ValueError(
            f"{frame.problem} Write the cells' centres in µm to obsm['spatial'], or correct the transformations."
        )
    _check_not_pixels(xy, found, key)
    return CellImage(key=key, pixels=pixels, to_pixels=frame.to_pixels, mpp=found, xy_px=xy_px)


def image_fingerprint(image: CellImage | da.Array | NDArray[np.uint8]) -> str:
    """Short hash that tells images apart: shape, dtype, and 64 small windows spread over the image.

    The same for the same pixels, however they are stored, chunked or transformed.

    Parameters
    ----------
    image
        The image, or its pixels, (3, y, x).

    Returns
    -------
    16 hexadecimal digits.
    """
    import dask

    pixels = image.pixels if isinstance(image, CellImage) else image
    _, height, width = pixels.shape
    starts = [[int((i + 0.5) / WINDOWS * max(size - WINDOW, 0)) for i in range(WINDOWS)] for size in (height, width)]
    windows = [pixels[:, y : y + WINDOW, x : x + WINDOW] for y in starts[0] for x in starts[1]]
    digest = hashlib.sha256(repr((tuple(map(int, pixels.shape)), str(pixels.dtype))).encode())
    for window in dask.compute(*windows):
        digest.update(np.ascontiguousarray(window).tobytes())
    return digest.hexdigest()[:16]


def _image_key(sdata: SpatialData, image_key: str | None) -> str:
    images = getattr(sdata, "images", None)
    if images is None:
        raise TypeError(f"A {type(sdata).__name__} has no image. Make a SpatialData: nk.io.paired(adata, image).")
    if image_key is not None:
        if image_key not in images:
            raise KeyError(f"The SpatialData has no image {image_key!r}; it has {sorted(images)}. Name one of them.")
        return image_key
    if not len(images):
        raise ValueError("The SpatialData has no image. Make one that has: nk.io.paired(adata, image).")
    if len(images) > 1:
        from nichekd._frames import full_resolution

        colour = [key for key in images if _is_colour(full_resolution(images[key]))]
        if len(colour) == 1:  # beside fluorescence, as a Xenium's
            return colour[0]
        raise ValueError(f"The SpatialData has {len(images)} images, {sorted(images)}. Name the H&E by image_key=.")
    return next(iter(images))


def _is_colour(level: Any) -> bool:
    return level.dtype == np.uint8 and level.sizes.get("c") in {3, 4}


def _rgb(level: Any, key: str) -> da.Array:
    from nichekd.io._read_image import as_rgb

    return as_rgb(level, f"Image {key!r}")


def _mpp(to_pixels: NDArray[np.floating], key: str) -> float:
    """µm per px: the side of the square with a pixel's area."""
    sides = 1 / np.linalg.svd(to_pixels[:2, :2], compute_uv=False)  # both sides of a pixel, µm
    mpp = check_mpp(float(np.sqrt(sides.prod())), f"By its transformation, image {key!r}")
    if sides.max() > MOST_UNEQUAL * sides.min():
        raise ValueError(
            f"By its transformation, a pixel of image {key!r} is {sides.min():.4g} × {sides.max():.4g} µm; crops need "
            "square ones. Resample the image, or correct the transformation."
        )
    return mpp


def _check_against(found: float, key: str, *, asked: float | None, noted: float | None) -> None:
    for other, what in ((asked, "mpp="), (noted, "its metadata")):
        if other is not None and not same_mpp(found, as_number(other, what)):
            raise ValueError(
                f"Image {key!r} has {found:.4g} µm per pixel by its transformation, but {other:.4g} by {what}. Set "
                "the transformation from its pixels to µm (spatialdata.transformations.set_transformation, or "
                "nk.io.paired(adata, image, mpp=...)); if obsm['spatial'] is in pixels, also "
                "adata.obsm['spatial'] *= mpp."
            )


def _inside(xy_px: NDArray[np.float64], pixels: da.Array) -> NDArray[np.bool_]:
    _, height, width = pixels.shape
    return np.all((xy_px >= 0) & (xy_px < (width, height)), axis=1)


def _report_outside(
    xy: NDArray[np.float64],
    to_pixels: NDArray[np.floating],
    mpp: float,
    pixels: da.Array,
    outside: NDArray[np.bool_],
    key: str,
) -> None:
    """Raise for cells outside the image; say so if it looks as if their positions were pixels."""
    _, height, width = pixels.shape
    where = f"{outside.sum():,} of {len(xy):,} cells lie outside image {key!r} ({width:,} × {height:,} px)"
    if mpp < 1 and _inside(apply(to_pixels, xy * mpp), pixels).mean() > max(0.99, 1 - outside.mean()):
        raise ValueError(
            f"{where}, but obsm['spatial'] times {mpp:.4g} lies inside: it seems to be in pixels, not µm. Convert it: "
            f"adata.obsm['spatial'] *= mpp, here {mpp:.6g}."
        )
    low, high = (apply(to_pixels, xy).min(axis=0), apply(to_pixels, xy).max(axis=0))
    raise ValueError(
        f"{where}: x runs from {low[0]:,.0f} to {high[0]:,.0f} px, y from {low[1]:,.0f} to {high[1]:,.0f} px. Drop "
        "these cells, or correct the image's transformation (mpp= or affine= of nk.io.paired)."
    )


def _check_not_pixels(xy: NDArray[np.float64], mpp: float, key: str) -> None:
    """Cells impossibly far apart: raise where the image is at exactly 1 µm per px, so that both are in pixels, or warn."""
    if abs(mpp - 1) >= 1e-6:
        warn_if_pixels_of(xy, mpp, key)
        return
    spacing = impossible_spacing(xy)
    if spacing is not None:
        raise ValueError(
            f"Image {key!r} has no µm per pixel (its transformation says 1), and nearest cells are a median "
            f"{spacing:.1f} apart, in tissue 5 to 15 µm: obsm['spatial'] seems to be in pixels, not µm. Convert it "
            "(adata.obsm['spatial'] *= mpp) and give the image its resolution (nk.io.paired(adata, image, mpp=mpp))."
        )
