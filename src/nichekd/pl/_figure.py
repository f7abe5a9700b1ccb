"""What all figures share: style, saving, panels that show tissue."""

from __future__ import annotations

import math
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nichekd._units import as_number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE: Final[Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "text.parse_math": False,  # niches may be called what their users like
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
    "savefig.dpi": 200,
}
INK: Final = "#222222"
LEGEND_ROW_IN: Final = 0.165  # of a line of 8 points
LEGEND_COLUMN_IN: Final = 1.3
BAR_IN: Final = 0.25  # of height, for the scale bar below a panel


@contextmanager
def styled() -> Iterator[None]:
    """Our sizes of text, for the time of a figure."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        yield


def check_save(save: str | Path | None) -> None:
    """See, before anything is drawn, that a figure can be written to ``save``, and to no other file.

    Raises
    ------
    TypeError
        If it is no path.
    FileNotFoundError
        If its folder is missing.
    ValueError
        If it is a folder, or has no ending that matplotlib writes.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    if save is None:
        return
    if not isinstance(save, (str, os.PathLike)):
        raise TypeError(f"save={save!r} is a {type(save).__name__}; it has to be a path, e.g. save='figure.png'.")
    path = Path(save)
    if path.is_dir():
        raise ValueError(f"save={str(save)!r} is a folder. Name a file in it: save={str(path / 'figure.png')!r}.")
    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.lower().removeprefix(".") not in formats:  # to a path without one, matplotlib would add its own
        found = f"ends in {path.suffix!r}" if path.suffix else "has no ending"
        raise ValueError(
            f"save={str(save)!r} {found}; a figure is written as one of {formats}. Name the format by the file's "
            f"ending: save={str(path.with_suffix('.png'))!r}."
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"save={str(save)!r}: there is no folder {path.parent.absolute()}. Make it, or name another one."
        )


def count_of(value: Any, name: str) -> int:
    """``value`` as a whole number, at least 1.

    Raises
    ------
    TypeError
        If it is no number.
    ValueError
        If it is another one.
    """
    number = as_number(value, f"{name}=")
    if not number >= 1 or number % 1:
        raise ValueError(f"{name}={number:g}; it has to be a whole number, at least 1.")
    return int(number)


def finish(fig: Figure, save: str | Path | None, dpi: float) -> Figure:
    """Write the figure if asked to, and hand it back so that a notebook shows it once."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    if save is not None:
        fig.savefig(save, dpi=dpi)
    if "inline" in mpl.get_backend().lower():
        plt.close(fig)  # it would be shown by the backend and, being returned, a second time
    return fig


@dataclass(frozen=True)
class Grid:
    """Panels of ``width`` by ``height`` inches in rows and columns, and where the legend goes."""

    nrows: int
    ncols: int
    width: float
    height: float
    legend_columns: int  # in the panel left free; 0: the legend goes beside the panels

    @classmethod
    def of(cls, n: int, aspect: float, *, n_entries: int, ncols: int | None = None) -> Grid:
        """``n`` panels, ``aspect`` times as high as wide, in a figure about 1.7 times as wide as high.

        A single place left over is good for the legend of ``n_entries``, if it is large enough.
        """
        choices = range(1, n + 1) if ncols is None else [min(count_of(ncols, "ncols"), n)]
        return min((cls._with(n, aspect, columns, n_entries) for columns in choices), key=lambda it: it._cost(n))

    @classmethod
    def _with(cls, n: int, aspect: float, ncols: int, n_entries: int) -> Grid:
        nrows = math.ceil(n / ncols)
        width = min(10.0 / ncols, 8.5 / (nrows * aspect), 4.5)
        rows = int(width * aspect / LEGEND_ROW_IN) - 2
        columns = math.ceil(n_entries / rows) if rows >= 3 else 0
        fits = nrows * ncols > n and columns * LEGEND_COLUMN_IN <= width
        return cls(nrows, ncols, width, width * aspect, columns if fits else 0)

    def _cost(self, n: int) -> float:
        spare = self.nrows * self.ncols - n
        shape = abs(math.log(self.ncols * self.width / (self.nrows * (self.height + 0.25)) / 1.7))
        return shape + 0.3 * spare - (0.45 if self.legend_columns else 0)

    def figsize(self) -> tuple[float, float]:
        width = self.ncols * self.width + (0.2 if self.legend_columns else 1.2)
        return width, self.nrows * (self.height + 0.25) + BAR_IN


def scale_bar(ax: Axes, *, um_per_unit: float = 1.0, inside: bool = False) -> None:
    """A bar of a round length, about a fifth of the panel: below it, where it hides nothing, or in it on a light ground."""
    from matplotlib.font_manager import FontProperties
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

    left, right = ax.get_xlim()
    aim = abs(right - left) * um_per_unit / 5
    power = 10.0 ** math.floor(math.log10(aim))
    length = max(step * power for step in (1, 2, 5) if step * power <= aim)
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    below: dict[str, Any] = {"bbox_to_anchor": (0.0, 0.0), "bbox_transform": ax.transAxes}
    bar = AnchoredSizeBar(
        ax.transData,
        length / um_per_unit,
        text,
        "lower left" if inside else "upper left",
        pad=0.3,
        borderpad=0.4,
        sep=2,
        color=INK,
        size_vertical=abs(right - left) / 150,
        frameon=inside,
        fontproperties=FontProperties(size=7),
        **({} if inside else below),
    )
    bar.patch.set(facecolor="white", edgecolor="none", alpha=0.75)
    bar.set_zorder(6)
    ax.add_artist(bar)


def legend_handles(colors: dict[str, str], *, edge: str = "none") -> list[Any]:
    """Dots, one per name."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], linestyle="", marker="o", markersize=6, markerfacecolor=color, markeredgecolor=edge, label=name)
        for name, color in colors.items()
    ]


def place_legend(
    fig: Figure, handles: list[Any], *, title: str | None = None, spare: Axes | None = None, columns: int = 0
) -> None:
    """The legend, in ``columns`` of the panel left ``spare`` or, for 0, right of them all."""
    if not columns:
        rows = int(fig.get_size_inches()[1] / LEGEND_ROW_IN) - 2
        columns = math.ceil(len(handles) / max(4, min(rows, 20)))
        spare = None
    style: dict[str, Any] = {
        "handles": handles,
        "title": title,
        "ncols": columns,
        "frameon": False,
        "alignment": "left",
        "handletextpad": 0.3,
    }
    if spare is not None:
        spare.legend(loc="center left", **style)
    else:
        fig.legend(loc="outside right center", **style)
