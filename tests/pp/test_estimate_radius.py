from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData, read_h5ad
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

import nichekd as nk


def cells(xy, **obs) -> AnnData:
    obs = obs or {"cell": [str(i) for i in range(len(xy))]}
    return AnnData(obs=obs, obsm={"spatial": np.asarray(xy, dtype=float)})


def mean_count(xy, radius, n=40_000, seed=123) -> float:
    """By the design's words, with locations of its own: the box, where a cell lies within three median distances."""
    tree = cKDTree(xy)
    reach = 3 * np.median(tree.query(xy, k=2)[0][:, 1])
    places = np.random.default_rng(seed).uniform(xy.min(axis=0), xy.max(axis=0), (n, 2))
    places = places[tree.query(places)[0] <= reach]
    return float(tree.query_ball_point(places, radius, return_length=True).mean())


SHAPES = {
    "strewn": lambda rng: rng.uniform(0, 1000, (5_000, 2)),
    "clumps and voids": lambda rng: (rng.normal(0, 40, (40, 100, 2)) + rng.uniform(0, 3000, (40, 1, 2))).reshape(-1, 2),
    "ring": lambda rng: _ring(rng, 4_000),
    "far from the origin": lambda rng: rng.uniform(-1e6, -1e6 + 700, (3_000, 2)),
    "lattice": lambda _: 10.0 * np.stack(np.meshgrid(np.arange(60), np.arange(60)), axis=-1).reshape(-1, 2),
}


def _ring(rng, n):
    angle, distance = rng.uniform(0, 2 * np.pi, n), 1000 + rng.normal(0, 30, n)
    return np.column_stack([distance * np.cos(angle), distance * np.sin(angle)])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("target", [5, 50])
def test_meets_the_target_within_two_percent(shape, target):
    xy = SHAPES[shape](np.random.default_rng(0))
    radius = nk.pp.estimate_radius(cells(xy), n_neighbors=target)
    assert mean_count(xy, radius) == pytest.approx(target, rel=0.02)


def test_meets_the_target_on_the_bundled_section(pancreas_cells):
    adata = pancreas_cells
    nk.pp.split(adata, mpp=0.274)
    radius = nk.pp.estimate_radius(adata)
    train = adata.obsm["spatial"][adata.obs["split"] == "train"].astype(float)
    assert mean_count(train, radius, n=100_000) == pytest.approx(50, rel=0.02)


def test_strewn_cells_by_the_formula():
    """At density d, π r² d cells: r = sqrt(50 / π d), and a little more for the edges."""
    xy = np.random.default_rng(0).uniform(0, 3000, (90_000, 2))
    assert nk.pp.estimate_radius(cells(xy)) == pytest.approx(np.sqrt(50 / np.pi / 0.01), rel=0.02)


@given(factor=st.floats(0.01, 100), shift=st.floats(-1e4, 1e4))
@settings(max_examples=8, deadline=None)
def test_scales_with_the_tissue(factor, shift):
    xy = np.random.default_rng(0).uniform(0, 100, (500, 2))
    radius = nk.pp.estimate_radius(cells(xy), n_neighbors=10)
    assert nk.pp.estimate_radius(cells(factor * xy + shift), n_neighbors=10) == pytest.approx(factor * radius, rel=0.02)


def test_grows_with_the_target():
    adata = cells(np.random.default_rng(0).uniform(0, 100, (300, 2)))
    radii = [nk.pp.estimate_radius(adata, n_neighbors=n) for n in (1, 1.5, 10, 100, 299)]
    assert np.all(np.diff(radii) > 0)


def test_only_training_cells_count():
    rng = np.random.default_rng(0)
    xy = np.vstack([rng.uniform(0, 500, (1_000, 2)), rng.uniform(0, 500, (3_000, 2))])
    split = ["train"] * 1_000 + ["test"] * 2_000 + ["buffer"] * 1_000
    radius = nk.pp.estimate_radius(cells(xy, split=split))
    assert radius == nk.pp.estimate_radius(cells(xy[:1_000]))
    assert nk.pp.estimate_radius(cells(xy, split=split), split_key=None) < radius


def test_one_stray_cell_far_away_changes_nothing():
    xy = np.random.default_rng(0).uniform(0, 500, (2_000, 2))
    stray = np.vstack([xy, [[1e7, 1e7]]])
    assert nk.pp.estimate_radius(cells(stray)) == pytest.approx(nk.pp.estimate_radius(cells(xy)), rel=0.02)


