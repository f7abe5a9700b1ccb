from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nichekd._record import record
from nichekd._resolve import working_copy
from nichekd._settings import settings as defaults
from nichekd.pp._bare_image import bare_image
from nichekd.pp._nuclei import NucleusSettings, haematoxylin, label_nuclei, slide_threshold
from nichekd.pp._nuclei_blocks import Grid, outline_blocks
from nichekd.pp._nuclei_table import write_nuclei
from nichekd.pp._tiles import ImageTiles
from nichekd.pp._tissue_mask import tissue_mask

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from geopandas import GeoDataFrame
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd._image import CellImage
    from nichekd.pp._nuclei_blocks import Labeller
    from nichekd.pp._tissue_mask import TissueMask

    Found = tuple[NDArray[np.object_], dict[str, Any]]

log = logging.getLogger(__name__)

METHODS = ("watershed", "cellpose", "stardist", "instanseg")
COARSEST_UM = 1.05  # µm per pixel at which a small nucleus is still five pixels wide
FINER = 1.3  # images this much finer than the nuclei need are averaged, for speed
CACHE_BYTES = 96 * 2**20  # decoded tiles kept: two rows of blocks share some
SAMPLED, SAMPLE_EVERY = 24, 3  # blocks that the slide's threshold is taken from, and every how many of their pixels


def segment_nuclei(
    sdata: SpatialData,
    *,
    image_key: str | None = None,
    method: Literal["watershed", "cellpose", "stardist", "instanseg"]
    | Callable[..., NDArray[np.integer]] = "watershed",
    shapes: GeoDataFrame | str | Path | None = None,
    mpp: float | None = None,
    nuclei: NucleusSettings | None = None,
    model: str | None = None,
    device: str | None = None,
    n_jobs: int = -1,
    key_added: str = "nuclei",
    table_key: str = "table",
    overwrite: bool = False,
    copy: bool = False,
) -> SpatialData | None:
    """Find the nuclei of an H&E, and make the cell table of them.

    Tissue is found first, on a coarse level. The slide is then read in blocks that overlap; each keeps the nuclei whose
    middle is in its own part, so that none is cut or found twice, and memory does not grow with the slide.

    ``method="watershed"`` needs no weights: the haematoxylin of colour deconvolution :cite:`Ruifrok2001`, a threshold
    that is half the slide's own :cite:`Otsu1979` and half the surroundings', and a watershed on the distance to the rim
    (:class:`nichekd.pp.NucleusSettings` has the formulas). It finds what is darker and bluer than its surroundings: in
    folds, ink and dense lymphocytes it guesses.

    Parameters
    ----------
    sdata
        Holds the image, see :func:`nichekd.io.slide`.
    image_key
        Name of the image; may be left out where there is one.
    method
        ``"watershed"``; or a network of another package, if that is installed: ``"cellpose"``, ``"stardist"``,
        ``"instanseg"``; or a function that makes labels (rows, columns) of a block's uint8 pixels (rows, columns, 3).
    shapes
        Nuclei that there are already, in place of all this: a ``GeoDataFrame`` of polygons in pixels of the full
        resolution, the path of a GeoJSON (QuPath's), or the name of a shapes or labels element.
    mpp
        µm per pixel, for an image whose transformation doesn't say it.
    nuclei
        Sizes and thresholds of ``"watershed"``; resolution of a function.
    model
        Pretrained model of a network, a name or a path.
    device
        Of a network; ``nk.settings.device`` if left out.
    n_jobs
        Threads of ``"watershed"``; -1 is one for each processor. The result does not depend on it.
    key_added
        Name of the shapes element.
    table_key
        Name of the table.
    overwrite
        Replace an element or a table of these names.
    copy
        Return a new object instead of writing in place.

    Returns
    -------
    ``None``, or the new object. Writes

    - ``shapes[key_added]``: polygons in µm, indexed by the cells' names;
    - ``tables[table_key]``, without ``X``, that annotates them: ``obsm["spatial"]``, centroids in µm, (n, 2), in the
      frame of :func:`nichekd.io.paired`; ``obs["area_um2"]``; ``uns["nichekd"]["segment_nuclei"]``.

    Raises
    ------
    TypeError
        If ``sdata`` is no ``SpatialData``, or ``shapes`` or ``method`` is of no such kind.
    KeyError
        If there is no such image or element.
    FileNotFoundError
        If there is no such GeoJSON.
    ImportError
        If a network's package is not installed; says which.
    ValueError
        If the image can't be used, or its µm per pixel is unknown, absurd, or too coarse for nuclei; if there is no
        tissue, or no nucleus; if brought nuclei are no polygons, in another unit, or outside the image; if the element
        or the table exists.

    Examples
    --------
    >>> import nichekd as nk
    >>> sdata = nk.datasets.simulate(400, K=2)
    >>> nk.pp.segment_nuclei(sdata, table_key="nuclei_table", n_jobs=1)
    >>> sorted(sdata["nuclei_table"].obs)
    ['area_um2', 'instance_id', 'region']
    """
    start = time.perf_counter()
    bare = bare_image(sdata, image_key=image_key, mpp=mpp)
    for name, there in ((key_added, sdata), (table_key, sdata.tables)):
        if name in there and not overwrite:
            raise ValueError(
                f"The SpatialData has an element {name!r}. Choose other names by key_added= and table_key=, or replace "
                "it by overwrite=True."
            )
    sdata = working_copy(sdata, copy)
    n_jobs = _n_jobs(n_jobs)
    if shapes is not None:
        from nichekd.pp._brought_nuclei import brought_nuclei

        polygons, source = brought_nuclei(sdata, bare, shapes, n_jobs=n_jobs)
        used: dict[str, Any] = {"method": "shapes", "source": source}
    else:
        polygons, used = _segment(sdata, bare.image, method, nuclei or NucleusSettings(), model, device, n_jobs)
    for name in {key_added, table_key} & {name for _, name, _ in sdata.gen_elements()}:
        del sdata[name]  # replaced only now, when there is something to put in its place
    adata = write_nuclei(sdata, bare, polygons, key_added, table_key)
    used |= {"n_nuclei": adata.n_obs, "image": bare.image.key, "mpp": bare.image.mpp, "key_added": key_added}
    record(adata, "segment_nuclei", seconds=time.perf_counter() - start, **used)
    log.info("%d nuclei by %s, %.1f s", adata.n_obs, used["method"], time.perf_counter() - start)
    return sdata if copy else None


