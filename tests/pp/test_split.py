from __future__ import annotations

import logging

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import nichekd as nk
from nichekd._image import get_image
from nichekd._record import record

MPP = 0.5


def cells(xy) -> AnnData:
    return AnnData(obs={"cell": [str(i) for i in range(len(xy))]}, obsm={"spatial": np.asarray(xy, dtype=float)})


@pytest.fixture
def adata():
    """400 µm × 400 µm of cells, two of them at its top and bottom."""
    xy = np.random.default_rng(0).uniform(0, 400, (900, 2))
    xy[:2, 1] = 0, 400
    return cells(xy)


def crops_overlap(px: np.ndarray, split: pd.Series, crop_px: int) -> bool:
    """By painting: does a pixel belong to a training and a test crop?"""
    half = crop_px // 2
    low = px.min(axis=0) - half
    painted = np.zeros((2, *(px.max(axis=0) - low + half)), dtype=bool)
    for side, name in enumerate(("train", "test")):
        for column, row in px[(split == name).to_numpy()] - low:
            painted[side, column - half : column + half, row - half : row + half] = True
    return bool(painted.all(axis=0).any())


def test_strips_by_hand(adata):
    nk.pp.split(adata, n_strips=4, test_strip=1, crop_px=40, mpp=MPP)  # 40 px are 20 µm, so 10 µm to either side
    y = adata.obsm["spatial"][:, 1]
    expected = np.where((y > 100) & (y < 200), "test", "train").astype(object)
    expected[(np.abs(y - 100) <= 10) | (np.abs(y - 200) <= 10)] = "buffer"
    assert adata.obs["split"].tolist() == expected.tolist()
    assert adata.obs["split"].cat.categories.tolist() == ["train", "test", "buffer"]


def test_every_section_has_strips_of_its_own(adata):
    low = adata[:300].copy()
    low.obsm["spatial"] = low.obsm["spatial"] * [1, 0.5] + [0, 1_000]  # other places, half as high
    both = anndata.concat({"a": adata, "b": low}, label="slide", index_unique="-")
    nk.pp.split(both, crop_px=40, mpp=MPP, library_key="slide")
    nk.pp.split(adata, crop_px=40, mpp=MPP)
    nk.pp.split(low, crop_px=40, mpp=MPP)
    assert both.obs["split"].tolist() == [*adata.obs["split"], *low.obs["split"]]
    boundaries = both.uns["nichekd"]["split"]["boundaries_um"]
    np.testing.assert_allclose(boundaries[0], adata.uns["nichekd"]["split"]["boundaries_um"])
    np.testing.assert_allclose(boundaries[1], low.uns["nichekd"]["split"]["boundaries_um"])
    assert both.uns["nichekd"]["split"]["min_distance_px"] >= 40


def test_sections_at_the_same_place_do_not_meet(adata):
    both = anndata.concat({"a": adata, "b": adata}, label="slide", index_unique="-")
    both.obsm["spatial"][len(adata) :, 1] *= -1  # mirrored: the test strip of one lies where the other one trains
    nk.pp.split(both, crop_px=40, mpp=MPP, library_key="slide")
    a = both[both.obs["slide"] == "a"]
    nk.pp.split(adata, crop_px=40, mpp=MPP)
    assert a.obs["split"].tolist() == adata.obs["split"].tolist()


def test_unknown_section_column(adata):
    with pytest.raises(KeyError, match=r"obs\['slide'\] is missing"):
        nk.pp.split(adata, crop_px=0, library_key="slide")


@pytest.mark.parametrize(("test_strip", "boundaries"), [(0, [100]), (1, [100, 200]), (3, [300])])
def test_first_and_last_strips_have_one_boundary(adata, test_strip, boundaries):
    nk.pp.split(adata, test_strip=test_strip, crop_px=20, mpp=MPP)
    assert adata.uns["nichekd"]["split"]["boundaries_um"].tolist() == boundaries
    y = adata.obsm["spatial"][:, 1]
    nearest = np.abs(y[:, None] - boundaries).min(axis=1)
    assert ((adata.obs["split"] == "buffer") == (nearest <= 5)).all()


def test_no_crops_no_buffer_and_no_mpp(adata):
    nk.pp.split(adata, crop_px=0)
    assert set(adata.obs["split"]) == {"train", "test"}
    assert adata.obs["split"].cat.categories.tolist() == ["train", "test", "buffer"]
    assert "min_distance_px" not in adata.uns["nichekd"]["split"]


