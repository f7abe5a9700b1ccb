import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from spatialdata import SpatialData

import nichekd as nk
from nichekd.models import NolanSettings
from nichekd.tl import FitSettings

FEW = ("niche", "niche_histology_leiden", "niche_shuffled")
SHORT = {
    "fit": FitSettings(max_epochs=2, min_steps=0, batch_size=192, n_components=8, validation=0.15),
    "nolan_fit": NolanSettings(n_steps=5, n_warm_start=25, batch_size=64),
}


@pytest.fixture(scope="module")
def cells(section):
    """Cells with image features, expression features, types, and two strips of annotation."""
    adata = section.copy()
    adata.obsm["X_scVI"] = adata.obsm["X_pca"]
    along = adata.obsm["spatial"][:, 0]
    adata.obs["pathology"] = np.where(along % 300 < 150, "tumour", "stroma")
    return adata


def run(adata, **kwargs):
    given = {"K": 3, "seeds": 0, "use_rep": "X_image", "methods": FEW, "n_permutations": 99} | SHORT | kwargs
    return nk.tl.evaluate(adata, **given)


@pytest.fixture(scope="module")
def finished(cells, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation") / "out"
    table = run(cells, seeds=(0, 1), cell_type_key="cell_type", annotation_key="pathology", out=out)
    return out, table


def test_a_row_per_method(finished):
    _, table = finished
    assert table["key"].tolist() == ["niche_teacher", *FEW]
    assert table["role"].tolist() == ["reference", "method", "baseline", "floor"]
    assert (table["n_seeds"] == 2).all()
    judged = table.set_index("key").loc[list(FEW)]
    for score in ("ARI", "NMI", "JSD", "macro_f1"):
        assert judged[score].notna().all()
        assert judged[f"{score}_sd"].notna().all()
    assert judged.loc["niche", "ARI"] > judged.loc["niche_shuffled", "ARI"]
    assert judged["ECE"].notna().tolist() == [True, False, True]


def test_mean_and_sd_are_of_the_runs(finished):
    out, table = finished
    ari = pd.read_csv(out / "runs.csv").query("key == 'niche'")["ARI"]
    row = table.set_index("key").loc["niche"]
    assert row["ARI"] == pytest.approx(ari.mean(), rel=1e-5)
    assert row["ARI_sd"] == pytest.approx(ari.std(ddof=1), rel=1e-4)


def test_scores_are_those_of_the_labels_on_test(finished, cells):
    out, _ = finished
    test = (cells.obs["split"] == "test").to_numpy()
    with np.load(out / "runs/K3_seed1/niche.npz") as kept, np.load(out / "runs/K3_seed1/teacher.npz") as teacher:
        expected = adjusted_rand_score(teacher["logits"].argmax(1)[test], kept["labels"][test])
    runs = pd.read_csv(out / "runs.csv").query("key == 'niche' and seed == 1")
    assert runs["ARI"].item() == pytest.approx(expected, rel=1e-5)


def test_tables_hold_all_that_is_finished(cells, tmp_path):
    """Whatever a later call asks for: what it returns is that, and files lose no row."""
    out = tmp_path / "out"
    first = run(cells.copy(), seeds=(0, 1), methods=["niche", "niche_histology_leiden"], out=out)
    more = run(cells.copy(), K=2, methods=["niche"], out=out)
    assert more[["K", "key"]].to_numpy().tolist() == [[2, "niche"]]
    table, runs = pd.read_csv(out / "evaluation.csv"), pd.read_csv(out / "runs.csv")
    assert table[["K", "key", "n_seeds"]].to_numpy().tolist() == [
        [2, "niche", 1], [3, "niche", 2], [3, "niche_histology_leiden", 2],
    ]  # fmt: skip
    assert table["ARI"].to_numpy() == pytest.approx([*more["ARI"], *first["ARI"]], rel=1e-5)
    assert len(runs) == 5
    assert set(pd.read_csv(out / "teachers.csv")["K"]) == {2, 3}
    again = run(cells.copy(), seeds=1, methods=["niche_histology_leiden"], out=out)
    assert again["n_seeds"].tolist() == [1]
    pd.testing.assert_frame_equal(pd.read_csv(out / "evaluation.csv"), table)


def test_writes_the_tables(finished):
    out, table = finished
    names = {"evaluation", "agreement", "composition", "probe", "calibration", "runs", "teachers"}
    assert names <= {file.stem for file in out.glob("*.csv")}
    agreement = pd.read_csv(out / "agreement.csv")
    assert agreement["key"].tolist() == list(FEW)
    assert agreement["ARI"].tolist() == pytest.approx(table.set_index("key").loc[list(FEW), "ARI"].tolist(), rel=1e-5)
    assert pd.read_csv(out / "probe.csv")["key"].tolist() == ["niche_teacher", *FEW]
    teachers = pd.read_csv(out / "teachers.csv")
    assert {"niche", "coherence", "markers", "cell_types", "usage_entropy", "K", "seed"} <= set(teachers)


def test_finished_runs_are_not_done_again(finished, cells, monkeypatch):
    out, table = finished

    def never(*args, **kwargs):
        raise AssertionError("trained again")

    for name in ("_nolan.nolan", "_distill.distill", "_histology_leiden.histology_leiden"):
        monkeypatch.setattr(f"nichekd.tl.{name}", never)
    again = run(cells, seeds=(0, 1), cell_type_key="cell_type", annotation_key="pathology", out=out)
    pd.testing.assert_frame_equal(again, table)


def test_goes_on_after_an_interruption(finished, cells, tmp_path, monkeypatch):
    out, table = finished
    half = shutil.copytree(out, tmp_path / "half")
    (half / "runs/K3_seed1/niche_shuffled.npz").unlink()
    again = run(cells, seeds=(0, 1), cell_type_key="cell_type", annotation_key="pathology", out=half)
    scores = ["ARI", "NMI", "JSD", "macro_f1", "ECE"]
    pd.testing.assert_frame_equal(again[scores], table[scores])


def test_damaged_run(finished, cells, tmp_path):
    broken = shutil.copytree(finished[0], tmp_path / "broken")
    file = broken / "runs/K3_seed0/niche.npz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"niche\.npz is damaged"):
        run(cells, seeds=(0, 1), out=broken)


def test_folder_of_another_data_set(finished, cells, tmp_path):
    other = shutil.copytree(finished[0], tmp_path / "other")
    with pytest.raises(ValueError, match="results of something else: n_cells|results of something else: cells"):
        run(cells[:-1].copy(), out=other)


def test_folder_in_use(finished, cells):
    from filelock import FileLock

    with FileLock(finished[0] / "writer.lock"), pytest.raises(RuntimeError, match="Another process"):
        run(cells, out=finished[0])


def test_out_is_a_file(cells, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        run(cells, out=tmp_path / "file")


def test_soft_agreement_is_the_divergence_from_the_teacher_that_was_taught(finished, cells):
    """By hand: KL(softmax(teacher / tau) || student), tau as distill finds it for this teacher."""
    out, table = finished
    test = (cells.obs["split"] == "test").to_numpy()
    with np.load(out / "runs/K3_seed1/niche.npz") as kept, np.load(out / "runs/K3_seed1/teacher.npz") as teacher:
        logits, proba = teacher["logits"], np.maximum(kept["proba"][test].astype(float), 6e-8)
    adata = cells.copy()
    adata.obsm["teacher_logits"] = logits
    tau = nk.tl.distill(adata, use_rep="X_image", fit=SHORT["fit"]).config.temperature
    soft = np.exp(logits[test].astype(float) / tau)
    soft /= soft.sum(1, keepdims=True)
    runs = pd.read_csv(out / "runs.csv").query("key == 'niche' and seed == 1")
    assert runs["KL"].item() == pytest.approx((soft * np.log(soft / proba)).sum(1).mean(), rel=1e-3)
    judged = table.set_index("key")["KL"]
    assert judged[["niche_teacher", "niche_histology_leiden"]].isna().all()
    assert judged["niche"] < judged["niche_shuffled"]
    assert "KL" in pd.read_csv(out / "calibration.csv")


def test_a_niche_that_no_cell_has_moves_no_other(cells, tmp_path, monkeypatch):
    """Of K=4 the teacher uses three: a student of its labels knows three, and is judged by their names."""
    from nichekd._calibration import brier_score

    def all_but_1(run, seed):
        logits = np.full((run.adata.n_obs, 4), -9, dtype=np.float32)
        logits[np.arange(run.adata.n_obs), np.array([0, 2, 3])[cells.obs["niche_true"].cat.codes]] = 9
        run.adata.obsm["teacher_logits"] = logits

    monkeypatch.setattr("nichekd.tl._evaluation_runs.teach", all_but_1)
    enough = FitSettings(max_epochs=5, min_steps=0, batch_size=96, n_components=8)
    table = run(cells.copy(), K=4, methods=["niche_hard_labels"], fit=enough, out=tmp_path / "out")
    with (
        np.load(tmp_path / "out/runs/K4_seed0/niche_hard_labels.npz") as kept,
        np.load(tmp_path / "out/runs/K4_seed0/teacher.npz") as teacher,
    ):
        labels, proba, truth = kept["labels"], kept["proba"], teacher["logits"].argmax(1)
    assert proba.shape == (cells.n_obs, 4)
    assert (proba[:, 1] == 0).all()
    assert set(labels) <= {0, 2, 3}
    assert (labels == truth).mean() > 0.5  # a code too low, it would be a third
    test = (cells.obs["split"] == "test").to_numpy()
    row = table.set_index("key").loc["niche_hard_labels"]
    assert row["Brier"] == pytest.approx(brier_score(proba[test].astype(float), truth[test]))
    assert row["Brier"] < 0.7  # of the columns of others it would be above 1


def other_split(adata):
    adata.obs["split"] = adata.obs["split"].cat.rename_categories({"train": "test", "test": "train"})
    return {}


def other_radius(adata):
    nk.pp.neighborhoods(adata, radius=float(adata.uns["nichekd"]["radius"]) * 1.1)
    return {}


def other_expression(adata):
    adata.obsm["X_scVI"] = adata.obsm["X_scVI"] * 2
    return {}


def other_features(adata):
    adata.obsm["X_image"] = adata.obsm["X_image"] * 2
    return {}


def other_fit(adata):
    return {"fit": FitSettings(max_epochs=3, min_steps=0, batch_size=192, n_components=8, validation=0.15)}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (other_split, "something else: cells"),
        (other_radius, "something else: radius"),
        (other_expression, r"something else: features\.expression\.rows"),
        (other_features, r"something else: features\.frozen\.rows"),
        (other_fit, "something else: fit"),
    ],
)
def test_a_call_with_other_settings_is_refused(finished, cells, change, match):
    adata = cells.copy()
    changed = change(adata)
    with pytest.raises(ValueError, match=match):
        run(adata, out=finished[0], **changed)


