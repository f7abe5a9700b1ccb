from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import tifffile
from typer.testing import CliRunner

import nichekd as nk
from nichekd.cli import app


def nichekd(*arguments: object) -> SimpleNamespace:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr)


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    """Paths of 300 cells with types (.h5ad) and their slide (.tif, 1 µm/px)."""
    folder = tmp_path_factory.mktemp("section")
    sdata = nk.datasets.simulate(n_cells=300, K=3, seed=0, mpp=1.0)
    tifffile.imwrite(folder / "he.tif", np.moveaxis(np.asarray(sdata["he"].data), 0, -1), photometric="rgb")
    table = sdata["table"]
    cells = anndata.AnnData(X=table.X, obs=table.obs[["cell_type"]], obsm={"spatial": table.obsm["spatial"]})
    cells.write_h5ad(folder / "cells.h5ad")
    return SimpleNamespace(cells=folder / "cells.h5ad", image=folder / "he.tif")


@pytest.fixture
def quick(monkeypatch):
    """Small crops and few epochs: what comes of it doesn't matter here."""
    few = nk.tl.CucaSettings(max_epochs=1, min_steps=0, width=8, gene_width=8)
    monkeypatch.setattr(nk.tl, "cuca", partial(nk.tl.cuca, fit=few))
    monkeypatch.setattr(nk.pp, "histology_features", partial(nk.pp.histology_features, crop_px=16))
    monkeypatch.setattr(nk.pp, "split", partial(nk.pp.split, crop_px=16))


@pytest.mark.parametrize("command", ["train", "predict"])
def test_help_has_an_example(command):
    shown = nichekd("cuca", command, "--help")
    assert shown.code == 0
    assert f"nichekd cuca {command}" in shown.out


def test_help_lists_the_commands():
    shown = nichekd("cuca", "--help")
    assert "train" in shown.out
    assert "predict" in shown.out


def test_from_training_to_a_new_slide(section, tmp_path, quick):
    slide = (section.cells, section.image, "--mpp", 1.0)
    options = ("--cell-type-key", "cell_type", "--radius", 15, "--encoder", "color", "--split")
    trained = nichekd("cuca", "train", *slide, *options, "--out", tmp_path / "types")
    assert trained.code == 0, trained.err
    written = sorted(path.name for path in (tmp_path / "types").iterdir())
    assert written == ["agreement.csv", "model", "result.zarr"]
    table = pd.read_csv(tmp_path / "types" / "agreement.csv")
    assert {"cell_type", "pearson", "JSD"} <= set(table)

    mapped = nichekd("cuca", "predict", *slide, "--model", tmp_path / "types" / "model", "--out", tmp_path / "new.h5ad")
    assert mapped.code == 0, mapped.err
    import spatialdata

    here = spatialdata.read_zarr(tmp_path / "types" / "result.zarr")["table"].obsm["abundance"]
    there = anndata.read_h5ad(tmp_path / "new.h5ad").obsm["abundance"]
    assert np.allclose(here.to_numpy(), there.to_numpy(), atol=1e-5), "a saved model predicts what it predicted"


def test_spots(section, tmp_path, quick):
    options = ("--cell-type-key", "cell_type", "--spots", "--encoder", "color", "--align", "none")
    trained = nichekd(
        "cuca", "train", section.cells, section.image, "--mpp", 1.0, *options, "--out", tmp_path / "types"
    )
    assert trained.code == 0, trained.err
    model = nk.models.AbundanceModel.load(tmp_path / "types" / "model")
    assert model.config.training["align"] == "None"
    assert model.config.training["n_cells"] < 60


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("train", "cells.h5ad", "--out", "new"), "either --abundance-key"),
        (("train", "cells.h5ad", "--abundance-key", "a", "--cell-type-key", "b", "--out", "new"), "either"),
        (("train", "cells.h5ad", "--abundance-key", "a", "--spots", "--out", "new"), "--spots are made of cells"),
        (
            ("train", "cells.h5ad", "--abundance-key", "a", "--use-rep", "X", "--encoder", "color", "-o", "n"),
            "--encoder",
        ),
        (("train", "cells.h5ad", "--abundance-key", "a", "--weights", "w", "--out", "new"), "--weights"),
        (("train", "nowhere.h5ad", "--abundance-key", "a", "--out", "new"), "nowhere.h5ad"),
        (("train", "cells.h5ad", "--abundance-key", "none", "--use-rep", "X_a", "--out", "new"), "none"),
        (("train", "cells.h5ad", "--cell-type-key", "none", "--out", "new"), "none"),
        (("predict", "cells.h5ad", "--model", "nobody", "--out", "new.h5ad"), "nobody"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, says, section, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cells.h5ad").symlink_to(section.cells)
    result = nichekd("--quiet", "cuca", *arguments)
    assert result.code == 2
    (line,) = [line for line in result.err.splitlines() if line.strip()]
    assert line.startswith("Error: ")
    assert says in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad"], "something was written"