def test_what_is_recorded_is_what_is_so(adata, caplog):
    with caplog.at_level(logging.INFO, logger="nichekd"):
        nk.pp.split(adata, crop_px=40, mpp=MPP)
    noted = adata.uns["nichekd"]["split"]
    px = np.floor(adata.obsm["spatial"] / MPP).astype(int)
    train, test = (px[adata.obs["split"] == side] for side in ("train", "test"))
    nearest = np.abs(train[:, None] - test).max(axis=2).min()
    assert noted["min_distance_px"] == nearest >= 40
    assert noted["buffer_um"] == 10
    assert {f"n_{k}": v for k, v in adata.obs["split"].value_counts().items()}.items() <= noted.items()
    assert "disjoint" in caplog.text


@given(
    crop_px=st.integers(1, 30).map(lambda n: 2 * n),
    mpp=st.sampled_from([0.1, 0.274, 0.5, 1.0, 1.7]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_crops_never_overlap(crop_px, mpp, seed):
    adata = cells(mpp * np.random.default_rng(seed).uniform(-50, 400, (300, 2)))
    nk.pp.split(adata, n_strips=3, crop_px=crop_px, mpp=mpp)
    px = np.floor(adata.obsm["spatial"] / mpp).astype(int)
    assert not crops_overlap(px, adata.obs["split"], crop_px)


@pytest.mark.parametrize("degrees", [0, 17, 45, 90, 135])
def test_buffer_is_widened_in_a_turned_image(adata, degrees):
    """Strips are cut in µm, crops in pixels: across a diagonal, centres a crop apart still overlap."""
    angle = np.deg2rad(degrees)
    turn = MPP * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.array([200.0, 200.0])
    affine = np.column_stack([turn, middle - turn @ [600, 600]])
    sdata = nk.io.paired(adata, np.zeros((1200, 1200, 3), dtype=np.uint8), affine=affine)
    nk.pp.split(sdata, crop_px=60)
    table = sdata["table"]
    px = get_image(sdata, table).centre_px
    assert not crops_overlap(px, table.obs["split"], 60)
    buffer_um = table.uns["nichekd"]["split"]["buffer_um"]
    if degrees % 90 == 0:
        assert buffer_um == pytest.approx(15)
    else:
        assert 15 < buffer_um < 15 * np.sqrt(2) + 2
    assert table.uns["nichekd"]["split"]["min_distance_px"] >= 60


def test_mpp_is_the_images(adata):
    sdata = nk.io.paired(adata, np.zeros((801, 801, 3), dtype=np.uint8), mpp=MPP)
    nk.pp.split(sdata, crop_px=40)
    nk.pp.split(adata, crop_px=40, mpp=MPP)
    assert sdata["table"].obs["split"].tolist() == adata.obs["split"].tolist()
    with pytest.raises(ValueError, match=r"0\.5 µm per pixel by its transformation, but 0\.25 by mpp="):
        nk.pp.split(sdata, crop_px=40, mpp=0.25)


def test_several_images_have_to_be_told_apart(adata):
    sdata = nk.io.paired(adata, np.zeros((801, 801, 3), dtype=np.uint8), mpp=MPP)
    sdata["other"] = sdata["he"].copy()
    with pytest.raises(ValueError, match="image_key="):
        nk.pp.split(sdata)
    nk.pp.split(sdata, crop_px=40, image_key="he")
    nk.pp.split(sdata, crop_px=0)


def test_copy_leaves_the_original(adata):
    sdata = nk.io.paired(adata, np.zeros((801, 801, 3), dtype=np.uint8), mpp=MPP)
    new = nk.pp.split(sdata, crop_px=40, copy=True)
    assert "split" not in sdata["table"].obs
    assert "split" in new["table"].obs
    assert new["he"] is sdata["he"]
    assert nk.pp.split(adata, crop_px=0) is None
    assert "fold" in nk.pp.split(adata, crop_px=0, key_added="fold", copy=True).obs
    assert "fold" not in adata.obs


def test_survives_a_reload(adata, tmp_path):
    nk.pp.split(adata, crop_px=40, mpp=MPP)
    adata.write_h5ad(tmp_path / "x.h5ad")
    again = read_h5ad(tmp_path / "x.h5ad")
    pd.testing.assert_series_equal(again.obs["split"], adata.obs["split"])
    assert again.uns["nichekd"]["split"]["min_distance_px"] == adata.uns["nichekd"]["split"]["min_distance_px"]


def test_an_old_graph_is_called_out(adata):
    nk.pp.neighborhoods(adata, radius=20)
    with pytest.warns(UserWarning, match=r"before this split.*Run nk\.pp\.neighborhoods again"):
        nk.pp.split(adata, crop_px=0)


@pytest.mark.parametrize(
    ("function", "call"),
    [
        ("expression_features", "nk.pp.expression_features"),
        ("distill", "nk.tl.distill"),
        ("distill_niche_old", "nk.tl.distill"),
        ("rank_by_gene", "nk.tl.rank_by_gene"),
        ("cuca_old", "nk.tl.cuca"),
        ("predict_expression", "nk.tl.predict_expression"),
    ],
)
def test_what_was_fitted_on_its_test_cells_is_called_out(adata, function, call):
    record(adata, function)
    with pytest.warns(UserWarning, match=rf"{call} fitted before this split may have seen its test cells"):
        nk.pp.split(adata, crop_px=0)


def test_a_radius_that_test_cells_helped_to_estimate_is_removed(adata):
    nk.pp.estimate_radius(adata, n_neighbors=9)
    with pytest.warns(UserWarning, match=r"radius'\] was estimated before this split.*nk\.pp\.neighborhoods"):
        nk.pp.split(adata, crop_px=0)
    assert "radius" not in adata.uns["nichekd"]
    fresh = cells(adata.obsm["spatial"])
    nk.pp.split(fresh, crop_px=0)
    assert nk.pp.estimate_radius(adata, n_neighbors=9) == nk.pp.estimate_radius(fresh, n_neighbors=9)
    nk.pp.split(adata, crop_px=0)  # the same one
    assert "radius" in adata.uns["nichekd"]


def test_a_radius_that_was_given_stays(adata):
    nk.pp.estimate_radius(adata, n_neighbors=9)
    nk.pp.neighborhoods(adata, radius=20)
    with pytest.warns(UserWarning, match="^obsp"):
        nk.pp.split(adata, crop_px=0)
    assert adata.uns["nichekd"]["radius"] == 20


def test_the_same_split_again_makes_nothing_old(adata):
    """Warnings are errors here."""
    nk.pp.split(adata, crop_px=0)
    nk.pp.neighborhoods(adata, radius=20)
    record(adata, "distill")
    nk.pp.split(adata, crop_px=0)
    with pytest.warns(UserWarning, match=r"neighborhoods again\. What nk\.tl\.distill fitted"):
        nk.pp.split(adata, crop_px=0, test_strip=2)


@pytest.mark.real_data
def test_whole_section(shared_data):
    adata = read_h5ad(shared_data / "pancreas" / "section" / "cells.h5ad")
    nk.pp.split(adata, mpp=0.274)
    share = adata.obs["split"].value_counts(normalize=True)
    assert share["train"] > 0.6
    assert share["buffer"] < 0.1
    assert adata.uns["nichekd"]["split"]["min_distance_px"] >= 224


# what goes wrong


def test_unknown_mpp_names_both_ways_on(adata):
    with pytest.raises(ValueError, match=r"there is no image\. Hand in mpp=, or a SpatialData.*paired.*crop_px=0"):
        nk.pp.split(adata)


def test_absurd_mpp(adata):
    with pytest.raises(ValueError, match=r"mpp= is 274 µm per pixel"):
        nk.pp.split(adata, mpp=274)


@pytest.mark.parametrize("bad", [{"n_strips": 1}, {"test_strip": 4}, {"test_strip": -1}, {"crop_px": -2}])
def test_strips_that_are_none(adata, bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}={next(iter(bad.values()))}.*at least 2 strips"):
        nk.pp.split(adata, **bad)


@pytest.mark.parametrize("bad", [{"n_strips": 4.0}, {"test_strip": True}, {"crop_px": "224"}])
def test_numbers_that_are_not_whole(adata, bad):
    with pytest.raises(TypeError, match=f"{next(iter(bad))}=.*whole number"):
        nk.pp.split(adata, **bad)


def test_empty_side():
    line = cells([[0, y] for y in (0, 1, 2, 99, 100)])
    with pytest.raises(ValueError, match=r"No test cell is left.*n_strips="):
        nk.pp.split(line, crop_px=0)
    with pytest.raises(ValueError, match=r"No train cell is left \(the buffer is 100\.0 µm"):
        nk.pp.split(line, n_strips=2, test_strip=0, crop_px=200, mpp=1.0)


def test_cells_in_a_row():
    with pytest.raises(ValueError, match="All 3 cells have y = 5 µm"):
        nk.pp.split(cells([[0, 5], [1, 5], [2, 5]]), crop_px=0)


def test_no_cells(adata):
    with pytest.raises(ValueError, match="no cells.*nothing to split"):
        nk.pp.split(adata[:0].copy(), crop_px=0)


@pytest.mark.parametrize("mpp", ["0.5", [0.5]])
def test_resolution_that_is_no_number(adata, mpp):
    with pytest.raises(TypeError, match="mpp= is .*it has to be a number"):
        nk.pp.split(adata, crop_px=16, mpp=mpp)


def test_centres_that_are_no_numbers(adata):
    adata.obsm["spatial"] = sparse.csr_matrix(adata.obsm["spatial"])
    with pytest.raises(TypeError, match=r"obsm\['spatial'\] is a csr_matrix that holds no plain numbers"):
        nk.pp.split(adata, crop_px=0)


def test_missing_centres(adata):
    del adata.obsm["spatial"]
    with pytest.raises(KeyError, match=r"obsm\['spatial'\] is missing"):
        nk.pp.split(adata, crop_px=0)


def test_centres_in_pixels_are_suspected():
    xy = np.random.default_rng(0).uniform(0, 3000, (2_000, 2))
    with pytest.warns(UserWarning, match=r"median \d\d\.\d apart.*adata\.obsm\['spatial'\] \*= mpp"):
        nk.pp.split(cells(xy), mpp=MPP)


def test_spots_on_a_lattice_are_not_suspected():
    """Visium: 100 µm apart in rows that are shifted against each other, and a little jitter."""
    row, column = np.divmod(np.arange(3_000), 50)
    xy = np.column_stack([100 * column + 50 * (row % 2), 100 * np.sqrt(3) / 2 * row])
    nk.pp.split(cells(xy + np.random.default_rng(0).normal(0, 1, xy.shape)), mpp=MPP)


def test_unknown_table(adata):
    sdata = nk.io.paired(adata, np.zeros((801, 801, 3), dtype=np.uint8), mpp=MPP)
    with pytest.raises(KeyError, match=r"no table 'cells'; it has \['table'\]"):
        nk.pp.split(sdata, table_key="cells")


def test_features_that_see_more_than_the_split_leaves():
    sdata = nk.datasets.simulate(300, K=2, seed=0, mpp=0.5)
    nk.pp.histology_features(sdata, encoder="color", crop_px=32, mpp=1.0)  # 64 px of the image
    with pytest.warns(UserWarning, match=r"obsm\['X_color'\] 32 µm.*split by crop_px=64"):
        nk.pp.split(sdata, crop_px=16)
    nk.pp.split(sdata, crop_px=64)


def test_a_split_replaces_splits_only(adata):
    nk.pp.split(adata, crop_px=0)
    nk.pp.split(adata, crop_px=0, key_added="fold")
    nk.pp.split(adata, crop_px=0)  # no longer the one that is recorded
    adata.obs["folds"] = np.arange(adata.n_obs) % 5
    adata.obs["slide"] = "a"
    for key, library in (("folds", None), ("slide", "slide"), ("niche", None), ("n_neighbors", None)):
        before = adata.obs.copy()
        with pytest.raises(ValueError, match=f"key_added='{key}' .*Choose another|key_added='{key}' .*choose another"):
            nk.pp.split(adata, crop_px=0, key_added=key, library_key=library)
        assert adata.obs.equals(before)


def test_its_own_column_is_always_written_anew(adata):
    adata.obs["split"] = np.where(np.arange(adata.n_obs) % 2, "train", "val")
    nk.pp.split(adata, crop_px=0)
    assert set(adata.obs["split"]) <= {"train", "test", "buffer"}


@pytest.mark.parametrize(("key", "error"), [(3, TypeError), ("", ValueError), ("a/b", ValueError)])
def test_a_name_that_no_file_can_hold(adata, key, error):
    with pytest.raises(error, match="key_added="):
        nk.pp.split(adata, crop_px=0, key_added=key)
