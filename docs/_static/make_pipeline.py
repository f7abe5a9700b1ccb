"""Draw ``pipeline.png``: ``python docs/_static/make_pipeline.py``."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle

OUT = Path(__file__).with_name("pipeline.png")
INK, GREY = "#222222", "#8a8a8a"
TEACHER, STUDENT, SOFT = "#2f6f9f", "#b0417b", {"#2f6f9f": "#e6eff6", "#b0417b": "#f8e8f0"}
NICHES = ("#4c9a6a", "#d98c3f", "#7a6fb8", "#c8b23c")
TOP, BOTTOM, MIDDLE = 3.55, 0.95, 2.25


def tissue(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Centres in a unit square, none near another, and the niche of each."""
    xy = np.empty((0, 2))
    for point in rng.random((4000, 2)):
        if len(xy) == 0 or np.linalg.norm(xy - point, axis=1).min() > 0.062:
            xy = np.vstack([xy, point])
    wave = xy[:, 1] + 0.12 * np.sin(5 * xy[:, 0])
    niche = np.digitize(wave, [0.27, 0.55, 0.8])
    return xy, niche


def panel(ax, x: float, y: float, size: float, xy, colors, *, ground: str, area: float = 9, edge: str = INK) -> None:
    ax.add_patch(Rectangle((x, y), size, size, fc=ground, ec=edge, lw=0.8, zorder=1))
    inner = x + 0.03 * size, y + 0.03 * size
    ax.scatter(inner[0] + xy[:, 0] * size * 0.94, inner[1] + xy[:, 1] * size * 0.94, s=area, c=colors, lw=0, zorder=2)


def box(ax, x: float, y: float, text: str, note: str, color: str, *, width: float = 1.5, frozen: bool = False) -> None:
    shape = FancyBboxPatch(
        (x - width / 2, y - 0.36), width, 0.72, boxstyle="round,pad=0,rounding_size=0.1",
        fc=SOFT[color], ec=color, lw=1.2, ls="--" if frozen else "-", zorder=3,
    )  # fmt: skip
    ax.add_patch(shape)
    ax.text(x, y + 0.12, text, ha="center", va="center", fontsize=9, color=INK, weight="bold", zorder=4)
    ax.text(x, y - 0.15, note, ha="center", va="center", fontsize=7, color="#555555", zorder=4)


def arrow(ax, a, b, color: str = GREY, *, lw: float = 1.2, bend: float = 0.0, style: str = "-|>") -> None:
    kind = f"arc3,rad={bend}"
    ax.add_patch(
        FancyArrowPatch(a, b, arrowstyle=style, mutation_scale=9, color=color, lw=lw, connectionstyle=kind, zorder=2)
    )


def neighborhood(ax, x: float, y: float, colors: list[str], rng: np.random.Generator) -> None:
    """A disc of cells with one in the middle."""
    ax.add_patch(Circle((x, y), 0.46, fc="white", ec=GREY, lw=0.9, ls=(0, (3, 2)), zorder=2))
    points = np.empty((0, 2))
    for point in (rng.random((500, 2)) - 0.5) * 0.8:
        if np.linalg.norm(point) < 0.38 and np.linalg.norm(np.vstack([points, [0, 0]]) - point, axis=1).min() > 0.145:
            points = np.vstack([points, point])
    picked = [colors[i % len(colors)] for i in range(len(points))]
    ax.scatter(x + points[:, 0], y + points[:, 1], s=26, c=picked, lw=0, zorder=3)
    ax.scatter([x], [y], s=60, c=INK, marker="*", lw=0, zorder=4)


def bars(ax, x: float, y: float, values: list[float]) -> None:
    for i, (value, color) in enumerate(zip(values, NICHES, strict=True)):
        ax.add_patch(Rectangle((x + 0.15 * i, y - 0.25), 0.11, 0.6 * value, fc=color, ec="none", zorder=3))
    ax.plot([x - 0.04, x + 0.62], [y - 0.25] * 2, color=INK, lw=0.8, zorder=4)


