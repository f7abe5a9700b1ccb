"""What a student remembers of its training tissue, and what it says of a slide that is another."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._image import get_image
from nichekd._keys import Keys
from nichekd._record import notes
from nichekd.tl._neighborhood_means import neighborhood_means

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd.models import NeighborhoodIndex, NicheStudent

log = logging.getLogger(__name__)

FEWEST_LONE = 20  # cells apart from each other that a covariance is taken of; of fewer, it is all cells'
N_CROPS = 256  # whose colours are looked at
COLORS = ("density of red", "density of green", "density of blue", "red over green", "blue over green")
TAILS = (0.05, 0.95)  # of the training crops' colours; a slide whose median crop is beyond them has others
DENSER = 1.5  # times as many neighbors, or as few, as on training tissue
COARSER = 1.1  # times the training images' µm per pixel, or as fine
MANY_OOD = 0.1  # share of cells out of distribution; of training tissue it is 0.05, see TrainingRange
PART_RADII = 4  # side of the squares that are left out together, in radii


def remember_training(
    data: AnnData | SpatialData,
    adata: AnnData,
    student: NicheStudent,
    index: NeighborhoodIndex,
    components: NDArray[np.float32],
    *,
    train: NDArray[np.integer],
    groups: NDArray[np.integer],
    use_rep: str,
    seed: int,
) -> None:
    """Keep in ``student`` what its training tissue looks like; what it kept of earlier sections stays.

    Parameters
    ----------
    data, adata
        What the student is taught on, and its table.
    index, components
        Neighborhoods, and the student's whitened features (n, C).
    train, groups
        Training cells, (m,), and the teacher's niche of each, (m,).
    use_rep
        Key of the features.
    seed
        Of the choice of crops whose colours are looked at.
    """
    from nichekd.models import TrainingRange

    means = neighborhood_means(index, components, train)
    xy = index.xy[train]
    column, row = np.floor(xy / (PART_RADII * index.radius)).astype(np.int64).T % 2
    found = TrainingRange.of(
        means,
        groups,
        index.sizes[train],
        parts=2 * column + row,  # squares of four kinds, those of one kind never side by side
        lone=_far_apart(xy, index.radius),
        before=student.training_range,
    )
    about: dict[str, Any] = {"n_groups": len(found.means)}
    n_neighbors = float(index.sizes[train].mean() - 1)
    about["n_neighbors"] = [n_neighbors, n_neighbors]
    image = _image_of(data, adata, use_rep)
    if image is not None:
        about["mpp"] = [image.mpp, image.mpp]
        colors = _colors(image, student, train, seed)
        about["color"] = {
            name: np.quantile(column, TAILS).round(5).tolist() for name, column in zip(COLORS, colors.T, strict=True)
        }
    student.remember(found, _both(student.config.training_range, about))


def slide_warnings(
    data: AnnData | SpatialData,
    adata: AnnData,
    student: NicheStudent,
    index: NeighborhoodIndex,
    *,
    use_rep: str,
    ood: NDArray[np.floating],
) -> list[str]:
    """What makes this slide another than those that the student was trained on, a sentence each.

    Parameters
    ----------
    data, adata
        The slide, and its table.
    index
        Neighborhoods of the student's radius.
    use_rep
        Key of the features.
    ood
        Out-of-distribution score of each cell, (n,).
    """
    known = student.config.training_range
    found = []
    share = float((ood > 1).mean())
    if share > MANY_OOD:
        found.append(
            f"{share:.0%} of the cells look unlike the tissue that the student was trained on (score over 1, as 5 % of "
            "that tissue has)."
        )
    n_neighbors, (low, high) = float(index.sizes.mean() - 1), known["n_neighbors"]
    if not low / DENSER <= n_neighbors <= high * DENSER:
        found.append(
            f"Cells have {n_neighbors:.1f} neighbors within {student.config.radius:.1f} µm on average, those of training "
            f"{_span(low, high, '.1f')}: cells are found in another way, or the tissue is another."
        )
    image = _image_of(data, adata, use_rep)
    if image is not None and "mpp" in known:
        found += _image_warnings(image, student)
    return found


def _image_warnings(image: Any, student: NicheStudent) -> list[str]:
    """Another resolution, another stain."""
    known, found = student.config.training_range, []
    low, high = known["mpp"]
    if not low / COARSER <= image.mpp <= high * COARSER:
        effect = "detail is missing in its crops" if image.mpp > high else "its crops were made coarser"
        found.append(
            f"The image has {image.mpp:.4g} µm per pixel, those of training {_span(low, high, '.4g')}: {effect}."
        )
    middle = np.median(_colors(image, student, np.arange(len(image.xy_px)), seed=0), axis=0)
    beyond = [
        f"{name} {value:.2f} (training {_span(known['color'][name][0], known['color'][name][1], '.2f')})"
        for name, value in zip(COLORS, middle, strict=True)
        if not known["color"][name][0] <= value <= known["color"][name][1]
    ]
    if beyond:
        found.append(
            f"The stain is another than that of training, as another scanner's or laboratory's: {', '.join(beyond)}."
        )
    return found


def _image_of(data: AnnData | SpatialData, adata: AnnData, use_rep: str) -> Any:
    """The image that the features were made of, with the cells in it; ``None`` where that is not known."""
    key = notes(adata).get(Keys.FEATURES, {}).get(use_rep, {}).get("image")
    if key is None or key not in getattr(data, "images", {}):
        return None
    return get_image(data, adata, image_key=key)  # type: ignore[arg-type]


def _colors(image: Any, student: NicheStudent, cells: NDArray[np.integer], seed: int) -> NDArray[np.float64]:
    """Mean optical densities of some crops, and two ratios of them, (m, 5).

    Ratios tell a stain of another hue, densities one that is stronger or a slide that is thicker.
    """
    from nichekd.pp._crops import CropReader

    features = student.config.features
    reader = CropReader(image, crop_px=int(features.get("crop_px", 224)), mpp=features.get("mpp"))
    rng = np.random.default_rng(seed)
    chosen = cells if len(cells) <= N_CROPS else rng.choice(cells, N_CROPS, replace=False)
    order = reader.order()
    chosen = order[np.isin(order, chosen)]
    densities = []
    for _, crops in reader.batches(chosen, batch_size=32, num_workers=0):
        transmitted = (crops.astype(np.float32) + 1) / 256  # a black pixel has a density too
        densities.append(-np.log(transmitted).mean(axis=(2, 3), dtype=np.float64))  # (b, 3)
    red, green, blue = np.maximum(np.concatenate(densities), 1e-3).T
    return np.column_stack([red, green, blue, red / green, blue / green])


def _far_apart(xy: NDArray[np.floating], radius: float) -> NDArray[np.bool_]:
    """One cell of each square as wide as a neighborhood, (n,), or all if that leaves too few."""
    square = np.floor((xy - xy.min(axis=0)) / (2 * radius)).astype(np.int64)
    _, first = np.unique(square, axis=0, return_index=True)
    chosen = np.zeros(len(xy), dtype=bool)
    chosen[first if len(first) >= FEWEST_LONE else slice(None)] = True
    return chosen


def _both(earlier: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The spans of all sections: ranges from the lower to the higher end of both."""
    both = dict(earlier) | now
    for name in earlier.keys() & now.keys():
        one, other = earlier[name], now[name]
        if isinstance(one, dict):
            both[name] = _both(one, other)
        elif isinstance(one, list):
            both[name] = [min(one[0], other[0]), max(one[1], other[1])]
    return both


def _span(low: float, high: float, form: str) -> str:
    return f"{low:{form}}" if f"{low:{form}}" == f"{high:{form}}" else f"{low:{form}} to {high:{form}}"
