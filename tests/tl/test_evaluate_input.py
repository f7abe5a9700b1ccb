"""What `nk.tl.evaluate` refuses, and when: before anything is made, and before anything is overwritten."""

import json
import shutil

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

import nichekd as nk

LEIDEN = ["niche_histology_leiden"]


def evaluate(data, **kwargs):
    given = {
        "K": 3, "seeds": 0, "use_rep": "X_image", "methods": LEIDEN, "n_permutations": 9,
        "fit": nk.tl.FitSettings(max_epochs=1, min_steps=0, batch_size=96, n_components=8),
        "nolan_fit": nk.models.NolanSettings(n_steps=5, n_warm_start=25, batch_size=64),
    }  # fmt: skip
    return nk.tl.evaluate(data, **given | kwargs)


def with_features(adata):
    """Expression and image features that take no training."""
    logs = np.log1p(adata.X.toarray()).astype(np.float32)
    adata.obsm["X_scVI"], adata.obsm["X_image"] = logs[:, :8], logs[:, 4:16]
    return adata


@pytest.fixture(scope="module")
def made():
    adata = with_features(nk.datasets.simulate(600, K=3, seed=0, image=False)["table"])
    nk.pp.split(adata, mpp=0.1)
    nk.pp.neighborhoods(adata)
    adata.obs["pathology"] = np.where(adata.obsm["spatial"][:, 0] % 100 < 50, "tumour", "stroma")
    return adata


@pytest.fixture
def cells(made):
    return made.copy()