def _n_jobs(n_jobs: int) -> int:
    if isinstance(n_jobs, bool) or not isinstance(n_jobs, (int, np.integer)) or n_jobs == 0 or n_jobs < -1:
        raise ValueError(f"n_jobs={n_jobs!r}; it has to be a number of threads, or -1 for one for each processor.")
    if n_jobs > 0:
        return int(n_jobs)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _segment(
    sdata: SpatialData,
    image: CellImage,
    method: Any,
    nuclei: NucleusSettings,
    model: str | None,
    device: str | None,
    n_jobs: int,
) -> Found:
    """Polygons in pixels of the full resolution, and what made them."""
    import shapely

    if not callable(method) and method not in METHODS:
        raise ValueError(f"method={method!r}; choose one of {list(METHODS)}, or hand in a function.")
    if method == "watershed" and image.mpp > COARSEST_UM:
        raise ValueError(
            f"Image {image.key!r} has {image.mpp:.3g} µm per pixel; nuclei are told apart down to {COARSEST_UM:g}. Read a "
            "finer level, or bring the nuclei by shapes=."
        )
    wanted, label, used = _labeller(method, nuclei, model, device)
    mask = tissue_mask(sdata, image, n_jobs=n_jobs)
    log.info("%.2f mm² of tissue", mask.area_um2 / 1e6)
    grid = Grid.of(ImageTiles(image.pixels, CACHE_BYTES), image.mpp, wanted, FINER, cache_bytes=CACHE_BYTES)
    blocks = [block for block in grid.blocks() if mask.share(*(edge * grid.factor for edge in grid.own(block))) > 0]
    if method == "watershed":
        threshold = _threshold(grid, mask, blocks, nuclei)
        used |= {"threshold": threshold, "nuclei": vars(nuclei)}
        label = lambda rgb: label_nuclei(rgb, grid.mpp, threshold, nuclei)  # noqa: E731
    else:
        n_jobs = 1  # networks are not made for several threads
    found = outline_blocks(grid, blocks, label, n_jobs=n_jobs, progress="nuclei")
    found = found[mask.at(shapely.get_coordinates(shapely.centroid(found)))] if len(found) else found
    if not len(found):
        raise ValueError(
            f"No nuclei in {mask.area_um2 / 1e6:.2f} mm² of tissue of image {image.key!r}, looked for by {used['method']} at "
            f"{grid.mpp:.3g} µm per pixel. Is it an H&E, and are {image.mpp:.3g} µm per pixel right (mpp=)? "
            "Fainter ones: nuclei=nk.pp.NucleusSettings(faint=0.2)."
        )
    return found, used | {"working_mpp": grid.mpp, "tissue_mm2": mask.area_um2 / 1e6}


def _labeller(
    method: Any, nuclei: NucleusSettings, model: str | None, device: str | None
) -> tuple[float, Labeller, dict[str, Any]]:
    """Resolution, function and description of what is not the watershed, whose function needs the slide first."""
    if callable(method):
        name = getattr(method, "__name__", type(method).__name__)
        return nuclei.mpp, lambda rgb: method(np.moveaxis(rgb, 0, -1)), {"method": name}
    if method == "watershed":
        return nuclei.mpp, lambda rgb: np.zeros(rgb.shape[1:], dtype=np.int32), {"method": method}
    from nichekd.pp._segmenters import load_segmenter

    network = load_segmenter(method, model=model, device=device or defaults.device)
    return network.mpp, network.label, {"method": method, "model": network.about}


def _threshold(grid: Grid, mask: TissueMask, blocks: list[tuple[int, int]], nuclei: NucleusSettings) -> float:
    """The slide's threshold, of pixels of tissue in blocks spread over it, full ones first."""
    from scipy.ndimage import gaussian_filter

    def share(block: tuple[int, int]) -> float:
        return mask.share(*(edge * grid.factor for edge in grid.own(block)))

    spread = sorted(blocks, key=lambda block: share(block) < 0.5)  # stable: in reading order within both halves
    n_full = sum(share(block) >= 0.5 for block in spread)
    among = spread[: max(n_full, min(len(spread), SAMPLED))]
    sampled = [among[i] for i in np.unique(np.linspace(0, len(among) - 1, SAMPLED).astype(int))]
    samples = []
    for top, bottom, left, right in map(grid.own, sampled):
        h = gaussian_filter(haematoxylin(grid.read(top, bottom, left, right)), 1.5 * nuclei.smooth_um / grid.mpp)
        rows, columns = (np.arange(n)[::SAMPLE_EVERY] for n in h.shape)
        xy = np.stack(np.meshgrid(columns + left, rows + top), axis=-1).reshape(-1, 2) * grid.factor
        samples.append(h[::SAMPLE_EVERY, ::SAMPLE_EVERY].ravel()[mask.at(xy)])
    return slide_threshold(np.concatenate(samples))
