from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.spatial import cKDTree
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import nichekd as nk


@pytest.fixture(scope="module")
def sdata():
    return nk.datasets.simulate(2000, K=4, seed=1)


@pytest.fixture(scope="module")
def adata(sdata):
    return sdata["table"]


@pytest.fixture(scope="module")
def pixels(sdata):
    return sdata["he"].data.compute()


def expression(adata):
    counts = adata.X.toarray().astype(float)
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 100)


def accuracy(features, labels):
    half = len(labels) // 2
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    return model.fit(features[:half], labels[:half]).score(features[half:], labels[half:])


def test_holds_what_it_was_asked_for():
    sdata = nk.datasets.simulate(321, K=3, seed=5, n_genes=40, n_cell_types=6, mpp=0.5)
    adata = sdata["table"]
    assert adata.shape == (321, 40)
    assert adata.obs["niche_true"].cat.categories.tolist() == ["0", "1", "2"]
    assert adata.obs["cell_type"].cat.categories.tolist() == [f"type_{i}" for i in range(6)]
    assert adata.uns["dataset"]["composition"].shape == (3, 6)
    height, width = sdata["he"].shape[1:]
    assert ((adata.obsm["spatial"] > 0) & (adata.obsm["spatial"] < np.array([width, height]) * 0.5)).all()
    assert len(sdata["cells"]) == 321


def test_same_seed_same_object_other_seed_another():
    one, same, other = (nk.datasets.simulate(300, K=3, seed=seed) for seed in (7, 7, 8))
    pd.testing.assert_frame_equal(one["table"].obs, same["table"].obs)
    np.testing.assert_array_equal(one["table"].obsm["spatial"], same["table"].obsm["spatial"])
    assert (one["table"].X != same["table"].X).nnz == 0
    np.testing.assert_array_equal(one["he"].data.compute(), same["he"].data.compute())
    assert not np.array_equal(one["table"].obsm["spatial"], other["table"].obsm["spatial"])


def test_image_and_resolution_change_no_cell():
    with_image = nk.datasets.simulate(300, K=3, mpp=0.5)
    without = nk.datasets.simulate(300, K=3, image=False)
    assert not without.images
    pd.testing.assert_frame_equal(with_image["table"].obs, without["table"].obs)
    np.testing.assert_array_equal(with_image["table"].obsm["spatial"], without["table"].obsm["spatial"])
    assert (with_image["table"].X != without["table"].X).nnz == 0


def test_global_random_state_is_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    nk.datasets.simulate(100, K=2)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_cells_are_as_dense_as_tissue_and_never_touch(adata):
    xy = adata.obsm["spatial"]
    nearest = cKDTree(xy).query(xy, k=2)[0][:, 1]
    assert nearest.min() > 6
    assert 3000 < len(xy) / np.prod(np.ptp(xy, axis=0) / 1000) < 6000


@pytest.mark.parametrize(("n_cells", "K"), [(2000, 4), (5000, 5), (5000, 10), (40_000, 10)])
def test_every_niche_is_in_every_strip(n_cells, K):
    adata = nk.datasets.simulate(n_cells, K=K, image=False)["table"]
    y = adata.obsm["spatial"][:, 1]
    strip = np.minimum((y - y.min()) / np.ptp(y) * 4, 3).astype(int)
    cells = pd.crosstab(strip, adata.obs["niche_true"])
    assert cells.shape == (4, K)
    assert cells.to_numpy().min() >= 0.2 * n_cells / (4 * K)


def test_niches_are_smooth_domains(adata):
    niche = adata.obs["niche_true"].to_numpy()
    near = cKDTree(adata.obsm["spatial"]).query(adata.obsm["spatial"], k=7)[1][:, 1:]
    assert (niche[near] == niche[:, None]).mean() > 0.85


def test_cell_types_follow_the_composition(adata):
    found = pd.crosstab(adata.obs["niche_true"], adata.obs["cell_type"], normalize="index").to_numpy()
    assert np.abs(found - adata.uns["dataset"]["composition"]).max() < 0.06
    commonest = np.sort(np.argsort(adata.uns["dataset"]["composition"], axis=1)[:, -2:], axis=1)
    assert len(np.unique(commonest, axis=0)) == 4


def test_planted_niches_can_be_found_from_expression(adata):
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    near = cKDTree(adata.obsm["spatial"]).query(adata.obsm["spatial"], k=50)[1]
    means = PCA(10, random_state=0).fit_transform(expression(adata))[near].mean(axis=1)
    found = KMeans(4, n_init=5, random_state=0).fit_predict(means)
    assert adjusted_rand_score(adata.obs["niche_true"], found) > 0.6


def test_counts_are_overdispersed_counts(adata):
    assert adata.X.dtype == np.uint16
    total = np.asarray(adata.X.sum(axis=1)).ravel()
    assert total.min() > 0
    assert 60 < np.median(total) < 110
    counts = adata.X.toarray()[adata.obs["cell_type"] == "type_0"].astype(float)
    assert (counts.var(axis=0) > counts.mean(axis=0)).mean() > 0.9