@pytest.fixture(scope="module")
def finished(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation") / "out"
    return out, evaluate(made.copy(), methods=["niche_expression"], annotation_key="pathology", out=out)


@pytest.fixture(scope="module")
def slide():
    sdata = nk.datasets.simulate(300, K=3, seed=0, image=True)
    nk.pp.split(sdata)
    return sdata


@pytest.fixture
def no_work(monkeypatch):
    """Neither scVI nor a network runs."""

    def never(*args, **kwargs):
        pytest.fail("work began")

    for name in ("expression_features", "histology_features"):
        monkeypatch.setattr(nk.pp, name, never)
    monkeypatch.setattr("nichekd.tl._evaluation_runs.teach", never)


@pytest.mark.parametrize("name", ["niche", "niche_entropy", "niche_ood"])
def test_the_users_columns_may_be_called_anything(finished, cells, name):
    """No method is judged by what it wrote itself."""
    _, table = finished
    cells.obs[name] = cells.obs["pathology"]
    again = evaluate(cells, methods=["niche_expression"], annotation_key=name)
    assert again["macro_f1"].tolist() == table["macro_f1"].tolist()


@pytest.mark.parametrize("name", ["teacher_logits", "student_proba"])
def test_the_users_features_may_be_called_anything(cells, name):
    table = evaluate(cells)
    cells.obsm[name] = cells.obsm["X_image"]
    assert evaluate(cells, use_rep=name)["ARI"].tolist() == table["ARI"].tolist()


def test_the_users_split_and_sections_may_be_called_anything(cells):
    table = evaluate(cells, methods=["niche_expression"])
    cells.obs["niche"] = cells.obs.pop("split")
    cells.obs["niche_entropy"] = "one"
    nk.pp.neighborhoods(cells, radius=cells.uns["nichekd"]["radius"], split_key="niche", library_key="niche_entropy")
    again = evaluate(cells, methods=["niche_expression"], split_key="niche")
    assert again["ARI"].tolist() == table["ARI"].tolist()


def test_another_graph_of_the_same_radius(finished, cells):
    cells.obs["section"] = np.where(cells.obsm["spatial"][:, 0] < 100, "left", "right")
    nk.pp.neighborhoods(cells, radius=cells.uns["nichekd"]["radius"], library_key="section")
    with pytest.raises(ValueError, match=r"something else: library_key None, now 'section'; graph"):
        evaluate(cells, out=finished[0])


def test_the_latent_of_other_counts_is_not_taken(cells, tmp_path, monkeypatch):
    def latent(data, **kwargs):
        data.obsm["X_scVI"] = np.log1p(data.X.toarray()[:, :8]).astype(np.float32)

    monkeypatch.setattr(nk.pp, "expression_features", latent)
    del cells.obsm["X_scVI"]
    same, other = cells.copy(), cells.copy()
    table = evaluate(cells, out=tmp_path / "out")
    pd.testing.assert_frame_equal(evaluate(same, out=tmp_path / "out"), table)
    other.X = other.X[:, ::-1]
    with pytest.raises(ValueError, match="something else: counts"):
        evaluate(other, out=tmp_path / "out")


@pytest.mark.parametrize("name", ["runs.csv", "evaluation.csv", "encoder", "agreement.png"])
def test_a_folder_with_others_files_is_left_as_it_is(cells, tmp_path, name, no_work):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=rf"\['{name}'\], but no manifest\.json"):
        evaluate(cells, out=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("found", [{}, {"name": "my app", "format": 2}])
def test_a_manifest_of_something_else(finished, cells, tmp_path, found):
    out = shutil.copytree(finished[0], tmp_path / "out")
    (out / "manifest.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"manifest\.json is of no evaluation"):
        evaluate(cells, out=out)
    assert json.loads((out / "manifest.json").read_text()) == found


def test_tables_of_many_data_sets_replace_no_others(finished, cells, tmp_path, no_work):
    (tmp_path / "evaluation.csv").write_text("mine")
    with pytest.raises(ValueError, match="but no manifest"):
        evaluate({"a": cells}, out=tmp_path)
    with pytest.raises(ValueError, match="of one data set, now of many"):
        evaluate({"a": cells}, out=finished[0])


def test_one_data_set_into_the_folder_of_many(cells, tmp_path):
    evaluate({"a": cells}, out=tmp_path / "out")
    with pytest.raises(ValueError, match="something else: of 'many data sets', now 'one data set'"):
        evaluate(cells, out=tmp_path / "out")
    (tmp_path / "out/manifest.json").unlink()  # as it was written once
    assert len(evaluate({"a": cells}, out=tmp_path / "out")) == 2


def test_parts_are_of_the_last_call(finished, cells, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "out")
    assert (out / "probe.csv").is_file()
    evaluate(cells, methods=["niche_expression"], out=out)
    assert not (out / "probe.csv").exists()


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"K": 3.0}, TypeError, r"K=3\.0; they have to be whole numbers"),
        ({"K": None}, TypeError, "K=None"),
        ({"K": "10"}, TypeError, "K='10'"),
        ({"seeds": 1.0}, TypeError, r"seeds=1\.0"),
        ({"methods": "niche"}, TypeError, r"methods=\['niche'\]"),
        ({"methods": 3}, TypeError, "methods=3 is a int"),
        ({"methods": [3]}, ValueError, r"no method \[3\]"),
        ({"annotation_key": ["a"]}, TypeError, "annotation_key=.* is a list"),
        ({"split_key": None}, TypeError, "split_key=None"),
        ({"use_rep": None, "encoder": 5}, TypeError, "encoder=5 is a int"),
        ({"use_rep": None, "encoder": "color", "weights": 5}, TypeError, "weights is a int"),
        ({"n_permutations": None}, TypeError, "n_permutations=None"),
        ({"n_permutations": 1.5}, TypeError, r"n_permutations=1\.5"),
        ({"n_teachers": "3"}, TypeError, "n_teachers='3'"),
        ({"n_teachers": 0}, ValueError, "n_teachers=0; it has to be at least 1"),
        ({"nolan_fit": 3}, TypeError, r"nolan_fit=3 is a int; it has to be nk\.models\.NolanSettings"),
        ({"fit": 3}, TypeError, r"fit=3 is a int; it has to be nk\.tl\.FitSettings"),
        ({"gene_aware_lora": 3}, TypeError, "gene_aware_lora=3"),
        ({"device": "gpuu"}, ValueError, "device='gpuu'"),
        ({"encoder": "color"}, ValueError, "use_rep='X_image' and encoder='color'"),
        ({"use_rep": None, "weights": "nope"}, ValueError, "weights='nope' without encoder="),
        ({"seeds": 2**32 - 1, "methods": ["niche_teacher_other_seed"]}, ValueError, "seeds up to 4,294,968,295"),
        ({"gene_aware": "small_cnn", "gene_aware_lora": nk.models.LoraSettings()}, ValueError, "starts from nothing"),
    ],
)
def test_arguments_are_checked_before_data_are_read(kwargs, error, match):
    def never():
        pytest.fail("read")

    with pytest.raises(error, match=match):
        evaluate({"a": never}, **kwargs)


def test_methods_may_be_an_index(cells):
    assert evaluate(cells, methods=pd.Index(LEIDEN))["key"].tolist() == LEIDEN


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"encoder": "nope"}, ValueError, "no encoder 'nope'"),
        ({"encoder": "efficientnet_lite0", "weights": "nope.pt"}, FileNotFoundError, r"nope\.pt"),
        ({"use_rep": "X_nope"}, KeyError, "X_nope"),
        ({"methods": ["niche_gene_aware"], "gene_aware": "nope"}, ValueError, "no encoder 'nope'"),
        ({"methods": ["niche_gene_aware"], "gene_aware_weights": "nope.pt"}, FileNotFoundError, r"nope\.pt"),
    ],
)
def test_what_cannot_be_made_is_found_before_anything_is(slide, no_work, kwargs, error, match):
    with pytest.raises(error, match=match):
        evaluate(slide, use_rep=kwargs.pop("use_rep", None), **kwargs)


