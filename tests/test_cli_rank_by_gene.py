from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import anndata
import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

import nichekd as nk
from nichekd.cli import app


def nichekd(*arguments: object) -> SimpleNamespace:
    result = CliRunner().invoke(app, list(map(str, ("--quiet", *arguments))))
    return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr)


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    folder = tmp_path_factory.mktemp("section")
    sdata = nk.datasets.simulate(n_cells=200, K=2, seed=0, mpp=0.5)
    tifffile.imwrite(folder / "he.tif", np.moveaxis(np.asarray(sdata["he"].data), 0, -1), photometric="rgb")
    adata = sdata["table"]
    nk.pp.histology_features(sdata, encoder="color", crop_px=32)
    adata.write_h5ad(folder / "genes.h5ad")
    anndata.AnnData(obs=adata.obs[[]], obsm={"spatial": adata.obsm["spatial"]}).write_h5ad(folder / "slide.h5ad")
    return folder


@pytest.fixture
def quick(monkeypatch):
    few = nk.tl.RankByGeneSettings(n_out=4, max_epochs=1, min_steps=2, batch_size=32, validation=0)
    monkeypatch.setattr(nk.tl, "rank_by_gene", partial(nk.tl.rank_by_gene, fit=few))


def test_train_here_and_embed_there(section, tmp_path, quick):
    trained = nichekd(
        "rank-by-gene", "train", section / "genes.h5ad", "--use-rep", "X_color", "--out", tmp_path / "model"
    )
    assert trained.code == 0, trained.err
    out = tmp_path / "slide.h5ad"
    embedded = nichekd(
        "rank-by-gene", "embed", section / "slide.h5ad", section / "he.tif", "--mpp", 0.5,
        "--model", tmp_path / "model", "--out", out,
    )  # fmt: skip
    assert embedded.code == 0, embedded.err
    assert anndata.read_h5ad(out).obsm["X_rank_by_gene"].shape == (200, 4)
    again = nichekd(
        "rank-by-gene", "train", section / "genes.h5ad", "--use-rep", "X_color", "--out", tmp_path / "model"
    )
    assert again.code == 2
    assert "--overwrite" in again.err


@pytest.mark.parametrize("command", ["train", "embed"])
def test_help_has_an_example(command):
    shown = nichekd("rank-by-gene", command, "--help")
    assert shown.code == 0
    assert f"nichekd rank-by-gene {command}" in shown.out


def test_bad_input_is_one_line_and_exit_code_2(section, tmp_path):
    for arguments, says in [
        (("train", section / "genes.h5ad", "--use-rep", "X_none", "--out", tmp_path / "m"), "X_none"),
        (("train", section / "genes.h5ad", "--layer", "none", "--out", tmp_path / "m"), "none"),
        (("embed", section / "slide.h5ad", "--model", tmp_path / "none", "--out", tmp_path / "o.h5ad"), "no folder"),
    ]:
        result = nichekd("rank-by-gene", *arguments)
        assert result.code == 2
        (line,) = [line for line in result.err.splitlines() if line.strip()]
        assert line.startswith("Error: ")
        assert says in line
    assert not list(tmp_path.iterdir())
