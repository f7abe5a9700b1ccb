"""Results take the place of earlier ones when they are complete, and not before."""

import errno

import anndata
import numpy as np
import pytest
from anndata import AnnData

from nichekd.cli import _data


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