@pytest.fixture(scope="module")
def slide():
    sdata = nk.datasets.simulate(300, K=3, seed=0, image=True)
    nk.pp.split(sdata)
    adata = sdata["table"]
    adata.obsm["X_scVI"] = np.log1p(adata.X.toarray()[:, :8]).astype(np.float32)
    nk.pp.neighborhoods(sdata)
    return sdata


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"crop_px": 12}, r"features\.frozen\.crop_px 16, now 12"),
        ({"mode": "dense"}, r"features\.frozen\.mode 'crop', now 'dense'"),
        ({"stain": "reinhard"}, r"features\.frozen\.stain None, now 'reinhard'"),
        ({"mpp": 2.0}, r"features\.frozen\.mpp .*, now 2\.0"),
    ],
)
def test_features_of_other_crops_are_refused(slide, tmp_path, changes, match):
    wanted = {"use_rep": "X_mine", "methods": ["niche_histology_leiden"], "out": tmp_path / "out"}
    of = {"encoder": nk.models.Encoder("corners", Corners()), "key_added": "X_mine", "crop_px": 16}
    nk.pp.histology_features(slide, **of)
    table = run(slide, **wanted)
    slide["table"].uns = anndata_reloaded(slide["table"], tmp_path).uns
    pd.testing.assert_frame_equal(run(slide, **wanted), table)
    if changes.get("mode") == "dense":
        slide["table"].uns["nichekd"]["features"]["X_mine"] |= {"mode": "dense", "stride_px": 11}
    else:
        nk.pp.histology_features(slide, **of | changes)
    with pytest.raises(ValueError, match=match):
        run(slide, **wanted)


