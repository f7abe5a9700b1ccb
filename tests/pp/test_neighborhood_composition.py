from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import spatialdata
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

import nichekd as nk
from nichekd.pp._spots import hexagonal_grid


def cells(xy, kinds, **obs):
    names = [f"cell{i}" for i in range(len(xy))]
    obs = pd.DataFrame({"kind": pd.Categorical(kinds), **obs}, index=names)
    return AnnData(obs=obs, obsm={"spatial": np.asarray(xy, dtype=float)})


@pytest.fixture
def line():
    """Cells 10 µm apart: T T B - B; the fourth has no type."""
    return cells([[10 * i, 0] for i in range(5)], ["T", "T", "B", None, "B"])


def test_by_hand(line):
    nk.pp.neighborhood_composition(line, cell_type_key="kind", radius=10)
    table = line.obsm["cell_abundance"]
    assert table.columns.tolist() == ["B", "T"]
    assert table.index.equals(line.obs_names)
    assert table.to_numpy().tolist() == [[0, 2], [1, 2], [1, 1], [2, 0], [1, 0]]


def test_cells_without_a_type_are_counted_as_none(line, caplog):
    nk.pp.neighborhood_composition(line, cell_type_key="kind", radius=10)
    assert "1 of 5 cells have no obs['kind']" in caplog.text


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), radius=st.floats(5, 60))
def test_definition(seed, radius):
    """Against all pairs, one by one."""
    rng = np.random.default_rng(seed)
    xy, kinds = rng.uniform(0, 100, (25, 2)), rng.choice(["a", "b", "c"], 25)
    kinds[:3] = "a", "b", "c"
    adata = cells(xy, kinds)
    nk.pp.neighborhood_composition(adata, cell_type_key="kind", radius=radius)
    near = ((xy[:, None] - xy[None]) ** 2).sum(-1) <= radius**2
    expected = np.column_stack([(near & (kinds == kind)).sum(1) for kind in "abc"])
    assert np.array_equal(adata.obsm["cell_abundance"].to_numpy(), expected)


def test_training_cells_count_no_test_cells_nor_those_of_another_slide():
    adata = cells([[0, 0], [5, 0], [10, 0], [15, 0]], list("TTTT"), split=["train", "train", "buffer", "test"])
    nk.pp.neighborhood_composition(adata, cell_type_key="kind", radius=100)
    assert adata.obsm["cell_abundance"]["T"].tolist() == [3, 3, 4, 2]  # the buffer belongs to both
    del adata.obs["split"]
    adata.obs["slide"] = list("aabb")
    nk.pp.neighborhood_composition(adata, cell_type_key="kind", radius=100, library_key="slide")
    assert adata.obsm["cell_abundance"]["T"].tolist() == [2, 2, 2, 2]


def test_radius_is_the_one_that_is_known(line):
    line.uns["nichekd"] = {"radius": 20.0}
    nk.pp.neighborhood_composition(line, cell_type_key="kind")
    assert line.obsm["cell_abundance"]["B"].tolist() == [1, 1, 2, 2, 2]
    assert line.uns["nichekd"]["neighborhood_composition"]["radius"] == 20


def test_types_without_a_cell_have_no_column(line):
    line.obs["kind"] = line.obs["kind"].cat.add_categories("none such")
    nk.pp.neighborhood_composition(line, cell_type_key="kind", radius=10)
    assert line.obsm["cell_abundance"].columns.tolist() == ["B", "T"]


def test_copy_leaves_the_data_as_they_are(line):
    new = nk.pp.neighborhood_composition(line, cell_type_key="kind", radius=10, copy=True)
    assert "cell_abundance" not in line.obsm
    assert "cell_abundance" in new.obsm


def test_survives_writing(line, tmp_path):
    nk.pp.neighborhood_composition(line, cell_type_key="kind", radius=10)
    line.write_h5ad(tmp_path / "cells.h5ad")
    again = anndata.read_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(again.obsm["cell_abundance"], line.obsm["cell_abundance"], check_names=False)


def test_spots_by_hand():
    # a spot at 0 and at 100; the cell between them is in neither
    adata = cells([[0, 0], [10, 0], [50, 0], [100, 0]], ["T", "B", "B", "T"], slide=list("aaaa"))
    adata = AnnData(
        csr_matrix(np.array([[1, 0], [2, 5], [9, 9], [3, 1]])), obs=adata.obs, obsm={"spatial": adata.obsm["spatial"]}
    )
    spots = nk.pp.neighborhood_composition(adata, cell_type_key="kind", spots=True, library_key="slide")
    assert spots.obsm["spatial"].tolist() == [[0, 0], [100, 0]]
    assert spots.obsm["cell_abundance"].to_numpy().tolist() == [[1, 1], [0, 1]]
    assert spots.X.toarray().tolist() == [[3, 5], [3, 1]]
    assert spots.obs["n_cells"].tolist() == [2, 1]
    assert spots.obs["array_col"].tolist() == [0, 2]
    assert spots.obs["slide"].tolist() == ["a", "a"]
    assert "cell_abundance" not in adata.obsm, "spots are new"


