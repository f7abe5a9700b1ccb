from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from nichekd._keys import Keys
from nichekd._resolve import get_table
from nichekd.pl._figure import INK, check_save, finish, styled

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

#: prefix of a curve → its name and colour
PARTS: Final = {"train": ("training cells", "#1f77b4"), "validation": ("validation cells", "#d95f02")}
STEPS: Final = ("step", "epoch")
#: functions that train something else first, which their progress bar counts and their history does not
WARM_STARTED: Final = ("nolan", "histology_nolan")
WORDS: Final = {
    "loss": "Loss",
    "ari": "ARI against the teacher",
    "nmi": "NMI against the teacher",
    "lr": "Learning rate",
}


def training(
    data: AnnData | SpatialData,
    *,
    function: str | None = None,
    table_key: str = "table",
    save: str | Path | None = None,
    dpi: float = 200,
) -> Figure:
    """The history of a training: its losses, and whatever else was followed.

    Parameters
    ----------
    data
        Cells on which something was trained.
    function
        Name of the function that trained, such as ``"distill"`` or ``"nolan"``; all that left a history for ``None``.
    table_key
        Table of a ``SpatialData``.
    save
        File to write, in a folder that there is. Its ending names the format, such as ``.png`` or ``.pdf``; a path
        without one is refused.
    dpi
        Dots per inch of that file.

    Returns
    -------
    The figure, with a row per training and a panel per quantity. Read from ``uns["nichekd"][function]["history"]``,
    equally long arrays; ``train_loss`` and ``validation_loss`` share a panel, and so do others of that form.

    Raises
    ------
    KeyError
        If there is no history, or none of ``function``.
    FileNotFoundError
        If the folder of ``save`` is missing.
    ValueError
        If the arrays of a history are empty or not equally long; if ``save`` is a folder or ends in no format of
        figures.
    """
    import matplotlib.pyplot as plt

    check_save(save)
    adata = get_table(data, table_key)
    histories = _histories(adata)
    if function is not None:
        if function not in histories:
            raise KeyError(
                f"uns['nichekd'][{function!r}] has no history; there is one of {sorted(histories)}. "
                "Run nk.tl.distill or nk.tl.nolan, and name it by function=."
            )
        histories = {function: histories[function]}
    if not histories:
        raise KeyError("uns['nichekd'] has no history of a training. Run nk.tl.distill or nk.tl.nolan first.")
    rows = {name: (_steps(name, history), _quantities(history)) for name, history in histories.items()}
    ncols = max(len(quantities) for _, quantities in rows.values())
    with styled():
        size = (max(3.2 * ncols, 4.0), 2.4 * len(rows))
        fig, axes = plt.subplots(len(rows), ncols, figsize=size, layout="constrained", squeeze=False)
        for line, (name, ((label, steps), quantities)) in zip(axes, rows.items(), strict=True):
            for ax in line[len(quantities) :]:
                ax.set_axis_off()
            for ax, (quantity, curves) in zip(line, quantities.items(), strict=False):
                _panel(ax, steps, curves)
                ax.set(xlabel=label, ylabel=WORDS.get(quantity, quantity.replace("_", " ")))
            line[0].set_title(f"nk.tl.{name}", loc="left", fontweight="bold")
        return finish(fig, save, dpi)


def _histories(adata: AnnData) -> dict[str, Mapping[str, np.ndarray]]:
    notes = adata.uns.get(Keys.UNS, {})
    return {name: entry["history"] for name, entry in notes.items() if hasattr(entry, "get") and "history" in entry}


def _steps(name: str, history: Mapping[str, Any]) -> tuple[str, np.ndarray]:
    """What the x axis counts, and its values."""
    lengths = {key: len(np.atleast_1d(values)) for key, values in history.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(
            f"uns['nichekd'][{name!r}]['history'] has arrays of lengths {lengths}; "
            f"they have to be equally long, and not empty. Run nk.tl.{name} again."
        )
    for label in STEPS:
        if label in history:
            steps = np.asarray(history[label], dtype=float)
            return _axis_label(name, label, steps), steps
    return "step", np.arange(1.0, next(iter(lengths.values())) + 1)


def _axis_label(name: str, label: str, steps: np.ndarray) -> str:
    """With what of the training is not among ``steps``."""
    gaps = np.unique(np.diff(steps))
    since = " after the warm start" if name in WARM_STARTED else ""
    return f"{label}{since}" + (f", one in {gaps[0]:g}" if len(gaps) == 1 and gaps[0] > 1 else "")


def _quantities(history: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Curves by what they measure: ``{"loss": {"train": …, "validation": …}, …}``, the losses first."""
    quantities: dict[str, dict[str, np.ndarray]] = {}
    for key, values in history.items():
        if key in STEPS:
            continue
        prefix, _, rest = key.partition("_")
        part, quantity = (prefix, rest) if prefix in PARTS and rest else ("", key)
        quantities.setdefault(quantity, {})[part] = np.asarray(values, dtype=float)
    return dict(sorted(quantities.items(), key=lambda item: item[0] != "loss"))


def _panel(ax: Axes, steps: np.ndarray, curves: Mapping[str, np.ndarray]) -> None:
    from matplotlib.ticker import MaxNLocator

    for part, values in curves.items():
        label, color = PARTS.get(part, (None, INK))
        there = np.isfinite(values)  # what is looked at now and then is missing in between
        few = there.sum() <= 40
        ax.plot(steps[there], values[there], color=color, label=label, linewidth=1.2, marker="." if few else None)
    if any(curves):
        ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", linewidth=0.4, alpha=0.5)
    ax.margins(x=0.02)
    ax.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