def anndata_reloaded(adata, folder):
    import anndata

    adata.write_h5ad(folder / "table.h5ad")
    return anndata.read_h5ad(folder / "table.h5ad")


class Corners(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


def test_features_of_another_encoder_are_refused_before_any_is_made(slide, tmp_path, monkeypatch):
    def again(encoder):
        tables = {"table": slide["table"].copy()}
        fresh = SpatialData(images=dict(slide.images), shapes=dict(slide.shapes), tables=tables)
        return run(fresh, methods=["niche_histology_leiden"], use_rep=None, encoder=encoder, out=tmp_path / "out")

    assert len(again("color")) == 1
    monkeypatch.setattr(nk.pp, "histology_features", None)
    with pytest.raises(ValueError, match=r"features\.frozen 'X_color .*', now 'X_random"):
        again("random")


@pytest.mark.parametrize(
    ("content", "match"), [(None, "no manifest.json"), ("{", "is damaged"), ("[]", "is damaged: it holds a list")]
)
def test_lost_or_damaged_manifest(finished, cells, tmp_path, content, match):
    shutil.copytree(finished[0], tmp_path / "copy")
    manifest = tmp_path / "copy" / "manifest.json"
    manifest.unlink() if content is None else manifest.write_text(content)
    with pytest.raises(ValueError, match=match):
        run(cells.copy(), out=tmp_path / "copy")


def test_features_of_an_encoder_with_slashes_are_found(slide, monkeypatch):
    nk.models.register_encoder("hf-hub:o/m", lambda weights: nk.models.Encoder("hf-hub:o/m", Corners()), overwrite=True)
    nk.pp.histology_features(slide, encoder="hf-hub:o/m", crop_px=16)

    def never(*args, **kwargs):
        raise AssertionError("encoded again")

    monkeypatch.setattr(nk.pp, "histology_features", never)
    table = run(slide, use_rep=None, encoder="hf-hub:o/m", methods=["niche_histology_leiden"])
    assert table["key"].tolist() == ["niche_histology_leiden"]


def test_the_frozen_encoder_is_made_once(slide):
    made = []

    def encoder(weights):
        made.append(nk.models.Encoder("once", Corners()))
        return made[-1]

    nk.models.register_encoder("once", encoder, overwrite=True)
    run(slide, use_rep=None, encoder="once", methods=["niche_histology_leiden"])
    assert len(made) == 1


def test_features_of_other_weights_are_not_taken_for_those_named(slide):
    def encoder(weights):
        return nk.models.Encoder("weighed", Corners() if weights is None else torch.nn.Flatten(), weights=weights)

    nk.models.register_encoder("weighed", encoder, overwrite=True)
    nk.pp.histology_features(slide, encoder="weighed", crop_px=16)
    with pytest.raises(ValueError, match=r"made with weights None, now weights='w\.safetensors'"):
        run(slide, use_rep=None, encoder="weighed", weights="w.safetensors", methods=["niche_histology_leiden"])


def test_the_gene_aware_encoder_of_other_settings_is_refused_and_the_same_is_taken(slide, tmp_path):
    from nichekd.tl import GeneAwareSettings

    few = GeneAwareSettings(max_epochs=1, crops_per_epoch=8, batch_size=4)
    wanted = {
        "use_rep": None,
        "methods": ["niche_gene_aware_leiden"],
        "out": tmp_path / "out",
        "gene_aware": "small_cnn",
    }
    table = run(slide, gene_aware_fit=few, **wanted)
    assert (tmp_path / "out/encoder/encoder.json").is_file()
    assert not (tmp_path / "out/encoder.new").exists()
    with pytest.raises(ValueError, match="something else: gene_aware_fit"):
        run(slide, **wanted)
    del slide["table"].obsm["X_gene_aware"]
    with pytest.raises(ValueError, match="something else: gene_aware_fit"):
        run(slide, **wanted)
    pd.testing.assert_frame_equal(run(slide, gene_aware_fit=few, **wanted), table)


def test_an_encoder_that_was_half_saved_is_not_taken(slide, tmp_path, monkeypatch):
    from nichekd.tl import GeneAwareSettings

    few = GeneAwareSettings(max_epochs=1, crops_per_epoch=8, batch_size=4)
    wanted = {
        "use_rep": None,
        "methods": ["niche_gene_aware_leiden"],
        "out": tmp_path / "out",
        "gene_aware": "small_cnn",
    }
    slide["table"].obsm.pop("X_gene_aware", None)

    def killed(encoder, path):
        path.mkdir()
        (path / "encoder.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    save = nk.models.Encoder.save
    monkeypatch.setattr(nk.models.Encoder, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run(slide, gene_aware_fit=few, **wanted)
    monkeypatch.setattr(nk.models.Encoder, "save", save)
    assert run(slide, gene_aware_fit=few, **wanted)["ARI"].notna().all()


def test_leaves_no_labels_in_the_table(finished, cells):
    assert not [name for name in cells.obs if str(name).startswith("niche") and name != "niche_true"]
    assert list(cells.uns["nichekd"]["evaluate"]["methods"]) == list(FEW)


def test_many_data_sets(cells, tmp_path):
    cells.write_h5ad(tmp_path / "first.h5ad")
    keys = ("niche_histology_leiden", "niche_own_crop")
    table = run({"first": tmp_path / "first.h5ad", "second": cells}, methods=keys, out=tmp_path / "out")
    assert table["dataset"].tolist() == ["first"] * 2 + ["second"] * 2 + ["mean"] * 2
    each, mean = table[table["dataset"] != "mean"], table[table["dataset"] == "mean"]
    assert mean["ARI"].tolist() == pytest.approx(each.groupby("key", sort=False)["ARI"].mean().tolist())
    assert (mean["n_datasets"] == 2).all()
    assert (tmp_path / "out/second/agreement.csv").is_file()
    assert set(pd.read_csv(tmp_path / "out/agreement.csv")["dataset"]) == {"first", "second", "mean"}


def test_splits_what_is_not(section):
    adata = section.copy()
    del adata.obs["split"]
    adata.obsm["X_scVI"] = adata.obsm["X_pca"]
    sdata = nk.datasets.simulate(1500, K=3, seed=0, image=True)
    sdata["table"].obsm["X_image"] = adata.obsm["X_image"]
    sdata["table"].obsm["X_scVI"] = adata.obsm["X_pca"]
    table = run(sdata, methods=["niche_histology_leiden", "niche_color"])
    assert set(sdata["table"].obs["split"]) == {"train", "test", "buffer"}
    assert table["key"].tolist() == ["niche_histology_leiden", "niche_color"]
    assert sdata["table"].uns["nichekd"].get("use_rep") != "X_color"


def test_fewer_niches_than_k(cells):
    table = run(cells, K=12, methods=["niche_histology_leiden"], cell_type_key="cell_type")
    assert table["n_matched"].item() <= 12
    assert 0 <= table["JSD"].item() <= 1


def test_cell_types_with_missing_values(cells):
    adata = cells.copy()
    types = adata.obs["cell_type"].astype(object)
    types.iloc[::3] = np.nan
    adata.obs["some"] = pd.Categorical(types)
    table = run(adata, methods=["niche_histology_leiden"], cell_type_key="some")
    assert table["JSD"].notna().all()


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"K": (3, 3)}, ValueError, r"K=\[3, 3\]: name at least one, each once"),
        ({"K": ()}, ValueError, "name at least one"),
        ({"K": (2.5,)}, TypeError, "whole numbers"),
        ({"K": 1}, ValueError, "K=1"),
        ({"seeds": (0, 0)}, ValueError, "seeds"),
        ({"methods": ["nope"]}, ValueError, "no method"),
        ({"methods": []}, ValueError, "at least one"),
        ({"cell_type_key": "nope"}, KeyError, "nope"),
        ({"annotation_key": "nope"}, KeyError, "nope"),
        ({"use_rep": "X_nope"}, KeyError, "X_nope"),
        ({"split_key": "nope"}, KeyError, "nope"),
    ],
)
def test_bad_input(cells, kwargs, error, match):
    with pytest.raises(error, match=match):
        run(cells, **kwargs)


