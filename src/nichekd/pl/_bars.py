"""Bars of ARI and NMI with the floors and the ceiling drawn across them."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from nichekd._keys import Keys
from nichekd.pl._figure import INK
from nichekd.pl._titles import short_title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase
    from matplotlib.lines import Line2D

METRICS: Final = {"ARI": "Adjusted Rand index", "NMI": "Normalised mutual information"}
LINES: Final = {"ceiling": INK, "floor": "#8a8a8a"}
DASHES: Final = {"ceiling": ("-", "--", ":"), "floor": ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), "-")}
BASELINES: Final = (Keys.niche(Keys.HISTOLOGY_NOLAN), Keys.niche(Keys.HISTOLOGY_LEIDEN))
STUDENT_COLOR: Final = "#e08a4a"
BASELINE_COLOR: Final = "#9db7d5"


def bars(fig: FigureBase, table: pd.DataFrame) -> None:
    """A panel per metric, and a row of them per ``K``; methods from top to bottom in the order of ``table``."""
    facets = list(table.groupby("K", sort=True)) if "K" in table else [(None, table)]
    axes = fig.subplots(len(facets), len(METRICS), squeeze=False, sharex="col")
    handles: dict[str, Line2D] = {}
    summaries = {metric: [_summary(rows, metric) for _, rows in facets] for metric in METRICS}
    limits = _limits(pd.concat([it for facet in summaries.values() for it in facet]))
    for row, (line, (n_niches, _)) in enumerate(zip(axes, facets, strict=True)):
        for ax, (metric, title) in zip(line, METRICS.items(), strict=True):
            handles |= _panel(ax, summaries[metric][row])
            ax.set_xlim(limits)
            ax.set_title(title if n_niches is None else f"{title}, K = {n_niches}")
            if ax is not line[0]:
                ax.set_yticklabels([])
    if handles:
        fig.legend(
            list(handles.values()), list(handles), loc="outside lower center", frameon=False, ncols=min(len(handles), 3)
        )


def _summary(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """``mean``, ``sd`` and ``role`` of each key, in the order of the table."""
    groups = table.groupby("key", sort=False)
    spread = groups[metric].std(ddof=1)
    given = groups[f"{metric}_sd"].first() if f"{metric}_sd" in table else np.nan
    role = groups["role"].first() if "role" in table else "method"
    return pd.DataFrame({"mean": groups[metric].mean(), "sd": spread.fillna(given), "role": role})


def _limits(summary: pd.DataFrame) -> tuple[float, float]:
    top = float((summary["mean"] + summary["sd"].fillna(0)).max())
    return min(0.0, float(summary["mean"].min()) - 0.02), 1.05 * max(0.1, top)


def _panel(ax: Axes, summary: pd.DataFrame) -> dict[str, Line2D]:
    """Bars of the methods; returns the lines of floors and ceiling by name."""
    across = summary["role"].isin(LINES)
    methods, lines = summary[~across], summary[across]
    position = np.arange(len(methods))
    ax.barh(
        position,
        methods["mean"],
        color=[BASELINE_COLOR if _is_baseline(key, role) else STUDENT_COLOR for key, role in methods["role"].items()],
        height=0.68,
    )
    repeated = methods["sd"].notna().to_numpy()
    if repeated.any():
        several, y = methods[repeated], position[repeated]
        ax.errorbar(several["mean"], y, xerr=several["sd"], fmt="none", ecolor=INK, elinewidth=0.9, capsize=2)
    for y, mean in enumerate(methods["mean"]):  # in a column beside the panel, where no line crosses them
        value = "none" if np.isnan(mean) else f"{mean:z.2f}"
        ax.text(1.01, y, value, transform=ax.get_yaxis_transform(), va="center", fontsize=7.5)
    ax.set_yticks(position, [short_title_of(key) for key in methods.index])
    ax.set_ylim(max(len(methods), 1) - 0.4, -0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    dashes = {role: cycle(DASHES[role]) for role in LINES}
    return {
        f"{row.role}: {short_title_of(str(key))}": ax.axvline(
            row.mean_, color=LINES[row.role], linestyle=next(dashes[row.role]), linewidth=1.2, zorder=3
        )
        for key, row in zip(lines.index, lines.rename(columns={"mean": "mean_"}).itertuples(), strict=True)
    }


def _is_baseline(key: object, role: str) -> bool:
    return role == "baseline" or key in BASELINES
