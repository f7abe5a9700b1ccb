"""What all figures share: style, saving, panels that show tissue."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nichekd._keys import Keys
from nichekd._labels import REFERENCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from anndata import AnnData
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
TITLES: Final = {
    REFERENCE: "Teacher (gene expression)",
    Keys.NICHE: "Student (H&E only)",
    Keys.niche(Keys.HISTOLOGY_NOLAN): "Histology-NOLAN",
    Keys.niche(Keys.HISTOLOGY_LEIDEN): "Histology-Leiden",
    Keys.NICHE_TRUE: "Planted niches",
    # rows of nk.tl.evaluate
    "niche_gene_aware": "Student, gene-aware encoder",
    "niche_gene_aware_nolan": "NOLAN, gene-aware encoder",
    "niche_gene_aware_leiden": "Leiden, gene-aware encoder",
    "niche_color": "Student on colour statistics",
    "niche_random_encoder": "Student on a random encoder",
    "niche_shuffled": "Student on shuffled images",
    "niche_expression": "Student on expression",
    "niche_teacher_other_seed": "Teacher, another seed",
    "niche_own_crop": "Student without neighbors",
    "niche_no_position": "Student without positions",
    "niche_hard_labels": "Student of hard labels",
    "niche_transformer": "Student, transformer",
}
INK: Final = "#222222"
LEGEND_ROW_IN: Final = 0.165  # of a line of 8 points
LEGEND_COLUMN_IN: Final = 1.3


@contextmanager
def styled() -> Iterator[None]:
    """Our sizes of text, for the time of a figure."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        yield


def title_of(key: str) -> str:
    """What a reader calls the column ``key``."""
    return TITLES.get(key, key)


def short_title_of(key: str) -> str:
    """The same without the explanation in brackets."""
    return title_of(key).split(" (")[0]


def short_titles(titles: Mapping[str, str]) -> dict[str, str]:
    """``titles`` without the explanation in brackets, unless only that tells two of them apart."""
    short = {key: title.split(" (")[0] for key, title in titles.items()}
    count = Counter(short.values())
    return {key: title if count[title] == 1 else titles[key] for key, title in short.items()}


def image_title(adata: AnnData) -> str:
    """``H&E``, marked where the data say that it was never photographed."""
    return "H&E (virtual)" if "virtual" in str(adata.uns.get("image_note", "")) else "H&E"


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
        if ncols is not None and not 1 <= ncols:
            raise ValueError(f"ncols={ncols}; it has to be at least 1.")
        choices = range(1, n + 1) if ncols is None else [min(ncols, n)]
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
        return self.ncols * self.width + (0.2 if self.legend_columns else 1.2), self.nrows * (self.height + 0.25)


def scale_bar(ax: Axes, *, um_per_unit: float = 1.0, color: str = INK) -> None:
    """A bar of a round length, about a fifth of the panel, on a light ground at the lower left."""
    from matplotlib.font_manager import FontProperties
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

    left, right = ax.get_xlim()
    aim = abs(right - left) * um_per_unit / 5
    power = 10.0 ** math.floor(math.log10(aim))
    length = max(step * power for step in (1, 2, 5) if step * power <= aim)
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    bar = AnchoredSizeBar(
        ax.transData,
        length / um_per_unit,
        text,
        "lower left",
        pad=0.3,
        borderpad=0.4,
        sep=2,
        color=color,
        size_vertical=abs(right - left) / 150,
        fontproperties=FontProperties(size=7),
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
