"""An image that has no cells yet, and the µm that its nuclei will be in."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nichekd._frames import affine_to, full_resolution, systems_of
from nichekd._image import CellImage, _check_against, _image_key, _mpp, _rgb
from nichekd._image_notes import noted_mpp
from nichekd._units import check_mpp, same_mpp

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData


class BareImage(NamedTuple):
    """An image, and frames."""

    image: CellImage
    """Without cells."""
    to_um: NDArray[np.float64]
    """(3, 3) affine of its pixels to µm."""
    system: str
    """Coordinate system that it is in."""
    to_system: NDArray[np.float64]
    """(3, 3) affine of its pixels to that."""


def bare_image(sdata: SpatialData, *, image_key: str | None = None, mpp: float | None = None) -> BareImage:
    """Find an image that no table has to go with.

    Parameters
    ----------
    sdata
        Holds the image.
    image_key
        Its name; ``None`` takes the only one.
    mpp
        µm per pixel, for an image whose transformation leads to something else than µm; checked against what is known.

    Raises
    ------
    TypeError
        If ``sdata`` is no ``SpatialData``, or the image not 8-bit.
    KeyError
        If there is no image ``image_key``.
    ValueError
        If there is no image, or several and none named; if it is no RGB; if its µm per pixel is unknown, absurd, or
        contradicts ``mpp``.
    """
    key = _image_key(sdata, image_key)
    element = sdata.images[key]
    pixels = _rgb(full_resolution(element), key)
    system = systems_of(element)[0]
    to_system = to_um = affine_to(element, system, f"image {key!r}")
    side = float(np.sqrt(abs(np.linalg.det(to_system[:2, :2]))))
    noted = noted_mpp(sdata, key)
    if mpp is not None and noted is None and not same_mpp(side, mpp):
        to_um = np.diag([check_mpp(mpp, "mpp="), mpp, 1.0])
    elif mpp is None and noted is None and np.isclose(side, 1.0):
        raise ValueError(
            f"Image {key!r} does not say its µm per pixel: its transformation leaves pixels as they are. Hand it in by "
            "mpp=, or open the slide by nk.io.slide(path, mpp=...)."
        )
    found = _mpp(np.linalg.inv(to_um), key)
    _check_against(found, key, asked=mpp, noted=noted)
    image = CellImage(key=key, pixels=pixels, to_pixels=np.linalg.inv(to_um), mpp=found, xy_px=np.empty((0, 2)))
    return BareImage(image, to_um, system, to_system)