def test_the_grid_is_that_of_visium():
    xy = np.random.default_rng(0).uniform(0, 1500, (50, 2))
    centres, place = hexagonal_grid(xy, 100.0)
    distance = np.sqrt(((centres[:, None] - centres[None]) ** 2).sum(-1))
    nearest = np.where(distance > 0, distance, np.inf).min(axis=1)
    assert np.allclose(nearest, 100)
    inner = ((centres > 200) & (centres < 1300)).all(axis=1)
    assert (np.isclose(distance, 100).sum(axis=1)[inner] == 6).all()
    assert ((place.sum(axis=1) % 2) == 0).all()


def test_every_cell_is_in_the_spots_that_cover_it():
    rng = np.random.default_rng(1)
    adata = cells(rng.uniform(0, 600, (300, 2)), rng.choice(["a", "b"], 300))
    spots = nk.pp.neighborhood_composition(adata, cell_type_key="kind", spots=True, radius=80)
    inside = ((spots.obsm["spatial"][:, None] - adata.obsm["spatial"][None]) ** 2).sum(-1) <= 80**2
    kinds = adata.obs["kind"].to_numpy()
    for kind in "ab":
        assert np.array_equal(spots.obsm["cell_abundance"][kind], (inside & (kinds == kind)[None]).sum(axis=1))


def test_spots_of_a_slide_can_be_split_encoded_and_written(tmp_path):
    sdata = nk.datasets.simulate(n_cells=150, K=2, seed=0, mpp=0.5)
    spots = nk.pp.neighborhood_composition(sdata, cell_type_key="cell_type", spots=True, radius=20, spot_distance=40)
    nk.pp.split(spots, n_strips=2, crop_px=32)
    nk.pp.histology_features(spots, encoder="color", crop_px=32)
    table = spots["table"]
    assert table.obsm["X_color"].shape == (table.n_obs, 42)
    spots.write(tmp_path / "spots.zarr")
    again = spatialdata.read_zarr(tmp_path / "spots.zarr")["table"]
    assert np.array_equal(again.obsm["cell_abundance"].to_numpy(), table.obsm["cell_abundance"].to_numpy())
    # the place of a spot in the image is that of its cells
    from nichekd._image import get_image

    assert np.allclose(get_image(spots, table).xy_px, table.obsm["spatial"] / 0.5)


def test_spots_lie_on_the_h_and_e_not_on_the_first_image():
    """A Xenium's fluorescence comes first, and is no RGB."""
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel

    from nichekd._image import get_image

    one = nk.datasets.simulate(n_cells=150, K=2, seed=0, mpp=0.5)
    dapi = Image2DModel.parse(np.zeros((1, 40, 40), dtype=np.uint16), dims=("c", "y", "x"))
    two = SpatialData(
        images={"dapi": dapi, "he": one["he"]}, shapes=dict(one.shapes), tables=dict(one.tables), attrs=one.attrs
    )
    options = {"cell_type_key": "cell_type", "spots": True, "radius": 20, "spot_distance": 40}
    for image_key in (None, "he"):
        spots = nk.pp.neighborhood_composition(two, image_key=image_key, **options)
        assert np.allclose(get_image(spots, spots["table"]).xy_px, spots["table"].obsm["spatial"] / 0.5)
    with pytest.raises(KeyError, match=r"no image 'dab'; it has \['dapi', 'he'\]"):
        nk.pp.neighborhood_composition(two, image_key="dab", **options)


def test_spots_of_no_genes():
    adata = cells([[0, 0], [10, 5]], ["T", "B"])
    spots = nk.pp.neighborhood_composition(adata, cell_type_key="kind", spots=True)
    assert spots.n_vars == 0


def test_spots_add_up_counts_only():
    adata = AnnData(np.array([[0.5], [1.0]]), obs=pd.DataFrame({"kind": ["T", "B"]}, index=["a", "b"]))
    adata.obsm["spatial"] = np.array([[0.0, 0], [10, 5]])
    adata.layers["counts"] = np.array([[5], [1]])
    with pytest.raises(ValueError, match="fractional values.*layer='counts'"):
        nk.pp.neighborhood_composition(adata, cell_type_key="kind", spots=True)
    spots = nk.pp.neighborhood_composition(adata, cell_type_key="kind", spots=True, layer="counts")
    assert spots.X.toarray().tolist() == [[6]]


def test_missing_types(line):
    with pytest.raises(KeyError, match=r"obs\['type'\] is missing.*kind"):
        nk.pp.neighborhood_composition(line, cell_type_key="type", radius=10)
    line.obs["kind"] = pd.Categorical([None] * 5, categories=["T"])
    with pytest.raises(ValueError, match="missing for all 5 cells"):
        nk.pp.neighborhood_composition(line, cell_type_key="kind", radius=10)


@pytest.mark.parametrize("wrong", [{"radius": 0}, {"radius": float("nan")}, {"spots": True, "spot_distance": -1}])
def test_lengths_that_are_none(line, wrong):
    with pytest.raises(ValueError, match="has to be a positive number of µm"):
        nk.pp.neighborhood_composition(line, cell_type_key="kind", **wrong)


def test_spots_that_hold_nothing():
    adata = cells([[0, 0], [1000, 0]], ["T", "B"])
    with pytest.raises(ValueError, match="None of the spots"):
        nk.pp.neighborhood_composition(adata, cell_type_key="kind", spots=True, radius=1, spot_distance=300)


def test_missing_library(line):
    with pytest.raises(KeyError, match=r"obs\['slide'\] is missing"):
        nk.pp.neighborhood_composition(line, cell_type_key="kind", radius=10, library_key="slide")
