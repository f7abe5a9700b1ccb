"""Panels that show tissue: cells as dots, in µm with y downwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._keys import Split
from nichekd._palette import MISSING
from nichekd.pl._figure import INK

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Extent:
    """A box in µm."""

    left: float
    right: float
    top: float
    bottom: float

    @classmethod
    def of(cls, xy: NDArray[np.float64], *, pad: float = 0.015) -> Extent:
        """The box of some cells, and a little more, so that no dot is cut off: of spots, more than half their distance."""
        low, high = xy.min(axis=0), xy.max(axis=0)
        margin = max(pad * float((high - low).max()), 5.0, 0.6 * (spacing_um(xy) or 0.0))
        return cls(low[0] - margin, high[0] + margin, low[1] - margin, high[1] + margin)

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top

    @property
    def aspect(self) -> float:
        return self.height / self.width


def frame(ax: Axes, extent: Extent, *, title: str | None = None) -> None:
    """Limits, equal aspect, y downwards, no ticks."""
    ax.set(xlim=(extent.left, extent.right), ylim=(extent.bottom, extent.top), aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if title:
        ax.set_title(title)


def dot_area(xy: NDArray[np.float64], extent: Extent, width_in: float) -> float:
    """Area of a dot in points² at which neighboring cells just touch, in a panel ``width_in`` inches wide."""
    spacing = spacing_um(xy)
    if spacing is None:
        return 20.0
    points = spacing * 72 * width_in / extent.width
    return float(np.clip(points**2, 0.15, 40.0))


def spacing_um(xy: NDArray[np.float64]) -> float | None:
    """Median distance of a cell's third nearest neighbor, µm; ``None`` of fewer than four cells."""
    from scipy.spatial import cKDTree

    if len(xy) < 4:
        return None
    every = max(1, len(xy) // 5000)
    return float(np.median(cKDTree(xy).query(xy[::every], k=4)[0][:, 3]))


def dots(ax: Axes, xy: NDArray[np.float64], color: Any, area: float, **kwargs: Any) -> Any:
    """Cells, rasterised, for a million of them are no vector graphic."""
    return ax.scatter(xy[:, 0], xy[:, 1], c=color, s=area, linewidths=0, rasterized=True, **kwargs)


def label_colors(labels: pd.Categorical, colors: Mapping[str, str]) -> NDArray[np.float64]:
    """Colour of each cell, (n, 4); light grey where it has no label."""
    from matplotlib.colors import to_rgba_array

    table = to_rgba_array([*(colors[name] for name in labels.categories), MISSING])
    return table[labels.codes]  # code -1, no label, is the last row


def frames_of_test(
    xy: NDArray[np.float64], split: NDArray[np.str_], section: NDArray[np.intp]
) -> list[NDArray[np.float64]]:
    """Frames of each section's test cells, corners (2, 2); none unless strips or boxes hold them and no training cell."""
    test = split == Split.TEST
    if not test.any() or not (split == Split.TRAIN).any():
        return []
    parts = [section == one for one in np.unique(section[test])]
    found = [box for part in parts if (box := _test_box(xy[part], split[part])) is not None]
    return found if len(found) == len(parts) else []


def outline_test(ax: Axes, frames: list[NDArray[np.float64]], *, label: bool) -> None:
    """Draw the frames; the ``label`` stands beside the panel, where it covers no cell."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2.0, foreground="white")]
    line: dict[str, Any] = {"fill": False, "edgecolor": INK, "linewidth": 1.1, "zorder": 5, "path_effects": halo}
    for low, high in frames:
        ax.add_patch(Rectangle((low[0], low[1]), *(high - low), clip_on=False, gid="test", **line))
    if label and frames:
        low, high = min(frames, key=lambda box: float(box[0, 0]))
        words: dict[str, Any] = {"fontsize": 7, "fontweight": "bold", "color": INK, "rotation": 90}
        middle = (low[1] + high[1]) / 2
        ax.text(-0.01, middle, "test", transform=ax.get_yaxis_transform(), ha="right", va="center", **words)


def _test_box(xy: NDArray[np.float64], split: NDArray[np.str_]) -> NDArray[np.float64] | None:
    """Lower and upper corner, (2, 2), of the frame of one section's test cells, as long as the section if it can be."""
    test, train = xy[split == Split.TEST], xy[split == Split.TRAIN]
    low, high = test.min(axis=0), test.max(axis=0)
    inside = (train >= low) & (train <= high)  # (n_train, 2)
    room = (spacing_um(xy) or 0.0) / 2  # dots touch at twice this, so none is cut
    whole = Extent.of(xy)
    box = np.array([[whole.left, whole.top], [whole.right, whole.bottom]])
    if not inside[:, 1].any():
        box[:, 1] = low[1] - room, high[1] + room
    elif not inside[:, 0].any():
        box[:, 0] = low[0] - room, high[0] + room
    elif not inside.all(axis=1).any():
        box[:] = low - room, high + room
    else:
        return None
    return box
