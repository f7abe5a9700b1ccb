"""Nuclei that a user brings: shapes, labels, or a file of outlines, as polygons in pixels of the image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._frames import affine_to, apply, full_resolution, systems_of
from nichekd.pp._nuclei_blocks import Grid, outline_blocks
from nichekd.pp._tiles import ImageTiles

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd.pp._bare_image import BareImage

FILES = (".geojson", ".json", ".gz")
NUCLEUS_UM2 = (6.0, 2_000.0)  # median areas outside are no nuclei, nor cells: another unit, or regions of tissue


def brought_nuclei(
    sdata: SpatialData, bare: BareImage, shapes: GeoDataFrame | str | Path, *, n_jobs: int
) -> tuple[NDArray[np.object_], str]:
    """Polygons in pixels of the image's full resolution, (n,), and where they come from.

    Parameters
    ----------
    sdata
        Holds the element that ``shapes`` may name.
    bare
        The image.
    shapes
        Outlines in pixels of the image, the path of a GeoJSON with such, or a key of ``sdata.shapes`` or
        ``sdata.labels``.
    n_jobs
        Threads.

    Raises
    ------
    KeyError
        If there is no such element.
    FileNotFoundError
        If there is no such file.
    TypeError
        If ``shapes`` is nothing of the above.
    ValueError
        If there are no polygons, or some that are neither polygons nor circles; if they lie outside the image; if they
        are no nuclei by their size.
    """
    if isinstance(shapes, Path) or (isinstance(shapes, str) and _names_a_file(sdata, shapes)):
        from nichekd.io._geojson import read_polygons

        polygons, source = _polygons(read_polygons(shapes), str(shapes)), str(shapes)
    elif isinstance(shapes, str):
        polygons, source = _element(sdata, bare, shapes, n_jobs), f"element {shapes!r}"
    elif hasattr(shapes, "geometry"):
        polygons, source = _polygons(shapes, "shapes="), "shapes="
    else:
        raise TypeError(
            f"shapes= is a {type(shapes).__name__}; hand in a GeoDataFrame, the path of a GeoJSON, or the name of an "
            "element of the SpatialData."
        )
    _check(polygons, bare, source)
    return polygons, source


def _names_a_file(sdata: SpatialData, name: str) -> bool:
    return name not in sdata and (name.lower().endswith(FILES) or Path(name).is_file())


def _element(sdata: SpatialData, bare: BareImage, key: str, n_jobs: int) -> NDArray[np.object_]:
    import shapely

    if key not in sdata.shapes and key not in sdata.labels:
        raise KeyError(
            f"The SpatialData has no shapes or labels {key!r}; it has shapes {sorted(sdata.shapes)} and labels "
            f"{sorted(sdata.labels)}. Name one of them, or the path of a GeoJSON."
        )
    element = sdata[key]
    if bare.system not in systems_of(element):
        raise ValueError(
            f"Element {key!r} is in coordinate systems {systems_of(element)}, image {bare.image.key!r} in "
            f"{bare.system!r}. Give it a transformation there: spatialdata.transformations.set_transformation."
        )
    to_pixels = np.linalg.solve(bare.to_system, affine_to(element, bare.system, f"element {key!r}"))
    polygons = (
        _polygons(element, f"element {key!r}") if key in sdata.shapes else _outlined(element, bare, to_pixels, n_jobs)
    )
    return shapely.transform(polygons, lambda xy: apply(to_pixels, xy))


def _polygons(frame: GeoDataFrame, source: str) -> NDArray[np.object_]:
    """The largest part of each geometry; circles as polygons."""
    import shapely

    shapes = np.asarray(frame.geometry)
    if "radius" in frame and (shapely.get_type_id(shapes) == shapely.GeometryType.POINT).all():
        return shapely.buffer(shapes, frame["radius"].to_numpy(), quad_segs=4)
    kinds = shapely.get_type_id(shapes)
    wrong = ~np.isin(kinds, (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON))
    if wrong.any() or not len(shapes):
        what = sorted({str(it.geom_type) for it in shapes[wrong]})
        raise ValueError(
            f"{source} holds {len(shapes):,} geometries, of which {int(wrong.sum()):,} are no polygons ({what}). Outlines "
            "of nuclei are needed: buffer points by a radius, or export detections as polygons."
        )
    parts, owner = shapely.get_parts(shapes, return_index=True)
    by_size = np.lexsort((-shapely.area(parts), owner))
    _, first = np.unique(owner[by_size], return_index=True)
    return parts[by_size][first]


def _outlined(element: Any, bare: BareImage, to_pixels: NDArray[np.floating], n_jobs: int) -> NDArray[np.object_]:
    """Outlines of a label image, in its own pixels."""
    import dask.array as da

    level = full_resolution(element)
    if tuple(level.dims) != ("y", "x"):
        raise ValueError(f"The labels have dimensions {tuple(level.dims)}; they have to be ('y', 'x').")
    mpp = bare.image.mpp * float(np.sqrt(abs(np.linalg.det(to_pixels[:2, :2]))))
    grid = Grid(ImageTiles(da.asarray(level.data)[None]), mpp, 1.0, fill=0)
    return outline_blocks(grid, grid.blocks(), lambda labels: labels[0], n_jobs=n_jobs, progress="outline labels")


def _check(polygons: NDArray[np.object_], bare: BareImage, source: str) -> None:
    import shapely

    image = bare.image
    centroid = shapely.get_coordinates(shapely.centroid(polygons))
    outside = ~((centroid >= 0) & (centroid < image.size_px)).all(axis=1)
    if not len(polygons):
        raise ValueError(f"{source} holds no nuclei.")
    if outside.any():
        raise ValueError(
            f"{outside.sum():,} of {len(polygons):,} nuclei of {source} lie outside image {image.key!r} "
            f"({image.size_px[0]:,} × {image.size_px[1]:,} px): they reach from {centroid.min(axis=0).round().tolist()} to "
            f"{centroid.max(axis=0).round().tolist()}. They have to be in pixels of its full resolution."
        )
    area = float(np.median(shapely.area(polygons))) * image.mpp**2
    low, high = NUCLEUS_UM2
    if not low <= area <= high:
        raise ValueError(
            f"The outlines of {source} have a median area of {area:.3g} µm² at {image.mpp:.3g} µm per pixel; nuclei and "
            f"cells have {low:g} to {high:g}. Are they in µm (they have to be in pixels of the full resolution), or "
            "regions of tissue?"
        )