def test_morphology_tells_cell_types_apart_only_weakly(adata, pixels):
    cell_type = adata.obs["cell_type"].cat.codes.to_numpy()
    looks = []
    for column, row in (adata.obsm["spatial"] / 0.25).astype(int):
        window = pixels[:, row - 20 : row + 20, column - 20 : column + 20].reshape(3, -1).astype(float)
        looks.append([*window.mean(axis=1), *window.std(axis=1), *np.percentile(window[0], [10, 50, 90])])
    by_looks, by_expression = accuracy(np.array(looks), cell_type), accuracy(expression(adata), cell_type)
    assert by_expression > 0.85
    assert by_looks < 0.5 * by_expression
    assert by_looks > np.bincount(cell_type).max() / len(cell_type) + 0.02  # weakly, but they do


def test_nuclei_are_purple_ground_is_pink_glass_is_white(adata, pixels):
    column, row = (adata.obsm["spatial"] / 0.25).astype(int).T
    red, green, blue = pixels[:, row, column].mean(axis=1)
    assert blue > red > green
    assert red < 160
    red, green, blue = np.median(pixels[:, 300:-300, 300:-300], axis=(1, 2))
    assert red > blue > green
    assert pixels[:, :10, :10].mean() > 235


class TestDrawnOnDemand:
    @pytest.fixture
    def lazy(self, monkeypatch):
        monkeypatch.setattr("nichekd.datasets._simulate.AT_ONCE_PX", 0)
        return nk.datasets.simulate(2000, K=4, seed=1)["he"].data

    def test_same_pixels_as_drawn_at_once(self, lazy, pixels):
        assert lazy.npartitions > 10
        np.testing.assert_array_equal(lazy.compute(scheduler="threads", num_workers=3), pixels)

    def test_no_matter_how_a_region_is_cut(self, lazy, pixels):
        rng = np.random.default_rng(0)
        for _ in range(10):
            y, x = rng.integers(0, np.array(pixels.shape[1:]) - 1)
            height, width = rng.integers(1, 300, 2)
            cut = (slice(None), slice(y, y + height), slice(x, x + width))
            np.testing.assert_array_equal(lazy[cut].compute(scheduler="synchronous"), pixels[cut])

    def test_other_chunks_other_order(self, lazy, pixels):
        rechunked = lazy.rechunk((3, 700, 333))
        rows = [
            rechunked.blocks[0, i].compute(scheduler="synchronous") for i in reversed(range(rechunked.numblocks[1]))
        ]
        np.testing.assert_array_equal(np.concatenate(rows[::-1], axis=1), pixels)

    def test_steps_and_single_pixels(self, lazy, pixels):
        np.testing.assert_array_equal(lazy[1, 500:900:7, 1000:400:-9].compute(), pixels[1, 500:900:7, 1000:400:-9])
        assert lazy[2, 700, -1].compute() == pixels[2, 700, -1]
        np.testing.assert_array_equal(lazy[:, -300].compute(), pixels[:, -300])
        assert lazy[:, 5:5].compute().shape == (3, 0, pixels.shape[2])

    def test_can_be_sent_to_another_process(self, lazy, pixels):
        import cloudpickle

        back = cloudpickle.loads(cloudpickle.dumps(lazy))
        np.testing.assert_array_equal(back[:, 600:700, 600:700].compute(), pixels[:, 600:700, 600:700])


# spatialdata's writer, on its way to ome-zarr's next version
@pytest.mark.filterwarnings("ignore:Call to deprecated class Scaler:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning")
def test_survives_being_written(tmp_path):
    import spatialdata

    sdata = nk.datasets.simulate(60, K=2)
    sdata.write(tmp_path / "simulated.zarr")
    back = spatialdata.read_zarr(tmp_path / "simulated.zarr")
    pd.testing.assert_frame_equal(back["table"].obs, sdata["table"].obs)
    np.testing.assert_array_equal(back["he"].data.compute(), sdata["he"].data.compute())


def test_large_sections_take_seconds():
    import time

    started = time.perf_counter()
    adata = nk.datasets.simulate(100_000, K=10, n_genes=50, image=False)["table"]
    assert adata.n_obs == 100_000
    assert time.perf_counter() - started < 30


@pytest.mark.parametrize("n_cells", [2, 3, 10, 37])
def test_smallest_tissues(n_cells):
    sdata = nk.datasets.simulate(n_cells, K=2)
    assert sdata["table"].n_obs == n_cells
    assert np.isfinite(sdata["table"].obsm["spatial"]).all()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"K": 1}, "K is 1; it has to be at least 2"),
        ({"n_cells": 10, "K": 11}, "at most the number of cells, 10"),
        ({"n_cells": 1}, "at least 2"),
        ({"n_cells": 0}, "n_cells is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"n_cell_types": 1}, "at least 2 cell types"),
        ({"n_genes": 3}, "a gene for each"),
        ({"n_cell_types": 3, "K": 7}, "only 6 niches"),
        ({"mpp": 0}, "mpp is 0"),
        ({"mpp": float("nan")}, "mpp is nan"),
    ],
)
def test_impossible_values(arguments, match):
    with pytest.raises(ValueError, match=match):
        nk.datasets.simulate(**arguments)


@pytest.mark.parametrize("arguments", [{"n_cells": 10.5}, {"K": "5"}, {"K": True}, {"seed": None}])
def test_numbers_have_to_be_whole(arguments):
    with pytest.raises(TypeError, match=f"{next(iter(arguments))} is .* whole number"):
        nk.datasets.simulate(**arguments)
