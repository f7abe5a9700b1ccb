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


def outline_test(ax: Axes, xy: NDArray[np.float64], split: NDArray[np.str_], *, label: bool) -> bool:
    """Frame the test cells if a strip or a box holds them and no training cell; whether it did."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    test, train = xy[split == Split.TEST], xy[split == Split.TRAIN]
    if not len(test) or not len(train):
        return False
    low, high = test.min(axis=0), test.max(axis=0)
    inside = (train >= low) & (train <= high)  # (n_train, 2)
    (left, right), (bottom, top) = sorted(ax.get_xlim()), sorted(ax.get_ylim())
    inset = (right - left) / 300  # the line is not cut in half by the panel's edge
    box = np.array([[left + inset, bottom + inset], [right - inset, top - inset]])
    if not inside[:, 1].any():
        box[:, 1] = low[1], high[1]
    elif not inside[:, 0].any():
        box[:, 0] = low[0], high[0]
    elif not inside.all(axis=1).any():
        box[:] = low, high
    else:
        return False
    halo = [withStroke(linewidth=2.0, foreground="white")]
    size = box[1] - box[0]
    ax.add_patch(
        Rectangle(box[0], *size, fill=False, edgecolor=INK, linewidth=1.1, zorder=5, path_effects=halo, gid="test")
    )
    if label:
        text_x, text_y = box[0] + 0.015 * (right - left)
        text = ax.text(text_x, text_y, "test", fontsize=7, fontweight="bold", va="top", zorder=6)
        text.set(color=INK, path_effects=halo)
    return True
