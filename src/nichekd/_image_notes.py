"""What is kept of an image besides its pixels: SpatialData keeps no attributes of an image itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nichekd._frames import affine_to, full_resolution, systems_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd._image import CellImage

ATTRS = "nichekd_images"  # sdata.attrs[ATTRS][image key]


def note_image(sdata: SpatialData, image_key: str, *, mpp: float, source: str, like: str | None = None) -> None:
    """Keep an image's µm per pixel and where it comes from, for :func:`nichekd._image.get_image` to check.

    And how large it is and where it lies, by which :func:`to_slide` finds the pixels of the file again when it was cut;
    of a smaller copy of image ``like``, how large that is.
    """
    known = sdata.attrs.setdefault(ATTRS, {})
    element = sdata.images[image_key]
    level = full_resolution(element)
    slide = {
        "size_px": [int(level.sizes["x"]), int(level.sizes["y"])],
        "to": {system: affine_to(element, system, f"image {image_key!r}").tolist() for system in systems_of(element)},
    }
    known[image_key] = {"mpp": float(mpp), "source": source, "slide": known.get(like, {}).get("slide", slide)}


def noted_mpp(sdata: SpatialData, image_key: str) -> float | None:
    """µm per pixel that :func:`note_image` kept, or ``None``."""
    noted = sdata.attrs.get(ATTRS, {}).get(image_key)
    return None if noted is None else float(noted["mpp"])


def to_slide(sdata: SpatialData, image: CellImage) -> NDArray[np.float64]:
    """(3, 3) affine of the image's pixels to those of the file that it was read from, of which it may be a part.

    Cutting, as ``spatialdata.bounding_box_query`` does, leaves an image in its place and makes it smaller. An image of
    the noted size is whole, wherever it was moved to since; of one without a note, nothing else is known.
    """
    slide = sdata.attrs.get(ATTRS, {}).get(image.key, {}).get("slide")
    if slide is None or tuple(slide["size_px"]) == image.size_px:
        return np.eye(3)
    element = sdata.images[image.key]
    for system in systems_of(element):
        if system in slide["to"]:
            here = affine_to(element, system, f"image {image.key!r}")
            return np.asarray(np.linalg.solve(np.asarray(slide["to"][system], dtype=np.float64), here))
    raise ValueError(
        f"Image {image.key!r} is a part of {slide['size_px'][0]:,} × {slide['size_px'][1]:,} px, and in none of the "
        f"coordinate systems {sorted(slide['to'])} any more that tell which. Keep one when you cut it."
    )
