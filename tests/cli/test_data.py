"""Results take the place of earlier ones when they are complete, and not before."""

import errno

import anndata
import numpy as np
import pytest
from anndata import AnnData

import nichekd as nk
from nichekd.cli import _data
from nichekd.cli._split import split_tissue


@pytest.fixture
def cells():
    return AnnData(obs={"niche": ["a", "b"]}, obsm={"spatial": np.zeros((2, 2))})


def test_a_full_disk_costs_the_new_result_only(cells, tmp_path, monkeypatch):
    path = tmp_path / "result.h5ad"
    _data.write(cells, path)

    def full(self, file, *args, **kwargs):
        file.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(AnnData, "write_h5ad", full)
    with pytest.raises(OSError, match="No space left"):
        _data.write(cells[:1].copy(), path)
    assert [file.name for file in tmp_path.iterdir()] == ["result.h5ad"]
    assert anndata.read_h5ad(path).n_obs == 2


def test_the_new_result_takes_the_place_of_the_old(cells, tmp_path):
    path = tmp_path / "result.h5ad"
    for table in (cells, cells[:1].copy()):
        _data.write(table, path)
    assert anndata.read_h5ad(path).n_obs == 1
    assert [file.name for file in tmp_path.iterdir()] == ["result.h5ad"]


def test_earlier_results_go_when_the_new_ones_are_all_written(tmp_path):
    """What the new run does not write goes, too: it would be of an earlier one."""
    paths = [tmp_path / name for name in ("student", "agreement.csv", "niches.png")]
    (tmp_path / "student").mkdir()
    for path in (tmp_path / "student/config.json", *paths[1:], tmp_path / "mine.txt"):
        path.write_text("old")
    with _data.replacing(paths) as new:
        (new / "student").mkdir()
        (new / "student/config.json").write_text("new")
        (new / "niches.png").write_text("new")
        assert {path.read_text() for path in paths[1:]} == {"old"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "niches.png", "student"]
    assert (tmp_path / "student/config.json").read_text() == (tmp_path / "niches.png").read_text() == "new"


def half_written(paths):
    with _data.replacing(paths) as new:
        (new / paths[0].name).write_text("half")
        raise OSError("full")


def test_a_run_that_fails_leaves_earlier_results(tmp_path):
    paths = [tmp_path / "out" / "model"]
    for there in (False, True):
        if there:
            paths[0].parent.mkdir()
            paths[0].write_text("old")
        with pytest.raises(OSError, match="full"):
            half_written(paths)
        assert [path.name for path in tmp_path.rglob("*")] == (["out", "model"] if there else [])
    assert paths[0].read_text() == "old"


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    return AnnData(obsm={"spatial": rng.uniform(0, 400, (300, 2)), "X_mine": np.zeros((300, 2))})


def test_split_of_a_table_keeps_apart_the_crops_that_its_features_are_of(table):
    table.uns["nichekd"] = {
        "use_rep": "X_mine",
        "features": {"X_mine": {"crop_px": 32, "mpp": 0.5}, "X_wide": {"crop_px": 64, "mpp": 0.5}},
    }
    split_tissue(table, use_rep=None, table_key="table")
    assert table.uns["nichekd"]["split"]["buffer_um"] == 8
    table.obsm["X_wide"] = table.obsm.pop("X_mine")
    split_tissue(table, use_rep="X_wide", table_key="table")
    assert table.uns["nichekd"]["split"]["buffer_um"] == 16


def test_split_of_cells_on_their_image_does_so_too():
    sdata = nk.datasets.simulate(300, K=2, seed=0, mpp=0.5)
    nk.pp.histology_features(sdata, encoder="color", crop_px=32, mpp=1.0)
    split_tissue(sdata, use_rep=None, table_key="table")
    assert sdata["table"].uns["nichekd"]["split"]["crop_px"] == 64


def test_split_of_a_table_with_features_of_unknown_origin_says_that_it_has_no_buffer(table, caplog):
    split_tissue(table, use_rep="X_mine", table_key="table")
    assert set(table.obs["split"]) == {"train", "test"}
    assert "no buffer" in caplog.text
    assert "IMAGE" in caplog.text