def test_a_table_without_features_or_image(cells, no_work):
    del cells.obsm["X_scVI"], cells.obsm["X_image"]
    with pytest.raises(TypeError, match=r"lacks the image features \['X_color'\].*nk\.io\.paired"):
        evaluate(cells, use_rep=None, encoder="color")
    with pytest.raises(TypeError, match=r"\['X_gene_aware'\]"):
        evaluate(cells, use_rep=None, methods=["niche_gene_aware"])


def test_a_slide_without_its_image(slide, no_work):
    from spatialdata import SpatialData

    bare = SpatialData(shapes=dict(slide.shapes), tables={"table": slide["table"].copy()})
    with pytest.raises(ValueError, match="no image"):
        evaluate(bare, use_rep=None, encoder="color")


def test_no_split_and_no_image_to_make_it_by(cells, no_work):
    del cells.obs["split"]
    with pytest.raises(KeyError, match=r"nk\.pp\.split\(data, mpp=\.\.\.\)"):
        evaluate(cells)


def test_no_counts_for_scvi(cells, no_work):
    del cells.obsm["X_scVI"]
    cells.X = np.log1p(cells.X)
    with pytest.raises(ValueError, match=r"nk\.pp\.expression_features\(data, layer=\.\.\.\) first"):
        evaluate(cells)


def test_no_test_cell_and_few(cells, no_work):
    cells.obs["split"] = cells.obs["split"].astype(str)
    cells.obs["none"] = cells.obs["split"].replace("test", "buffer")
    with pytest.raises(ValueError, match="has no cell 'test', and all is judged on test cells"):
        evaluate(cells, split_key="none")
    with pytest.raises(ValueError, match="Name another annotation_key="):
        evaluate(cells, annotation_key="none")


def test_few_test_cells_are_warned_about(cells):
    there = np.flatnonzero(cells.obs["split"] == "test")
    few = cells[~np.isin(np.arange(cells.n_obs), there[4:])].copy()
    with pytest.warns(UserWarning, match="has 4 test cells for K=3"):
        evaluate(few)


def test_a_set_of_data_sets():
    with pytest.raises(TypeError, match="data is a set.*a mapping from names to them, a sequence, or a folder"):
        evaluate({1, 2})


@pytest.fixture
def folder(cells, tmp_path):
    """One good data set, before others."""
    cells.write_h5ad(tmp_path / "a.h5ad")
    return tmp_path


def junk(folder):
    (folder / "b.h5ad").write_text("junk")


def truncated(folder):
    (folder / "b.h5ad").write_bytes((folder / "a.h5ad").read_bytes()[:3000])


def a_folder(folder):
    (folder / "b.h5ad").mkdir()


def no_zarr(folder):
    (folder / "b.zarr").mkdir()


def no_table(folder):
    with h5py.File(folder / "b.h5ad", "w") as file:
        file["x"] = 1


def no_features(folder):
    adata = anndata.read_h5ad(folder / "a.h5ad")
    del adata.obsm["X_image"]
    adata.write_h5ad(folder / "b.h5ad")


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (junk, r"b\.h5ad is no AnnData file: it is no HDF5"),
        (truncated, r"b\.h5ad is no AnnData file, or a damaged one"),
        (a_folder, r"b\.h5ad is no AnnData file: it is a folder"),
        (no_zarr, r"b\.zarr is no SpatialData folder"),
        (no_table, r"b\.h5ad is no AnnData file: it holds \['x'\]"),
        (no_features, r"b\.h5ad has no image beside it"),
    ],
)
def test_a_bad_data_set_is_found_before_the_first_is_evaluated(folder, bad, match, no_work):
    bad(folder)
    with pytest.raises(ValueError, match=match):
        evaluate(folder)


def test_expression_needs_no_image(folder):
    no_features(folder)
    assert len(evaluate(folder, methods=["niche_expression"])) == 3


def test_hidden_files_are_no_data_sets(folder):
    for name in ("._a.h5ad", ".b.nichekd-new.zarr"):
        (folder / name).write_text("")
    assert set(evaluate(folder)["dataset"]) == {"a", "mean"}


def test_an_error_of_a_file_keeps_its_words():
    def missing():
        raise FileNotFoundError(2, "No such file or directory", "image.tif")

    with pytest.raises(FileNotFoundError, match=r"Data set 'a': .*No such file or directory: 'image\.tif'"):
        evaluate({"a": missing})


@pytest.mark.parametrize("change", [{"proba": None}, {"labels": np.zeros(10)}], ids=["lost", "short"])
def test_a_run_of_other_cells_is_damaged(finished, cells, tmp_path, change):
    out = shutil.copytree(finished[0], tmp_path / "out")
    file = out / "runs/K3_seed0/niche_expression.npz"
    with np.load(file) as kept:
        found = dict(kept) | change
    np.savez(file, **{name: value for name, value in found.items() if value is not None})
    with pytest.raises(ValueError, match=r"niche_expression\.npz is damaged .*Remove it"):
        evaluate(cells, methods=["niche_expression"], out=out)
