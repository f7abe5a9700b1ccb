"""What a student remembers of its training tissue, and what it says of a slide that is another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd.tl._neighborhood_means import neighborhood_means

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nichekd.models import NeighborhoodIndex, NicheStudent
    from nichekd.tl._slide_colors import SlideColors

FEWEST_LONE = 20  # cells apart from each other that a covariance is taken of; of fewer, it is all cells'
DENSER = 1.5  # times as many neighbors, or as few, as on training tissue
COARSER = 1.1  # times the training images' µm per pixel, or as fine
MANY_OOD = 0.1  # share of cells out of distribution; of training tissue it is 0.05, see TrainingRange
PART_RADII = 4  # side of the squares that are left out together, in radii


def remember_training(
    student: NicheStudent,
    index: NeighborhoodIndex,
    components: NDArray[np.float32],
    *,
    train: NDArray[np.integer],
    groups: NDArray[np.integer],
    held: NDArray[np.integer] | None,
    colors: SlideColors | None,
) -> None:
    """Keep in ``student`` what its training tissue looks like; what it kept of earlier sections stays.

    Parameters
    ----------
    index, components
        Neighborhoods, and the student's whitened features (n, C).
    train, groups
        Training cells, (m,), and the teacher's niche of each, (m,).
    held
        Those of them that neither the student nor a gene-aware encoder learned from; ``None`` where there are none.
    colors
        Of the slide; ``None`` where there is no image.
    """
    from nichekd.models import TrainingRange

    xy = index.xy[train]
    column, row = np.floor(xy / (PART_RADII * index.radius)).astype(np.int64).T % 2
    where: dict[str, Any] = {
        "parts": 2 * column + row,  # squares of four kinds, those of one kind never side by side
        "lone": _far_apart(xy, index.radius),
        "held": None if held is None else np.isin(train, held),
    }
    means = neighborhood_means(index, components, train)
    sizes = index.sizes[train]
    found = TrainingRange.of(means, groups, sizes, before=student.training_range, **where)
    about: dict[str, Any] = {"n_groups": len(found.means)}
    n_neighbors = float(sizes.mean() - 1)
    about["n_neighbors"] = [n_neighbors, n_neighbors]
    stain = None
    if colors is not None:
        about |= colors.spans(train)
        # crops overlap more than neighborhoods do: a mean of few varies no more than one of many
        once, all_one = np.ones(len(train), dtype=np.int64), np.zeros(len(train), dtype=np.int64)
        stain = TrainingRange.of(colors.means(index)[train], all_one, once, before=student.stain_range, **where)
        about["n_stains"] = len(stain.means)
    student.remember(found, _both(student.config.training_range, about), stain=stain)


def score_cells(
    student: NicheStudent, index: NeighborhoodIndex, components: NDArray[np.float32], colors: SlideColors | None
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """Out-of-distribution scores of what the student reads and of the stain, (n,) each; ``None`` where not known."""
    tissue = stain = None
    if student.training_range is not None:
        tissue = student.training_range.score(neighborhood_means(index, components), index.sizes)
    if student.stain_range is not None and colors is not None:
        stain = student.stain_range.score(colors.means(index), np.ones(len(index.xy), dtype=np.int64))
    return tissue, stain


def slide_warnings(
    student: NicheStudent, index: NeighborhoodIndex, colors: SlideColors | None, *, ood: NDArray[np.floating]
) -> list[str]:
    """What makes this slide another than those that the student was trained on, a sentence each.

    Parameters
    ----------
    index
        Neighborhoods of the student's radius.
    colors
        Of the slide; ``None`` where there is no image.
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
    if colors is not None and "mpp" in known:
        found += _image_warnings(colors, known)
    return found


def _image_warnings(colors: SlideColors, known: dict[str, Any]) -> list[str]:
    """Another resolution, another stain."""
    found = []
    low, high = known["mpp"]
    if not low / COARSER <= colors.mpp <= high * COARSER:
        effect = "detail is missing in its crops" if colors.mpp > high else "its crops were made coarser"
        found.append(
            f"The image has {colors.mpp:.4g} µm per pixel, those of training {_span(low, high, '.4g')}: {effect}."
        )
    beyond = [
        f"{name} {value:.2f} (training {_span(known['color'][name][0], known['color'][name][1], '.2f')})"
        for name, value in colors.middle().items()
        if not known["color"][name][0] <= value <= known["color"][name][1]
    ]
    if beyond:
        found.append(
            f"The stain is another than that of training, as another scanner's or laboratory's: {', '.join(beyond)}."
        )
    return found


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
