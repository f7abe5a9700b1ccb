from __future__ import annotations

import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import spatialdata
import tifffile
from typer.testing import CliRunner

import nichekd as nk
from nichekd.cli import app

COMMANDS = ("demo", "distill", "features", "predict")


def nichekd(*arguments: object) -> SimpleNamespace:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr, exception=result.exception)


def one_line(err: str) -> str:
    """What stderr says; more than a line fails."""
    (line,) = [line for line in err.splitlines() if line.strip()]
    return line


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    """Paths of 300 cells (.h5ad) and their slide (.tif, 0.5 µm/px)."""
    folder = tmp_path_factory.mktemp("section")
    sdata = nk.datasets.simulate(n_cells=300, K=3, seed=0, mpp=0.5)
    tifffile.imwrite(folder / "he.tif", np.moveaxis(np.asarray(sdata["he"].data), 0, -1), photometric="rgb")
    adata = sdata["table"]
    anndata.AnnData(X=adata.X, obs=adata.obs[["niche_true"]], obsm={"spatial": adata.obsm["spatial"]}).write_h5ad(
        folder / "cells.h5ad"
    )
    return SimpleNamespace(cells=folder / "cells.h5ad", image=folder / "he.tif")


@pytest.fixture
def quick(monkeypatch):
    """Fit everything for a few steps: what comes of it doesn't matter here."""
    seen = nk.tl.GeneAwareSettings(max_epochs=1, crops_per_epoch=8, batch_size=4)
    few = nk.models.NolanSettings(n_steps=5, n_warm_start=5, batch_size=32)
    monkeypatch.setattr(nk.pp, "expression_features", partial(nk.pp.expression_features, max_epochs=1))
    monkeypatch.setattr(nk.tl, "gene_aware_encoder", partial(nk.tl.gene_aware_encoder, fit=seen))
    monkeypatch.setattr(nk.tl, "nolan", partial(nk.tl.nolan, fit=few))
    monkeypatch.setattr(nk.tl, "histology_nolan", partial(nk.tl.histology_nolan, fit=few))
    monkeypatch.setattr(nk.tl, "distill", partial(nk.tl.distill, fit=nk.tl.FitSettings(max_epochs=2, min_steps=5)))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command):
    shown = nichekd(command, "--help")
    assert shown.code == 0
    assert f"nichekd {command}" in shown.out


def test_help_lists_the_commands():
    shown = nichekd("--help")
    assert shown.code == 0
    assert all(command in shown.out for command in COMMANDS)


def test_version():
    assert nichekd("--version").out.strip() == nk.__version__


