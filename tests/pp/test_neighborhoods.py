"""The radius graph; the oracles are all pairs at once, and squidpy."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import spatialdata
from anndata import AnnData, read_h5ad
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import nichekd as nk
from nichekd.pp._radius_graph import radius_graph


def cells(xy, **obs) -> AnnData:
    obs = obs or {"cell": [str(i) for i in range(len(xy))]}
    return AnnData(obs=obs, obsm={"spatial": np.asarray(xy, dtype=float)})


def brute(xy, radius, group) -> tuple[np.ndarray, np.ndarray]:
    """Which pairs, and their distances, (n, n)."""
    delta = xy[:, None] - xy[None]
    squared = (delta**2).sum(axis=2)
    near = (squared <= radius * radius) & (group[:, None] == group) & (group >= 0) & ~np.eye(len(xy), dtype=bool)
    return near, np.sqrt(squared)


def check(xy, radius, group) -> None:
    indptr, indices, distances = radius_graph(xy, radius, group)
    near, distance = brute(xy, radius, group)
    rows, columns = np.nonzero(near)
    np.testing.assert_array_equal(np.diff(indptr), near.sum(axis=1))
    np.testing.assert_array_equal(indices, columns)  # sorted in every row, for nonzero is
    np.testing.assert_array_equal(distances, distance[rows, columns].astype(np.float32))
    assert indices.dtype == indptr.dtype == np.int32
    assert distances.dtype == np.float32


FLOATS = st.floats(-300, 300, width=32)
LATTICE = st.integers(-20, 20).map(float)


@given(
    xy=st.integers(1, 40).flatmap(lambda n: arrays(float, (n, 2), elements=st.one_of(FLOATS, LATTICE))),
    radius=st.one_of(st.floats(0.01, 500), st.integers(1, 15).map(float), st.sampled_from([np.sqrt(2), np.sqrt(5)])),
    seed=st.integers(0, 10),
)
@settings(max_examples=150, deadline=None)
@example(xy=np.array([[0.0, 0.0], [3.0, 4.0]]), radius=5.0, seed=0)
@example(xy=np.array([[0.1, 0.0], [0.4, 0.0]]), radius=0.3, seed=0)
def test_graph_is_that_of_all_pairs(xy, radius, seed):
    """Also at exactly the radius, on lattices, for negative coordinates, and in any groups."""
    check(xy, radius, np.random.default_rng(seed).integers(-1, 3, len(xy)))
    check(xy, radius, np.zeros(len(xy), dtype=np.int64))


@pytest.mark.parametrize("spread", [0.01, 1.0, 100.0])
def test_clustered_points(spread):
    rng = np.random.default_rng(0)
    xy = (rng.normal(0, spread, (8, 60, 2)) + rng.uniform(-1e5, 1e5, (8, 1, 2))).reshape(-1, 2)
    check(xy, 2.0, np.zeros(len(xy), dtype=np.int64))


def test_radius_beyond_everything_and_below():
    xy = np.random.default_rng(0).uniform(0, 10, (50, 2))
    for radius in (1e-200, 1e-9, 1e9, 1e200):
        check(xy, radius, np.zeros(50, dtype=np.int64))


def test_coordinates_too_far_apart_for_bins_as_small_as_the_radius():
    xy = np.array([[0.0, 0.0], [0.0, 1e-3], [1e15, 1e15], [1e15, 0.0]])
    check(xy, 2e-3, np.zeros(4, dtype=np.int64))


def test_nobody():
    check(np.zeros((3, 2)) + [[0.0], [1.0], [2.0]], 5.0, np.full(3, -1))


# the public function


def test_by_hand():
    adata = cells([[0, 0], [3, 4], [6, 8], [100, 0]])
    nk.pp.neighborhoods(adata, radius=5)
    d = adata.obsp["spatial_distances"]
    np.testing.assert_array_equal(d.toarray(), [[0, 5, 0, 0], [5, 0, 5, 0], [0, 5, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(adata.obsp["spatial_connectivities"].toarray(), d.toarray() / 5)
    assert adata.obs["n_neighbors"].tolist() == [1, 2, 1, 0]
    assert d.dtype == adata.obsp["spatial_connectivities"].dtype == np.float32
    assert adata.uns["nichekd"]["radius"] == 5.0
    assert type(adata.uns["nichekd"]["radius"]) is float


def test_one_cell():
    adata = cells([[1, 1]])
    nk.pp.neighborhoods(adata, radius=5)
    assert adata.obsp["spatial_distances"].nnz == 0


def test_same_graph_and_keys_as_squidpy(pancreas_cells):
    import squidpy as sq

    ours, theirs = pancreas_cells, pancreas_cells.copy()
    radius = nk.pp.estimate_radius(ours)
    nk.pp.neighborhoods(ours)
    with pytest.warns(FutureWarning):
        sq.gr.spatial_neighbors(theirs, radius=radius, coord_type="generic")
    for key in ("spatial_connectivities", "spatial_distances"):
        one, other = ours.obsp[key], theirs.obsp[key].copy()
        other.eliminate_zeros()
        other.sort_indices()
        np.testing.assert_array_equal(one.indptr, other.indptr)
        np.testing.assert_array_equal(one.indices, other.indices)
        np.testing.assert_array_equal(one.data, other.data.astype(np.float32))
    one, other = (a.uns["spatial_neighbors"] for a in (ours, theirs))
    assert {k: v for k, v in one.items() if k != "params"} == {k: v for k, v in other.items() if k != "params"}
    assert one["params"].items() <= other["params"].items()


def test_squidpy_goes_on_with_it(pancreas_cells):
    import squidpy as sq

    nk.pp.neighborhoods(pancreas_cells, radius=40)
    pancreas_cells.obs["cell_type"] = pancreas_cells.obs["cell_type"].astype("category")
    sq.gr.nhood_enrichment(pancreas_cells, cluster_key="cell_type", n_perms=5, seed=0, show_progress_bar=False)
    assert np.isfinite(pancreas_cells.uns["cell_type_nhood_enrichment"]["zscore"]).all()


def test_never_across_the_split_and_none_for_the_buffer():
    xy = np.random.default_rng(0).uniform(0, 400, (900, 2))
    adata = cells(xy)
    nk.pp.split(adata, crop_px=40, mpp=0.5)
    nk.pp.neighborhoods(adata, radius=60)
    split = adata.obs["split"].to_numpy()
    group = np.array([{"train": 0, "test": 1, "buffer": -1}[s] for s in split])
    np.testing.assert_array_equal(adata.obsp["spatial_connectivities"].toarray() > 0, brute(xy, 60, group)[0])
    assert (adata.obs["n_neighbors"][split == "buffer"] == 0).all()
    nk.pp.neighborhoods(adata, radius=60, split_key=None)
    np.testing.assert_array_equal(
        adata.obsp["spatial_connectivities"].toarray() > 0, brute(xy, 60, np.zeros(900, dtype=int))[0]
    )


def test_never_across_libraries():
    """Two sections with the very same coordinates, their cells mixed up in the table."""
    xy = np.repeat(np.random.default_rng(0).uniform(0, 200, (200, 2)), 2, axis=0)
    adata = cells(xy, slide=np.tile(["b", "a"], 200), split=np.repeat(["train", "test"], 200))
    nk.pp.neighborhoods(adata, radius=40, library_key="slide")
    group = np.tile([0, 1], 200) + np.repeat([0, 2], 200)
    np.testing.assert_array_equal(adata.obsp["spatial_connectivities"].toarray() > 0, brute(xy, 40, group)[0])


def test_duplicates_within_a_library_are_refused():
    adata = cells([[0, 0], [0, 0], [1, 1], [1, 1]], slide=["a", "b", "a", "a"])
    with pytest.raises(ValueError, match="1 duplicate"):
        nk.pp.neighborhoods(adata, radius=4, library_key="slide")


def test_radius_given_known_or_estimated():
    adata = cells(np.random.default_rng(0).uniform(0, 400, (900, 2)))
    nk.pp.neighborhoods(adata)
    estimated = adata.uns["nichekd"]["estimate_radius"]["radius"]
    assert adata.uns["spatial_neighbors"]["params"]["radius"] == estimated
    nk.pp.neighborhoods(adata, radius=30)
    assert adata.uns["nichekd"]["radius"] == 30
    nk.pp.neighborhoods(adata)
    assert adata.uns["spatial_neighbors"]["params"]["radius"] == 30


def test_graph_is_the_same_on_one_thread_and_many():
    import numba

    xy = np.random.default_rng(0).uniform(0, 400, (2_000, 2))
    graphs = []
    for n in (1, numba.config.NUMBA_NUM_THREADS):
        numba.set_num_threads(n)
        graphs.append(radius_graph(xy, 30, np.zeros(2_000, dtype=np.int64)))
    for one, other in zip(*graphs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_each_matrix_can_be_pruned_alone():
    adata = cells(np.random.default_rng(0).uniform(0, 100, (200, 2)))
    nk.pp.neighborhoods(adata, radius=30)
    edges = adata.obsp["spatial_connectivities"].toarray()
    d = adata.obsp["spatial_distances"]
    d.data[d.data > 10] = 0
    d.eliminate_zeros()
    np.testing.assert_array_equal(adata.obsp["spatial_connectivities"].toarray(), edges)


def test_copy_and_reload(tmp_path):
    xy = np.random.default_rng(0).uniform(0, 100, (200, 2))
    adata = cells(xy)
    new = nk.pp.neighborhoods(adata, radius=20, copy=True)
    assert not adata.obsp
    assert "n_neighbors" not in adata.obs
    new.write_h5ad(tmp_path / "x.h5ad")
    again = read_h5ad(tmp_path / "x.h5ad")
    np.testing.assert_array_equal(again.obsp["spatial_distances"].toarray(), new.obsp["spatial_distances"].toarray())
    assert again.uns["spatial_neighbors"] == new.uns["spatial_neighbors"]

    sdata = nk.io.paired(adata, np.zeros((200, 200, 3), np.uint8), mpp=0.5)
    nk.pp.neighborhoods(sdata, radius=20)
    sdata.write(tmp_path / "x.zarr")
    table = spatialdata.read_zarr(tmp_path / "x.zarr")["table"]
    np.testing.assert_array_equal(table.obsp["spatial_distances"].toarray(), new.obsp["spatial_distances"].toarray())


def test_log_and_record(caplog):
    adata = cells(np.random.default_rng(0).uniform(0, 100, (200, 2)))
    with caplog.at_level(logging.INFO, logger="nichekd"):
        nk.pp.neighborhoods(adata, radius=20)
    assert "neighbors within 20.00 µm" in caplog.text
    noted = adata.uns["nichekd"]["neighborhoods"]
    assert noted["n_edges"] == adata.obsp["spatial_distances"].nnz
    assert noted["radius"] == 20


# what goes wrong


@pytest.mark.parametrize("radius", [0, -1.0, np.nan, np.inf])
def test_radius_that_is_none(radius):
    with pytest.raises(ValueError, match=r"radius=.* has to be a positive number of µm\. nk\.pp\.estimate_radius"):
        nk.pp.neighborhoods(cells([[0, 0], [1, 1]]), radius=radius)


@pytest.mark.parametrize("radius", ["30", [30.0], True])
def test_radius_that_is_no_number(radius):
    with pytest.raises(TypeError, match="radius= is .*it has to be a number"):
        nk.pp.neighborhoods(cells([[0, 0], [1, 1]]), radius=radius)


def test_copy_of_a_backed_table(tmp_path):
    adata = cells([[0, 0], [1, 1], [9, 9]])
    AnnData(np.ones((3, 2), dtype=np.float32), obsm=dict(adata.obsm)).write_h5ad(tmp_path / "cells.h5ad")
    backed = read_h5ad(tmp_path / "cells.h5ad", backed="r")
    made = nk.pp.neighborhoods(backed, radius=2, copy=True)
    assert made.obs["n_neighbors"].tolist() == [1, 1, 0]
    assert "n_neighbors" not in backed.obs
    backed.file.close()


def test_radius_too_small():
    adata = cells(np.random.default_rng(0).uniform(0, 1000, (200, 2)))
    with pytest.warns(UserWarning, match=r"of 200 cells have no neighbor within 1 µm.*estimate_radius"):
        nk.pp.neighborhoods(adata, radius=1)


def test_missing_columns():
    adata = cells([[0, 0], [1, 1]])
    with pytest.raises(KeyError, match=r"obs\['fold'\] is missing"):
        nk.pp.neighborhoods(adata, radius=4, split_key="fold")
    with pytest.raises(KeyError, match=r"obs\['slide'\] is missing"):
        nk.pp.neighborhoods(adata, radius=4, library_key="slide")
    del adata.obsm["spatial"]
    with pytest.raises(KeyError, match=r"obsm\['spatial'\] is missing"):
        nk.pp.neighborhoods(adata, radius=4)


def test_centres_in_pixels_are_suspected(pancreas_cells):
    pancreas_cells.obsm["spatial"] = pancreas_cells.obsm["spatial"] / 0.274
    with pytest.warns(UserWarning, match=r"\*= mpp"):
        nk.pp.neighborhoods(pancreas_cells, radius=180)


def test_strips_that_are_narrow_for_the_radius_are_told(caplog):
    """Where most test neighborhoods are cut off, niches are the strip's doing; where few are, nothing is said."""
    rng = np.random.default_rng(0)
    y = np.sort(rng.uniform(0, 400, 1200))
    split = np.select([(y >= 100) & (y < 130)], ["test"], "train")
    cells = AnnData(obs={"split": split}, obsm={"spatial": np.column_stack([rng.uniform(0, 400, 1200), y])})
    nk.pp.neighborhoods(cells, radius=11)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    nk.pp.neighborhoods(cells, radius=60)
    (warning,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert "n_neighbors" in warning.getMessage()