def test_cells_on_a_line():
    """One cell every 10 µm: a stretch of 2 r holds r / 5 cells."""
    line = np.column_stack([10.0 * np.arange(2_000), np.zeros(2_000)])
    assert nk.pp.estimate_radius(cells(line), n_neighbors=20) == pytest.approx(100, rel=0.02)


def test_libraries_have_coordinates_of_their_own():
    rng = np.random.default_rng(0)
    one, other = rng.uniform(0, 500, (2, 2_000, 2))
    adata = cells(np.vstack([one, other]), slide=["a"] * 2_000 + ["b"] * 2_000)
    alone = nk.pp.estimate_radius(cells(one))
    assert nk.pp.estimate_radius(adata, library_key="slide") == pytest.approx(alone, rel=0.02)
    assert nk.pp.estimate_radius(adata) < 0.8 * alone


def test_what_is_written(tmp_path):
    adata = cells(np.random.default_rng(0).uniform(0, 500, (2_000, 2)))
    radius = nk.pp.estimate_radius(adata)
    assert type(radius) is float
    assert type(adata.uns["nichekd"]["radius"]) is float
    assert adata.uns["nichekd"]["radius"] == radius
    noted = adata.uns["nichekd"]["estimate_radius"]
    assert noted["mean_count"] == pytest.approx(50, rel=0.02)
    assert (noted["n_neighbors"], noted["seed"]) == (50, 0)
    adata.write_h5ad(tmp_path / "x.h5ad")
    assert read_h5ad(tmp_path / "x.h5ad").uns["nichekd"]["radius"] == radius


def test_seed_draws_the_locations():
    adata = cells(np.random.default_rng(0).uniform(0, 500, (2_000, 2)))
    radii = [nk.pp.estimate_radius(adata, seed=seed) for seed in (0, 0, 1)]
    assert radii[0] == radii[1] != radii[2]
    assert radii[0] == pytest.approx(radii[2], rel=0.01)


# what goes wrong


@pytest.mark.parametrize("target", [0, 0.5, -3, 100, 101, np.nan, np.inf])
def test_target_out_of_range(target):
    adata = cells(np.random.default_rng(0).uniform(0, 100, (100, 2)))
    with pytest.raises(ValueError, match=rf"n_neighbors={target:g} is out of range: there are 100 training cells"):
        nk.pp.estimate_radius(adata, n_neighbors=target)


@pytest.mark.parametrize("target", ["50", None, [5]])
def test_target_that_is_no_number(target):
    adata = cells(np.random.default_rng(0).uniform(0, 100, (100, 2)))
    with pytest.raises(TypeError, match="n_neighbors= is .*it has to be a number"):
        nk.pp.estimate_radius(adata, n_neighbors=target)


def test_target_that_no_library_has_cells_for():
    xy = np.random.default_rng(0).uniform(0, 100, (100, 2))
    adata = cells(xy, slide=np.repeat(["a", "b"], 50))
    with pytest.raises(ValueError, match="No radius holds 60 training cells"):
        nk.pp.estimate_radius(adata, n_neighbors=60, library_key="slide")


def test_missing_columns():
    adata = cells(np.random.default_rng(0).uniform(0, 100, (100, 2)))
    with pytest.raises(KeyError, match=r"obs\['fold'\] is missing"):
        nk.pp.estimate_radius(adata, split_key="fold")
    with pytest.raises(KeyError, match=r"obs\['slide'\] is missing; obs has \['cell'\].*library_key="):
        nk.pp.estimate_radius(adata, library_key="slide")
    adata.obs["slide"] = ["a"] * 99 + [None]
    with pytest.raises(ValueError, match=r"obs\['slide'\] is missing for 1 of 100 cells"):
        nk.pp.estimate_radius(adata, library_key="slide")


def test_bad_centres():
    adata = cells(np.random.default_rng(0).uniform(0, 100, (100, 2)))
    adata.obsm["spatial"][0] = adata.obsm["spatial"][1]
    with pytest.raises(ValueError, match="1 duplicate"):
        nk.pp.estimate_radius(adata)
    adata.obsm["spatial"][0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite for 1 of 100"):
        nk.pp.estimate_radius(adata)


def test_no_training_cell():
    adata = cells([[0, 0], [1, 1]], split=["test", "buffer"])
    with pytest.raises(ValueError, match="no 'train' cell"):
        nk.pp.estimate_radius(adata)


def test_centres_in_pixels_are_suspected():
    xy = np.random.default_rng(0).uniform(0, 3000, (2_000, 2))
    with pytest.warns(UserWarning, match="pixels, not µm"):
        nk.pp.estimate_radius(cells(xy))