@pytest.mark.parametrize(
    ("name", "says"), [("broken.h5ad", "no AnnData file"), ("broken.zarr", "no SpatialData folder")]
)
def test_data_that_are_not_what_their_name_says(name, says, tmp_path):
    (tmp_path / name).write_text("nothing")
    result = nichekd("--quiet", "features", tmp_path / name, "--encoder", "color", "--out", tmp_path / "new.zarr")
    assert result.code == 2
    assert says in one_line(result.err)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("demo", "-K", 1), "K=1 niches"),
        (("demo", "-K", 5, "-K", 5), "one number twice"),
        (("demo", "--encoder", "nonesuch"), "nonesuch"),
        (("features", "nowhere.zarr", "--out", "new.zarr"), "nowhere.zarr"),
        (("features", "cells.h5ad", "nowhere.tif", "--out", "new.zarr"), "nowhere.tif"),
        (("features", "cells.h5ad", "--out", "new.zarr"), "Name the IMAGE"),
        (("features", "cells.h5ad", "--mpp", 0.5, "--out", "new.h5ad"), "without an IMAGE"),
        (("features", "cells.h5ad", "he.tif", "--mpp", 0.5, "--out", "new.csv"), "new.csv"),
        (("features", "he.tif", "--out", "new.zarr"), "he.tif"),
        (("features", "cells.h5ad", "he.tif", "--out", "cells.h5ad"), "place of the input"),
        (("features", "cells.h5ad", "he.tif", "--mpp", 0.5, "--table-key", "cells2", "--out", "n.zarr"), "cells2"),
        (("distill", "cells.h5ad", "--use-rep", "X_none", "--out", "new"), "X_none"),
        (("distill", "cells.h5ad", "--use-rep", "X", "--encoder", "color", "--out", "new"), "--use-rep"),
        (("distill", "cells.h5ad", "--weights", "w", "--out", "new"), "--encoder"),
        (("distill", "cells.h5ad", "he.tif", "--out", "new"), "Hand it in: --mpp."),
        (("distill", "cells.h5ad", "--gene-aware", "small_cnn", "--encoder", "color", "--out", "new"), "Name one"),
        (("distill", "cells.h5ad", "--gene-aware", "small_cnn", "--out", "new"), "SpatialData"),
        (("predict", "cells.h5ad", "--student", "nobody", "--out", "new.h5ad"), "nobody"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, says, section, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (section.cells, section.image):
        (tmp_path / path.name).symlink_to(path)
    # the option precedes the command; log lines would come beside the error
    result = nichekd("--quiet", *arguments)
    assert result.code == 2
    assert one_line(result.err).startswith("Error: ")
    assert says in result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad", "he.tif"], "something was written"


@pytest.mark.parametrize("arguments", [("nonesuch",), ("demo", "--nonesuch"), ("demo", "-K", "many"), ("distill",)])
def test_wrong_usage_is_exit_code_2(arguments):
    assert nichekd(*arguments).code == 2


def test_failure_is_one_line_and_exit_code_1(section, tmp_path, monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no\nmemory")

    monkeypatch.setattr(nk.pp, "histology_features", fails)
    arguments = ("features", section.cells, section.image, "--mpp", 0.5, "--out", tmp_path / "new.zarr")
    result = nichekd("--quiet", *arguments)
    assert result.code == 1
    assert "RuntimeError: no memory" in one_line(result.err)


@pytest.mark.parametrize("slip", [KeyError("n_obs"), TypeError("unsupported operand"), ValueError("shapes (2,) (3,)")])
def test_a_slip_of_the_code_says_where_to_look(slip, section, tmp_path, monkeypatch):
    def slips(*_: object, **__: object) -> None:
        raise slip

    monkeypatch.setattr(nk.pp, "histology_features", slips)
    arguments = ("features", section.cells, section.image, "--mpp", 0.5, "--out", tmp_path / "new.zarr")
    result = nichekd("--quiet", *arguments)
    assert result.code == 2
    assert one_line(result.err).endswith("(nichekd --debug … shows where)")


def test_what_nichekd_says_of_bad_input_has_no_such_hint(tmp_path):
    result = nichekd("--quiet", "features", tmp_path / "nowhere.zarr", "--out", tmp_path / "new.zarr")
    assert result.code == 2
    assert "--debug" not in result.err


def test_debug_shows_the_traceback():
    run = [sys.executable, "-c", "from nichekd.cli import app; app()", "--debug", "features", "no.zarr", "--out", "x"]
    result = subprocess.run(run, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "FileNotFoundError" in result.stderr


def test_results_are_not_overwritten_unasked(section, tmp_path):
    out = tmp_path / "features.h5ad"
    out.write_text("mine")
    arguments = ("features", section.cells, section.image, "--mpp", 0.5, "--encoder", "color", "--out", out)
    result = nichekd(*arguments)
    assert result.code == 2
    assert "--overwrite" in result.err
    assert out.read_text() == "mine"
    assert nichekd(*arguments, "--overwrite").code == 0
    assert "X_color" in anndata.read_h5ad(out).obsm


def test_demo_refuses_a_folder_with_results(tmp_path):
    (tmp_path / "agreement.csv").write_text("mine")
    result = nichekd("demo", "--out", tmp_path)
    assert result.code == 2
    assert "agreement.csv" in result.err


def test_from_features_to_a_new_slide(section, tmp_path, quick):
    slide = (section.cells, section.image, "--mpp", 0.5)
    described = nichekd("features", *slide, "--encoder", "color", "--out", tmp_path / "section.zarr")
    assert described.code == 0, described.err
    taught = nichekd("distill", tmp_path / "section.zarr", "--teacher", "niche_true", "--out", tmp_path / "new")
    assert taught.code == 0, taught.err
    mapped = nichekd("predict", *slide, "--student", tmp_path / "new" / "student", "--out", tmp_path / "slide.h5ad")
    assert mapped.code == 0, mapped.err

    here = spatialdata.read_zarr(tmp_path / "new" / "result.zarr")["table"].obs["niche"]
    there = anndata.read_h5ad(tmp_path / "slide.h5ad").obs["niche"]
    assert here.astype(str).tolist() == there.astype(str).tolist(), "a saved student predicts what it predicted"
    assert (tmp_path / "new" / "niches.png").is_file()
    assert not (tmp_path / "new" / "agreement.csv").exists(), "there is no test strip"


def test_a_split_of_cells_that_have_features_and_no_image(section, tmp_path, quick):
    adata = anndata.read_h5ad(section.cells)
    adata.obsm["X_mine"] = np.random.default_rng(0).normal(size=(adata.n_obs, 4)).astype(np.float32)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    arguments = ("distill", tmp_path / "cells.h5ad", "--use-rep", "X_mine", "--teacher", "niche_true", "--split")
    result = nichekd("--quiet", *arguments, "--out", tmp_path / "new")
    assert result.code == 0, result.err
    assert "no buffer" in result.err
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "agreement.csv", "niches.png", "result.h5ad", "student",
    ]  # fmt: skip


def test_a_gene_aware_student(section, tmp_path, quick):
    slide = (section.cells, section.image, "--mpp", 0.5)
    taught = nichekd("distill", *slide, "-K", 2, "--gene-aware", "small_cnn", "--out", tmp_path / "new")
    assert taught.code == 0, taught.err
    student = nk.models.NicheStudent.load(tmp_path / "new" / "student")
    assert student.encoder.name == "gene_aware"
    assert student.n_niches == 2


def test_demo_writes_what_it_says(tmp_path, monkeypatch, quick):
    small = nk.datasets.simulate(n_cells=400, K=3, seed=0)
    monkeypatch.setattr(nk.datasets, "pancreas", lambda: small)
    result = nichekd("demo", "--out", tmp_path, "--encoder", "color", "-K", 2, "-K", 3)
    assert result.code == 0, result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agreement.csv", "niches.png", "result.zarr", "student"]

    table = pd.read_csv(tmp_path / "agreement.csv")
    assert table.columns.tolist() == ["K", "key", "ARI", "NMI", "n_cells"]
    methods = ["niche", "niche_frozen_encoder", "niche_histology_nolan", "niche_histology_leiden"]
    assert table[["K", "key"]].to_numpy().tolist() == [[K, key] for K in (2, 3) for key in methods]
    assert all(key in result.out for key in methods)
    assert nk.models.NicheStudent.load(tmp_path / "student").n_niches == 3
    assert spatialdata.read_zarr(tmp_path / "result.zarr")["table"].obsm["student_logits"].shape == (400, 3)
