"""From cell centres in µm to pixels of an image, through SpatialData's transformations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

SAMPLE = 1_000  # cells whose shape is looked up to tell in which frame their centres are
PATCH = 32  # cells of a label image, next to each other: they share a chunk or two
FAR_UM = 100.0  # median distance between centres and shapes that no registration error explains


class Frame(NamedTuple):
    """Where the centres of a table live."""

    to_pixels: NDArray[np.floating]  # (3, 3), columns (x, y, 1) in µm → px
    problem: str | None  # a sentence, where the centres are nowhere near the shapes that they belong to


def find_frame(sdata: SpatialData, adata: AnnData, image_key: str, xy: NDArray[np.float64]) -> Frame:
    """The frame of ``obsm["spatial"]``, and its affine to an image's full resolution.

    The table annotates an element; the element has a transformation to a coordinate system, and so has the image.
    Which frame ``obsm["spatial"]`` is in is written nowhere: the element's own (circles in µm), a coordinate system
    (polygons in pixels, scaled to µm), or another element's (Xenium: labels in pixels beside polygons in µm). It is
    told by where the cells' shapes are.

    Parameters
    ----------
    sdata
        Holds the image and the element.
    adata
        The table.
    image_key
        The image.
    xy
        Centres, (n, 2), µm.

    Returns
    -------
    The affine, and whether the centres fit the shapes.

    Raises
    ------
    KeyError
        If the annotated element is not there.
    ValueError
        If the table annotates no element or several, its instances are not in it, or no chain of invertible
        transformations leads from it to the image.
    """
    region, instances = annotated(sdata, adata)
    image, element = sdata.images[image_key], sdata[region]
    systems = _shared_systems(image, element, image_key, region)
    image_to = {cs: affine_to(image, cs, f"image {image_key!r}") for cs in systems}
    element_to = {cs: affine_to(element, cs, f"element {region!r}") for cs in systems_of(element)}
    cs = systems[0]
    chains = [np.linalg.solve(image_to[name], element_to[name]) for name in systems]
    if any(not np.allclose(chains[0], other, rtol=1e-3, atol=1e-2) for other in chains[1:]):
        raise ValueError(
            f"The coordinate systems {systems} place image {image_key!r} differently on element {region!r}. Remove the "
            "wrong one: spatialdata.transformations.remove_transformation(sdata[...], to_coordinate_system=...)."
        )

    frames = {f"element {region!r}": element_to[cs]}
    frames |= {f"coordinate system {name!r}": element_to[cs] @ np.linalg.inv(m) for name, m in element_to.items()}
    for name, shapes in sdata.shapes.items():
        if name != region and cs in systems_of(shapes):
            frames[f"element {name!r}"] = affine_to(shapes, cs, f"element {name!r}")
    places = _places(element, instances, region, xy)
    distances = {name: places.distance(np.linalg.solve(element_to[cs], m)) for name, m in frames.items()}
    best = min(frames, key=lambda name: distances[name])  # ties go to the element's own frame, the first
    problem = None
    if distances[best] > FAR_UM:
        problem = (
            f"obsm['spatial'] does not fit the cells of element {region!r} in any frame ({', '.join(frames)}): "
            f"it is a median {distances[best]:,.0f} away from them."
        )
    return Frame(np.linalg.solve(image_to[cs], frames[best]), problem)


def annotated(sdata: SpatialData, adata: AnnData) -> tuple[str, NDArray[Any]]:
    """The element that a table annotates, and the instance of each cell in it.

    Raises
    ------
    KeyError
        If that element is not in ``sdata``.
    ValueError
        If the table annotates no element, or more than one.
    """
    way_on = "Tell it: sdata.set_table_annotates_spatialelement, or make the object with nk.io.paired."
    attributes = adata.uns.get("spatialdata_attrs")
    if attributes is None:
        raise ValueError(f"The table annotates no element, so its cells have no place in the image. {way_on}")
    regions = sorted(set(adata.obs[attributes["region_key"]].astype(str)))
    if len(regions) != 1:
        raise ValueError(
            f"The table annotates {len(regions)} elements, {regions[:10]}. Take one section at a time: "
            "sdata.filter_by_coordinate_system, or a table each. If you wrote an annotation to "
            f"obs[{attributes['region_key']!r}]: SpatialData keeps each cell's element there; give yours another name."
        )
    if regions[0] not in sdata:
        raise KeyError(
            f"The table annotates element {regions[0]!r}, which the SpatialData lacks; it has "
            f"{sorted([*sdata.shapes, *sdata.labels, *sdata.points])}. {way_on}"
        )
    return regions[0], adata.obs[attributes["instance_key"]].to_numpy()


def element_to_pixels(sdata: SpatialData, name: str, image_key: str) -> NDArray[np.float64]:
    """(3, 3) affine of element ``name``'s own frame to an image's full resolution.

    Raises
    ------
    ValueError
        If no chain of invertible transformations leads from one to the other.
    """
    image, element = sdata.images[image_key], sdata[name]
    system = _shared_systems(image, element, image_key, name)[0]
    of_image = affine_to(image, system, f"image {image_key!r}")
    return np.asarray(np.linalg.solve(of_image, affine_to(element, system, f"element {name!r}")), dtype=np.float64)


def systems_of(element: Any) -> list[str]:
    """Coordinate systems of an element, ``global`` first."""
    from spatialdata.transformations import get_transformation

    names = get_transformation(element, get_all=True)
    return sorted(names, key=lambda name: (name != "global", name))


def _shared_systems(image: Any, element: Any, image_key: str, region: str) -> list[str]:
    of_image, of_element = systems_of(image), systems_of(element)
    shared = [name for name in of_image if name in of_element]
    if not shared:
        raise ValueError(
            f"No transformation leads from the cells to the image: image {image_key!r} is in coordinate systems "
            f"{of_image}, element {region!r} in {of_element}. Give the image one that takes its pixels to µm: "
            "spatialdata.transformations.set_transformation, or nk.io.paired(adata, image, affine=...)."
        )
    return shared


def affine_to(element: Any, system: str, what: str) -> NDArray[np.float64]:
    """(3, 3) affine of an element to a coordinate system, x and y only.

    Raises
    ------
    ValueError
        If it can't be inverted.
    """
    from spatialdata.transformations import get_transformation

    transformation = get_transformation(element, to_coordinate_system=system)
    matrix = np.asarray(transformation.to_affine_matrix(("x", "y"), ("x", "y")), dtype=np.float64)
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:2, :2])) < 1e-12:
        raise ValueError(
            f"The transformation of {what} to coordinate system {system!r} can't be inverted: {matrix.tolist()}. "
            "Set a valid one: spatialdata.transformations.set_transformation."
        )
    return matrix


def apply(matrix: NDArray[np.floating], xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (n, 2) through a (3, 3) affine."""
    return xy @ matrix[:2, :2].T + matrix[:2, 2]