def test_no_annotation_in_the_test_strip(cells):
    adata = cells.copy()
    adata.obs["elsewhere"] = adata.obs["pathology"].where(adata.obs["split"] == "train")
    with pytest.raises(ValueError, match="by split"):
        run(adata, annotation_key="elsewhere")


def test_no_cell_type_in_the_test_strip(cells):
    adata = cells.copy()
    adata.obs["elsewhere"] = adata.obs["cell_type"].where(adata.obs["split"] == "train")
    with pytest.raises(ValueError, match="no test cell"):
        run(adata, cell_type_key="elsewhere")


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        ({}, ValueError, "no data set"),
        (["a.h5ad", "b/a.h5ad"], ValueError, "same name"),
        ("nowhere", FileNotFoundError, "nowhere"),
        ({"x": "nowhere.h5ad"}, FileNotFoundError, "nowhere"),
        ({"x": 3}, TypeError, "int"),
    ],
)
def test_bad_data_sets(data, error, match):
    with pytest.raises(error, match=match):
        run(data)


def test_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="holds no"):
        run(tmp_path)


def test_manifest_says_what_it_is_of(finished, cells):
    manifest = json.loads((finished[0] / "manifest.json").read_text())
    assert manifest["n_cells"] == cells.n_obs
    assert manifest["radius"] == pytest.approx(cells.uns["nichekd"]["radius"])


def test_no_permutation_is_refused_at_once(cells):
    with pytest.raises(ValueError, match="n_permutations=0"):
        run(cells.copy(), cell_type_key="cell_type", n_permutations=0)


@pytest.mark.parametrize("name", ["mean", "", "..", "a/b"])
def test_names_that_are_no_folders(cells, name):
    with pytest.raises(ValueError, match="Data sets are named"):
        run({name: cells})


def test_the_broken_data_set_is_named(cells):
    broken = cells.copy()
    del broken.obsm["X_image"]
    with pytest.raises(KeyError, match="Data set 'second'.*X_image"):
        run({"second": broken}, methods=("niche_own_crop",))
