from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

mpl.use("Agg")

MPP = 0.5
SIDE = 200.0  # µm
RED, BLUE = (200, 40, 60), (60, 40, 200)


@pytest.fixture(autouse=True)
def _no_figure_is_left_open():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


@pytest.fixture
def cells() -> AnnData:
    """400 cells on a jittered grid of 200 × 200 µm; strips of 50 µm, the second is test; four niches in quarters.

    The student knows the teacher's niches by name but for every tenth cell; the baseline calls them by other names,
    and has one more.
    """
    rng = np.random.default_rng(0)
    x, y = (it.ravel() for it in np.meshgrid(np.arange(5, 200, 10.0), np.arange(5, 200, 10.0)))
    xy = np.c_[x, y] + rng.uniform(-3, 3, (400, 2))
    niche = 2 * (xy[:, 1] >= 100).astype(int) + (xy[:, 0] >= 100)
    student = np.where(np.arange(400) % 10 == 0, (niche + 1) % 4, niche)
    baseline = np.where(xy[:, 0] < 20, "e", np.array(list("dcba"))[niche])
    strip = (xy[:, 1] // 50).astype(int)
    split = np.where(strip == 1, "test", "train").astype("<U6")
    split[(np.abs(xy[:, 1] - 50) < 8) | (np.abs(xy[:, 1] - 100) < 8)] = "buffer"
    proba = rng.dirichlet(np.ones(4), 400) * 0.4
    proba[np.arange(400), student] += 0.6
    obs = pd.DataFrame(
        {
            "split": pd.Categorical(split, categories=["train", "test", "buffer"]),
            "niche_teacher": pd.Categorical(niche.astype(str)),
            "niche": pd.Categorical(student.astype(str)),
            "niche_histology_leiden": pd.Categorical(baseline),
            "niche_entropy": -(proba * np.log(proba)).sum(axis=1),
            "cell_type": pd.Categorical(np.array(["T", "B", "tumour"])[(niche + rng.integers(0, 2, 400)) % 3]),
        },
        index=[f"cell{i}" for i in range(400)],
    )
    adata = AnnData(obs=obs, obsm={"spatial": xy, "student_proba": proba.astype(np.float32)})
    adata.uns["nichekd"] = {"radius": 25.0}
    return adata


def _with_slide(cells: AnnData, to_um: np.ndarray | None = None, scale_factors: list[int] | None = None):
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Affine, Identity

    to_um = np.diag([MPP, MPP, 1.0]) if to_um is None else to_um
    side = int(SIDE / MPP)
    row, column = np.mgrid[:side, :side] + 0.5
    left = (np.c_[column.ravel(), row.ravel(), np.ones(side**2)] @ to_um.T)[:, 0].reshape(side, side) < SIDE / 2
    pixels = np.where(left[None], np.array(RED)[:, None, None], np.array(BLUE)[:, None, None]).astype(np.uint8)
    adata = cells.copy()
    adata.obs["region"], adata.obs["instance"] = pd.Categorical(["cells"] * adata.n_obs), np.arange(adata.n_obs)
    image = Image2DModel.parse(
        pixels,
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        transformations={"global": Affine(to_um, input_axes=("x", "y"), output_axes=("x", "y"))},
        scale_factors=scale_factors,
        chunks=(3, 64, 64),
    )
    circles = ShapesModel.parse(adata.obsm["spatial"], geometry=0, radius=4.0, transformations={"global": Identity()})
    table = TableModel.parse(adata, region="cells", region_key="region", instance_key="instance")
    return SpatialData(images={"he": image}, shapes={"cells": circles}, tables={"table": table})


@pytest.fixture
def with_slide():
    """Puts cells on a slide that is red left of x = 100 µm and blue right of it; ``to_um`` takes its pixels there."""
    return _with_slide


@pytest.fixture
def slide(cells):
    return _with_slide(cells)


@pytest.fixture
def panels():
    """The panels of a figure that are seen, by title."""
    return lambda fig: {ax.get_title() or ax.get_title("left"): ax for ax in fig.axes if ax.axison}


@pytest.fixture
def color_at():
    """What is drawn at a place, in µm, of a panel."""

    def look(ax, x: float, y: float) -> tuple[int, ...]:
        fig = ax.figure.figure
        fig.canvas.draw()
        drawn = np.asarray(fig.canvas.buffer_rgba())
        column, row = ax.transData.transform((x, y))
        return tuple(int(it) for it in drawn[int(drawn.shape[0] - row), int(column), :3])

    return look


@pytest.fixture
def legend():
    """Of a figure, colour by name."""

    def read(fig):
        (found,) = fig.legends + [ax.get_legend() for ax in fig.axes if ax.get_legend() is not None]
        names = [text.get_text() for text in found.get_texts()]
        return dict(zip(names, [handle.get_markerfacecolor() for handle in found.legend_handles], strict=True))

    return read