class _Centroids(NamedTuple):
    """Some cells' centres in the table, and where their shapes are in the element's own frame."""

    xy: NDArray[np.float64]  # (n, 2)
    shapes: NDArray[np.float64]  # (n, 2)

    def distance(self, to_element: NDArray[np.floating]) -> float:
        """Median distance, in the frame that ``to_element`` comes from."""
        return float(np.median(np.linalg.norm(apply(np.linalg.inv(to_element), self.shapes) - self.xy, axis=1)))


class _Labels(NamedTuple):
    """Some cells' centres in the table, their labels, and the label image."""

    xy: NDArray[np.float64]  # (n, 2)
    label: NDArray[np.int64]  # (n,)
    image: Any  # (y, x)

    def distance(self, to_element: NDArray[np.floating]) -> float:
        """0 if at least half the centres lie on their own label, else infinite."""
        column, row = np.floor(apply(to_element, self.xy)).astype(np.int64).T
        inside = (row >= 0) & (column >= 0) & (row < self.image.shape[0]) & (column < self.image.shape[1])
        if not inside.any():
            return np.inf
        found = np.asarray(self.image.vindex[row[inside], column[inside]])
        return 0.0 if np.count_nonzero(found == self.label[inside]) >= len(self.label) / 2 else np.inf


def _places(element: Any, instances: NDArray[Any], region: str, xy: NDArray[np.float64]) -> _Centroids | _Labels:
    """Where a sample of the cells is by the element that the table annotates.

    Raises
    ------
    ValueError
        If none of the table's instances is in the element, or it is neither shapes nor labels.
    """
    from geopandas import GeoDataFrame
    from xarray import DataArray, DataTree

    if isinstance(element, GeoDataFrame):
        sample = np.unique(np.linspace(0, len(xy) - 1, min(len(xy), SAMPLE)).astype(np.int64))
        if not element.index.is_unique:
            element = element[~element.index.duplicated()]
        rows = element.index.get_indexer(instances[sample])
        if (rows < 0).all():
            raise ValueError(
                f"None of the table's instances ({instances[0]!r}, ...) is in the index of element {region!r} "
                f"({element.index[:1].tolist()}, ...). Make the object with nk.io.paired."
            )
        centroid = element.geometry.iloc[rows[rows >= 0]].centroid
        return _Centroids(xy[sample[rows >= 0]], np.column_stack([centroid.x, centroid.y]))
    if isinstance(element, (DataArray, DataTree)):
        middle = np.median(xy, axis=0)
        patch = np.argsort(((xy - middle) ** 2).sum(axis=1), kind="stable")[:PATCH]
        return _Labels(xy[patch], instances[patch].astype(np.int64), full_resolution(element).data)
    raise ValueError(
        f"The table annotates {region!r}, which is neither shapes nor labels. Make the object with nk.io.paired."
    )


def full_resolution(element: Any) -> Any:
    """The largest level of a raster element, a ``DataArray``."""
    from xarray import DataArray

    if isinstance(element, DataArray):
        return element
    levels = [next(iter(node.data_vars.values())) for node in element.children.values()]
    return max(levels, key=lambda level: level.sizes["x"] * level.sizes["y"])
