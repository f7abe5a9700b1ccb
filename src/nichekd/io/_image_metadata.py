"""µm per pixel by an image file's own metadata."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from nichekd._units import MPP_RANGE

if TYPE_CHECKING:
    from tifffile import TiffFile

log = logging.getLogger(__name__)

UM_PER_UNIT = {
    **dict.fromkeys(("µm", "μm", "um", "micrometer", "micron", "microns"), 1.0),
    **dict.fromkeys(("nm", "nanometer"), 1e-3),
    **dict.fromkeys(("mm", "millimeter"), 1e3),
    **dict.fromkeys(("cm", "centimeter"), 1e4),
    **dict.fromkeys(("m", "meter"), 1e6),
    **dict.fromkeys(("in", "inch"), 25_400.0),
}


def tiff_mpp(tiff: TiffFile, series: int) -> float | None:
    """µm per px of a TIFF's series, by its OME header, its Aperio header, or its resolution tags; else ``None``.

    Resolution tags are believed only where they say something a microscope could have said: most writers put
    72 dpi into them, which is 353 µm.
    """
    for source in (_ome_mpp, _aperio_mpp, _tag_mpp):
        sides = source(tiff, series)
        if sides is not None and all(math.isfinite(side) and side > 0 for side in sides):  # some say 0 for unknown
            return _mean_side(*sides)
    return None


def _mean_side(x: float, y: float) -> float:
    if not math.isclose(x, y, rel_tol=0.02):
        log.warning("The image's metadata give pixels of %.4g × %.4g µm; their mean is taken", x, y)
    return math.sqrt(x * y)


def _ome_mpp(tiff: TiffFile, series: int) -> tuple[float, float] | None:
    if not tiff.is_ome or not tiff.ome_metadata:
        return None
    pixels = [e for e in ElementTree.fromstring(tiff.ome_metadata).iter() if e.tag.endswith("}Pixels")]
    if not pixels:
        return None
    found = pixels[min(series, len(pixels) - 1)].attrib
    if "PhysicalSizeX" not in found:
        return None
    return tuple(  # type: ignore[return-value]
        float(found.get(f"PhysicalSize{axis}", found["PhysicalSizeX"]))
        * UM_PER_UNIT.get(found.get(f"PhysicalSize{axis}Unit", "µm"), math.nan)
        for axis in "XY"
    )


def _aperio_mpp(tiff: TiffFile, series: int) -> tuple[float, float] | None:
    if not tiff.is_svs:
        return None
    for field in tiff.pages.first.description.split("|"):
        name, _, value = field.partition("=")
        if name.strip() == "MPP":
            return float(value), float(value)
    return None


def _tag_mpp(tiff: TiffFile, series: int) -> tuple[float, float] | None:
    tags = tiff.series[series].keyframe.tags
    unit = {2: "inch", 3: "centimeter"}.get(int(tags["ResolutionUnit"].value)) if "ResolutionUnit" in tags else None
    if unit is None or "XResolution" not in tags or "YResolution" not in tags:
        return None
    per_unit = [numerator / denominator for numerator, denominator in _rationals(tags)]
    if min(per_unit) <= 0:
        return None
    x, y = (UM_PER_UNIT[unit] / n for n in per_unit)
    return (x, y) if MPP_RANGE[0] <= math.sqrt(x * y) <= MPP_RANGE[1] else None


def _rationals(tags: Any) -> list[tuple[int, int]]:
    """Both resolution tags as (numerator, denominator), denominators never 0."""
    values = [tags[f"{axis}Resolution"].value for axis in "XY"]
    return [(numerator, denominator) if denominator else (0, 1) for numerator, denominator in values]


def ome_zarr_mpp(multiscale: dict[str, Any]) -> float | None:
    """µm per px of the first level of an OME-Zarr's ``multiscales`` entry; ``None`` where the axes have no unit."""
    axes = multiscale["axes"]
    scales = [t["scale"] for t in multiscale["datasets"][0]["coordinateTransformations"] if t["type"] == "scale"]
    outer = [t["scale"] for t in multiscale.get("coordinateTransformations", []) if t["type"] == "scale"]
    sides = {}
    for i, axis in enumerate(axes):
        if axis["name"] in {"x", "y"} and axis.get("unit") in UM_PER_UNIT and scales:
            factor = math.prod(scale[i] for scale in (*scales, *outer))
            sides[axis["name"]] = factor * UM_PER_UNIT[axis["unit"]]
    return _mean_side(sides["x"], sides["y"]) if len(sides) == 2 else None