def row(ax, y: float, color: str, texts: dict[str, tuple[str, str]], cells: list[str], answer: list[float]) -> None:
    """Features, neighborhood, network, answer."""
    rng = np.random.default_rng(3)
    box(ax, 2.95, y, *texts["features"], color, frozen=True)
    neighborhood(ax, 4.7, y, cells, rng)
    box(ax, 6.55, y, *texts["network"], color, frozen=texts["network"][0] == "Teacher")
    bars(ax, 8.0, y, answer)
    arrow(ax, (1.62, y), (2.15, y))
    arrow(ax, (3.75, y), (4.2, y))
    arrow(ax, (5.21, y), (5.75, y))
    arrow(ax, (7.35, y), (7.88, y))


def main() -> None:
    plt.rcParams |= {"font.family": "DejaVu Sans", "font.size": 8}
    rng = np.random.default_rng(7)
    xy, niche = tissue(rng)
    fig, ax = plt.subplots(figsize=(10.4, 4.7), layout="constrained")
    ax.set(xlim=(0.1, 10.45), ylim=(0.05, 4.75), aspect="equal")
    ax.set_axis_off()

    genes = np.array(["#1d3557", "#457b9d", "#a8c5da", "#e0a458", "#c44536"])
    panel(ax, 0.3, TOP - 0.65, 1.3, xy, genes[(niche + rng.integers(0, 3, len(xy))) % 5], ground="#f4f6f8")
    panel(ax, 0.3, BOTTOM - 0.65, 1.3, xy, "#5b3a7d", ground="#f3cfdd")
    for y, name in ((TOP, "Gene expression"), (BOTTOM, "H&E")):
        ax.text(0.95, y + 0.75, name, ha="center", va="bottom", fontsize=9, color=INK, weight="bold")
    arrow(ax, (0.95, TOP - 0.7), (0.95, BOTTOM + 1.0), style="<|-|>")
    ax.text(1.05, MIDDLE + 0.02, "the same\nsection", ha="left", va="center", fontsize=7, color="#555555")

    row(
        ax, TOP, TEACHER,
        {"features": ("scVI", "counts → 10 numbers a cell"), "network": ("Teacher", "NOLAN, without labels")},
        ["#1d3557", "#457b9d", "#e0a458", "#457b9d", "#a8c5da"], [0.95, 0.3, 0.12, 0.06],
    )  # fmt: skip
    row(
        ax, BOTTOM, STUDENT,
        {"features": ("Image encoder", "224 px around a cell"), "network": ("Student", "learns the answers")},
        ["#8d5aa5", "#6d4391", "#b58fc4", "#5b3a7d", "#a07ab5"], [0.8, 0.42, 0.16, 0.1],
    )  # fmt: skip
    ax.text(4.7, MIDDLE, "the same neighborhood:\ncells within a radius\nof the centre cell",
            ha="center", va="center", fontsize=7, color="#555555")  # fmt: skip
    for sign, y in ((-1, TOP), (1, BOTTOM)):
        arrow(ax, (4.7, MIDDLE - sign * 0.3), (4.7, y + sign * 0.53), lw=0.8)
        arrow(ax, (8.29, y + sign * 0.42), (8.29, MIDDLE - sign * 0.24), INK)
    ax.text(8.29, MIDDLE, "KL divergence", ha="center", va="center", fontsize=9, weight="bold", color=INK)
    arrow(ax, (7.55, MIDDLE - 0.05), (6.55, BOTTOM + 0.42), STUDENT, bend=0.25, lw=1.5)
    ax.text(6.72, MIDDLE - 0.18, "trains", ha="right", va="center", fontsize=8, color=STUDENT, style="italic")
    ax.text(8.29, TOP + 0.5, "K niches", ha="center", va="bottom", fontsize=8, color="#555555")

    panel(ax, 9.1, BOTTOM - 0.65, 1.3, xy, [NICHES[i] for i in niche], ground="white")
    arrow(ax, (8.68, BOTTOM), (9.04, BOTTOM))
    ax.text(
        9.75, BOTTOM + 0.75, "Niches on\na new slide", ha="center", va="bottom", fontsize=9, color=INK, weight="bold"
    )
    ax.plot([9.0, 9.25], [TOP + 0.22] * 2, color=INK, lw=1.2, ls="--")
    ax.plot([9.0, 9.25], [TOP - 0.08] * 2, color=INK, lw=1.2)
    ax.text(9.35, TOP + 0.22, "frozen", va="center", fontsize=7.5, color="#555555")
    ax.text(9.35, TOP - 0.08, "learns", va="center", fontsize=7.5, color="#555555")
    fig.savefig(OUT, dpi=200, facecolor="white")


if __name__ == "__main__":
    main()
