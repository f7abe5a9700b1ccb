from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import read_h5ad
from scipy import sparse
from scipy.special import softmax
from sklearn.metrics import adjusted_rand_score
from spatialdata import read_zarr

import nichekd as nk
from nichekd.models import NicheStudent
from nichekd.tl import FitSettings
from nichekd.tl._teacher import resolve_teacher

ONE_EPOCH = FitSettings(max_epochs=1, min_steps=0, batch_size=256, validation=0, n_components=4)


@pytest.fixture
def distill(quick_fit):
    return partial(nk.tl.distill, use_rep="X_image", fit=quick_fit)


@pytest.fixture
def quickly():
    """For what shows without any learning."""
    return partial(nk.tl.distill, use_rep="X_image", fit=ONE_EPOCH)


def agreement(adata, key: str = "niche") -> float:
    """ARI with the teacher on the test strip."""
    test = adata.obs["split"] == "test"
    return adjusted_rand_score(adata.obs.loc[test, "niche_teacher"], adata.obs.loc[test, key])


def test_writes_what_the_student_says(taught):
    adata, student = taught
    logits, proba = adata.obsm["student_logits"], adata.obsm["student_proba"]
    assert logits.dtype == proba.dtype == np.float32
    assert logits.shape == proba.shape == (1500, 3)
    tau = student.config.temperature
    np.testing.assert_allclose(proba, softmax(logits / tau, axis=1), atol=1e-5)
    assert adata.obs["niche"].cat.categories.tolist() == ["0", "1", "2"]
    assert (adata.obs["niche"].cat.codes == logits.argmax(1)).all()
    assert adata.obs["niche_entropy"].dtype == np.float32
    entropy = -(proba * np.log(proba)).sum(1) / np.log(3)
    np.testing.assert_allclose(adata.obs["niche_entropy"], entropy, atol=1e-4)
    assert adata.obs["niche_entropy"].between(0, 1).all()
    assert adata.uns["niche_colors"] == list(student.config.niche_colors)


def test_student_remembers_what_inference_needs(taught):
    adata, student = taught
    assert isinstance(student, NicheStudent)
    assert not student.training
    config = student.config
    assert config.radius == adata.uns["nichekd"]["radius"]
    assert config.niche_names == ("0", "1", "2")
    assert config.n_features == 16
    assert config.training["n_cells"] == (adata.obs["split"] == "train").sum()
    assert student.n_niches == 3


def test_records_parameters_and_history(taught):
    adata, student = taught
    about = adata.uns["nichekd"]["distill"]
    assert about["K"] == 3
    assert about["use_rep"] == "X_image"
    assert about["teacher"] == "teacher_logits"
    assert about["temperature"] == student.config.temperature > 0
    assert {"epoch", "train_loss", "validation_loss", "validation_ari"} == set(about["history"])
    assert student.history["train_loss"] == about["history"]["train_loss"].tolist()
    assert student.history["train_loss"][-1] < 0.5 * student.history["train_loss"][0]


def test_learns_the_teachers_niches(taught):
    assert agreement(taught[0]) >= 0.5


def test_shuffled_images_teach_nothing(taught_cells, distill):
    rng = np.random.default_rng(0)
    taught_cells.obsm["X_image"] = taught_cells.obsm["X_image"][rng.permutation(1500)]
    distill(taught_cells)
    assert agreement(taught_cells) <= 0.1


def test_same_seed_same_niches(taught, taught_cells, distill):
    torch.manual_seed(5)  # what went on before does not matter
    distill(taught_cells)
    assert np.array_equal(taught_cells.obsm["student_logits"], taught[0].obsm["student_logits"])


def test_another_seed_is_another_student(taught, taught_cells, quickly):
    first, second = quickly(taught_cells, seed=0), quickly(taught_cells, seed=1)
    assert not first.head.weight.equal(second.head.weight)


def test_nothing_is_learnt_from_test_and_buffer(taught_cells, quickly):
    before = quickly(taught_cells).state_dict()
    other = (taught_cells.obs["split"] != "train").to_numpy()
    taught_cells.obsm["X_image"][other] = 99
    taught_cells.obsm["teacher_logits"][other] = 99
    after = quickly(taught_cells).state_dict()
    assert all(after[name].equal(value) for name, value in before.items())


def test_survives_h5ad(taught_cells, tmp_path):
    taught_cells.write_h5ad(tmp_path / "cells.h5ad")
    back = read_h5ad(tmp_path / "cells.h5ad")
    for key in ("student_logits", "student_proba"):
        assert np.array_equal(back.obsm[key], taught_cells.obsm[key])
    for key in ("niche", "niche_entropy"):
        pd.testing.assert_series_equal(back.obs[key], taught_cells.obs[key])
    assert list(back.uns["niche_colors"]) == taught_cells.uns["niche_colors"]
    assert back.uns["nichekd"]["distill"]["temperature"] == taught_cells.uns["nichekd"]["distill"]["temperature"]


def test_works_on_what_was_reloaded(taught_cells, quickly, tmp_path):
    taught_cells.write_h5ad(tmp_path / "cells.h5ad")
    back = read_h5ad(tmp_path / "cells.h5ad")
    quickly(back)
    quickly(taught_cells)
    assert np.array_equal(back.obsm["student_logits"], taught_cells.obsm["student_logits"])


@pytest.mark.parametrize("preset", ["small", "base"])
def test_presets(taught_cells, preset):
    few = taught_cells[:120].copy()
    student = nk.tl.distill(few, use_rep="X_image", preset=preset, fit=ONE_EPOCH)
    assert student.config.network.architecture == "transformer"
    assert few.obsm["student_logits"].shape == (120, 3)


# --- teachers


def test_teacher_by_its_logits_in_an_array(taught_cells, quickly):
    quickly(taught_cells)
    expected = taught_cells.obsm["student_logits"]
    quickly(taught_cells, teacher=taught_cells.obsm["teacher_logits"])
    assert np.array_equal(taught_cells.obsm["student_logits"], expected)
    assert taught_cells.uns["nichekd"]["distill"]["teacher"] == "array"


def test_teacher_by_probabilities(taught_cells, quickly):
    proba = softmax(taught_cells.obsm["teacher_logits"] / 0.1, axis=1)
    proba[5] = np.nan  # says nothing
    taught_cells.obsm["mine"] = pd.DataFrame(proba, index=taught_cells.obs_names, columns=["gut", "duct", "fat"])
    student = quickly(taught_cells, teacher="mine")
    assert student.config.temperature == 1
    assert student.config.niche_names == ("gut", "duct", "fat")
    assert taught_cells.obs["niche"].cat.categories.tolist() == ["gut", "duct", "fat"]


def test_teacher_by_labels_with_gaps(taught_cells, distill):
    names = np.array(["acinus", "duct", "stroma"])[taught_cells.obs["niche_teacher"].cat.codes]
    column = pd.Categorical(names, categories=["acinus", "duct", "nowhere", "stroma"])
    column[::2] = np.nan  # half of the tissue was not annotated
    taught_cells.obs["annotation"] = column
    taught_cells.uns["annotation_colors"] = ["#aa0000", "#00bb00", "#0000cc", "#dddd00"]
    student = distill(taught_cells, teacher="annotation")
    assert student.config.niche_names == ("acinus", "duct", "stroma")
    assert student.config.niche_colors == ("#aa0000", "#00bb00", "#dddd00")
    train = taught_cells.obs["split"] == "train"
    assert student.config.training["n_cells"] == taught_cells.obs.loc[train, "annotation"].notna().sum()
    assert taught_cells.obs["niche"].notna().all()
    assert agreement(taught_cells) >= 0.5


@pytest.mark.filterwarnings("ignore:Changing the sparsity structure")  # scanpy's, on its own graph
@pytest.mark.filterwarnings(r"ignore:\s*In the future, the default backend for leiden:FutureWarning")
@pytest.mark.filterwarnings("ignore:The `igraph` implementation of leiden:FutureWarning")  # the same of scanpy 1.12
@pytest.mark.filterwarnings("ignore:No training cell has the label")
def test_teacher_by_squidpy(taught_cells, quickly):
    import squidpy as sq

    sq.gr.calculate_niche(taught_cells, flavor="neighborhood", groups="cell_type", n_neighbors=15, resolutions=[0.5])
    (key,) = [name for name in taught_cells.obs if name.startswith("nhood_niche")]
    student = quickly(taught_cells, teacher=key)
    assert set(taught_cells.obs["niche"].cat.categories) == set(taught_cells.obs[key].unique())
    assert student.n_niches == taught_cells.obs[key].nunique()


def test_whole_numbers_are_labels(taught_cells, quickly):
    taught_cells.obs["cluster"] = 10 + 5 * taught_cells.obs["niche_teacher"].cat.codes.astype(int)
    assert quickly(taught_cells, teacher="cluster").config.niche_names == ("10", "15", "20")


def test_teachers_colors_are_the_students(taught_cells, quickly):
    taught_cells.uns["niche_teacher_colors"] = ["#111111", "#222222", "#333333"]
    quickly(taught_cells)
    assert taught_cells.uns["niche_colors"] == ["#111111", "#222222", "#333333"]


def test_temperature(taught_cells, quickly):
    automatic = quickly(taught_cells).config.temperature
    assert 0 < automatic < 1  # cosines are near each other
    assert quickly(taught_cells, temperature=0.7).config.temperature == 0.7


# --- what is missing


def test_embedding_is_learned_beside_and_left_behind(taught_cells, quickly):
    """It changes what is learned, not what the student is; and its rows of other cells play no part."""
    plain = quickly(taught_cells)
    taught_cells.obsm["X_read"] = np.random.default_rng(0).normal(size=(taught_cells.n_obs, 5)).astype(np.float32)
    beside = quickly(taught_cells, embedding="X_read")
    assert set(beside.state_dict()) == set(plain.state_dict())
    assert not torch.equal(beside.head.weight, plain.head.weight)
    assert taught_cells.uns["nichekd"]["distill"]["embedding"] == "X_read"
    taught_cells.obsm["X_read"][(taught_cells.obs["split"] != "train").to_numpy()] = 100
    assert torch.equal(quickly(taught_cells, embedding="X_read").head.weight, beside.head.weight)


def test_cells_beside_their_nuclei_are_warned_of(quickly):
    sdata = nk.datasets.simulate(1500, K=3, seed=0)
    sdata["table"].obsm["spatial"][:, 1] += 9
    sdata["table"].obsm["X_image"] = np.random.default_rng(0).normal(size=(1500, 4)).astype(np.float32)
    with pytest.warns(UserWarning, match="sit 9.* µm beside the nuclei.*alignment_qc"):
        quickly(sdata, teacher="niche_true")
    assert quickly(sdata, teacher="niche_true").n_niches == 3  # said once


def test_a_large_section_keeps_the_student_that_validated_best(taught_cells, monkeypatch):
    """What it said of the squares that were held back is what it says of them now."""
    monkeypatch.setattr("nichekd.tl._fit.ENOUGH_TO_HOLD_BACK", 100)
    nk.tl.distill(taught_cells, use_rep="X_image", fit=FitSettings(max_epochs=3, min_steps=0, learning_rate=0.01))
    held_out = taught_cells.uns["nichekd"]["distill"]["held_out"]
    assert len(held_out["cells"]) > 50
    np.testing.assert_allclose(taught_cells.obsm["student_logits"][held_out["cells"]], held_out["logits"], atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"K": 2.0}, TypeError, "whole number"),
        ({"teacher": "niche_tru"}, KeyError, "no teacher 'niche_tru'"),
        ({"teacher": "niche_true", "K": 5}, ValueError, "K=5, but the teacher niche_true has 3 niches"),
        ({"temperature": 0}, ValueError, "temperature=0; it has to be positive"),
        ({"embedding": "X_nothing"}, KeyError, "X_nothing.*Run nk.pp.expression_features"),
        ({"sizes": {"width": 64}}, TypeError, r"names \['width'\].*it has .*'d_model'"),
        ({"sizes": {"d_model": 30}}, ValueError, "d_model=30 is not a multiple of n_heads=4"),
        ({"sizes": {"n_frequencies": -1}}, ValueError, "n_frequencies=-1"),
        ({"sizes": {"n_layers": 1.5}}, TypeError, "n_layers=1.5, which has to be a whole number"),
        ({"sizes": {"dropout": "a"}}, TypeError, "dropout='a', which has to be a number"),
        ({"preset": "huge"}, ValueError, "no preset 'huge'"),
        ({"fit": {"max_epochs": 3}}, TypeError, "fit is a dict; it has to be an nk.tl.FitSettings"),
    ],
)
def test_mistakes_are_found_before_the_image_is_encoded(wrong, error, message, monkeypatch):
    sdata = nk.datasets.simulate(300, K=3, seed=0)
    monkeypatch.setattr("nichekd.pp.histology_features", lambda *_, **__: pytest.fail("encoded"))
    with pytest.raises(error, match=message):
        nk.tl.distill(sdata, **wrong)


def test_missing_embedding(taught_cells, quickly):
    with pytest.raises(KeyError, match="X_nothing.*Run nk.pp.expression_features"):
        quickly(taught_cells, embedding="X_nothing")


def test_missing_teacher_is_trained(cells, quickly, quick_nolan, monkeypatch, caplog):
    monkeypatch.setattr("nichekd.tl._nolan.nolan", partial(nk.tl.nolan, use_rep="X_pca", fit=quick_nolan))
    with caplog.at_level("INFO", logger="nichekd"):
        student = quickly(cells, 3)
    assert student.n_niches == 3
    assert "niche_teacher" in cells.obs
    assert "no teacher yet: training NOLAN" in caplog.text


def test_missing_image_features_are_made(monkeypatch, tmp_path):
    sdata = nk.datasets.simulate(250, K=2, seed=0)
    monkeypatch.setattr(nk.settings, "encoder", "color")
    student = nk.tl.distill(sdata, teacher="niche_true", fit=ONE_EPOCH)
    adata = sdata["table"]
    assert adata.uns["nichekd"]["use_rep"] == "X_color"
    features = student.config.features
    assert features["encoder"] == "color"
    assert features["crop_px"] == 224
    assert features["mpp"] == pytest.approx(0.25)
    assert features["fingerprint"] == adata.uns["nichekd"]["features"]["X_color"]["fingerprint"]
    assert "color" in student.card()

    sdata.write(tmp_path / "result.zarr")
    back = read_zarr(tmp_path / "result.zarr")["table"]
    assert np.array_equal(back.obsm["student_logits"], adata.obsm["student_logits"])
    assert back.obs["niche"].tolist() == adata.obs["niche"].tolist()


def test_missing_features(taught_cells):
    with pytest.raises(KeyError, match=r"obsm\['X_uni2'\] is missing.*X_image.*Run nk.pp.histology_features"):
        nk.tl.distill(taught_cells, use_rep="X_uni2")


# --- bad input


def test_unknown_teacher(taught_cells, quickly):
    with pytest.raises(
        KeyError, match=r"no teacher 'novae': obsm has .*X_image.*obs has .*niche_true.*Run nk.tl.nolan"
    ):
        quickly(taught_cells, teacher="novae")


def test_teacher_with_other_rows(taught_cells, quickly):
    with pytest.raises(
        ValueError, match=r"teacher array has shape \(1499, 3\); it has to be \(1,500 cells, K niches\)"
    ):
        quickly(taught_cells, teacher=taught_cells.obsm["teacher_logits"][1:])
    with pytest.raises(ValueError, match=r"has shape \(1500,\)"):
        quickly(taught_cells, teacher=np.zeros(1500))


def test_rows_of_a_frame_go_by_their_names(taught_cells):
    frame = pd.DataFrame(taught_cells.obsm["teacher_logits"], index=taught_cells.obs_names)
    expected = resolve_teacher(taught_cells, frame).logits
    np.testing.assert_array_equal(resolve_teacher(taught_cells, frame.iloc[::-1]).logits, expected)
    unnamed = frame.reset_index(drop=True).set_axis([f"row {i}" for i in range(1500)])
    np.testing.assert_array_equal(resolve_teacher(taught_cells, unnamed).logits, expected)
    with pytest.raises(ValueError, match=r"names 1,499 of the 1,500 cells in its 1,499 rows.*reindex"):
        resolve_teacher(taught_cells, frame.iloc[1:])


def test_teacher_with_one_niche(taught_cells, quickly):
    with pytest.raises(ValueError, match="has 1 column; a teacher has at least two"):
        quickly(taught_cells, teacher=np.zeros((1500, 1)))
    taught_cells.obs["same"] = "a"
    with pytest.raises(ValueError, match=r"has 1 label \['a'\]"):
        quickly(taught_cells, teacher="same")


def test_teacher_that_is_no_number(taught_cells, quickly):
    with pytest.raises(TypeError, match=r"teacher array holds no numbers.*column of obs"):
        quickly(taught_cells, teacher=taught_cells.obs["cell_type"].to_numpy())


def test_teacher_of_floats(taught_cells, quickly):
    taught_cells.obs["score"] = taught_cells.obs["niche_entropy"]
    with pytest.raises(TypeError, match=r"obs\['score'\] holds floats.*astype\('category'\)"):
        quickly(taught_cells, teacher="score")


def test_teacher_that_says_nothing(taught_cells, quickly):
    with pytest.raises(ValueError, match="NaN or infinite for all cells"):
        quickly(taught_cells, teacher=np.full((1500, 3), np.nan))


def test_teacher_that_knows_no_training_cell(taught_cells, quickly):
    logits = taught_cells.obsm["teacher_logits"].copy()
    logits[taught_cells.obs["split"] == "train"] = np.nan
    n_train, n_other = taught_cells.obs["split"].eq("train").sum(), taught_cells.obs["split"].ne("train").sum()
    with pytest.raises(ValueError, match=f"None of the {n_train} training cells has a target; {n_other} other cells"):
        quickly(taught_cells, teacher=logits)


def test_other_number_of_niches_than_the_teachers(taught_cells, quickly):
    with pytest.raises(ValueError, match=r"K=5, but the teacher teacher_logits has 3 niches.*nk.tl.nolan\(data, K=5\)"):
        quickly(taught_cells, 5)


@pytest.mark.parametrize(
    ("K", "error", "message"),
    [(1, ValueError, "K=1"), (2000, ValueError, "K=2000"), (3.0, TypeError, r"K is 3\.0"), (True, TypeError, "True")],
)
def test_impossible_number_of_niches(taught_cells, quickly, K, error, message):
    with pytest.raises(error, match=message):
        quickly(taught_cells, K)


@pytest.mark.parametrize("temperature", [0, -1, np.nan, "hot"])
def test_impossible_temperature(taught_cells, quickly, temperature):
    with pytest.raises(ValueError, match=f"temperature={temperature!r}; it has to be positive, or 'auto'"):
        quickly(taught_cells, temperature=temperature)


def test_features_that_are_no_numbers(taught_cells, quickly):
    taught_cells.obsm["X_image"][7, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite for 1 of 1,500 cells"):
        quickly(taught_cells)


def test_features_of_another_type(taught_cells, quickly):
    taught_cells.obsm["X_words"] = taught_cells.obsm["X_image"].astype(str)
    with pytest.raises(TypeError, match=r"obsm\['X_words'\] is of type .*features are numbers"):
        quickly(taught_cells, use_rep="X_words")


def test_sparse_features(taught_cells, quickly):
    dense = quickly(taught_cells, use_rep="X_image")
    logits = taught_cells.obsm["student_logits"].copy()
    taught_cells.obsm["X_sparse"] = sparse.csr_matrix(taught_cells.obsm["X_image"].astype(np.float32))
    quickly(taught_cells, use_rep="X_sparse")
    assert dense.config.n_features == taught_cells.obsm["X_sparse"].shape[1]
    np.testing.assert_array_equal(taught_cells.obsm["student_logits"], logits)


def test_neighborhoods_older_than_the_split(taught_cells, quickly):
    del taught_cells.obs["split"]
    nk.pp.neighborhoods(taught_cells, radius=40.0)
    with pytest.warns(UserWarning, match="made before this split"):
        nk.pp.split(taught_cells, mpp=0.25)
    with pytest.raises(ValueError, match="Run nk.pp.neighborhoods again"):
        quickly(taught_cells)


def test_a_radius_estimated_before_the_split_is_estimated_anew(taught_cells, quickly):
    del taught_cells.obs["split"]
    del taught_cells.uns["nichekd"]["radius"]
    nk.pp.neighborhoods(taught_cells)
    of_all = taught_cells.uns["nichekd"]["radius"]
    with pytest.warns(UserWarning, match="estimated before this split"):
        nk.pp.split(taught_cells, mpp=0.25)
    student = quickly(taught_cells)
    assert student.config.radius == taught_cells.uns["nichekd"]["radius"] != of_all


def test_no_training_cell(taught_cells, quickly):
    taught_cells.obs["split"] = pd.Categorical(["test"] * 1500)
    with pytest.raises(ValueError, match="no 'train' cell"):
        quickly(taught_cells)


# what others wrote since


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_squidpy_wrote_another_graph(taught_cells, quickly):
    import squidpy as sq

    sq.gr.spatial_neighbors(taught_cells, n_neighs=6, coord_type="generic")
    with pytest.raises(ValueError, match=r"another graph than that of the radius .* made with .*Run nk.pp.neigh"):
        quickly(taught_cells)


def test_another_radius_was_estimated_since(taught_cells, quickly):
    nk.pp.estimate_radius(taught_cells, n_neighbors=9)
    with pytest.raises(ValueError, match=r"another graph than that of the radius in uns\['nichekd'\]"):
        quickly(taught_cells)
    del taught_cells.obs["split"]
    nk.pp.neighborhoods(taught_cells)
    quickly(taught_cells)


def test_a_view_becomes_a_table_of_its_own(taught_cells):
    before = taught_cells.uns["nichekd"]["radius"]
    part = taught_cells[taught_cells.obs["split"] == "train"]
    assert part.is_view
    nk.pp.estimate_radius(part, n_neighbors=9)
    assert part.uns["nichekd"]["radius"] != before
    assert taught_cells.uns["nichekd"]["radius"] == before


def test_a_gene_aware_encoder_that_is_gone(taught_cells, quickly):
    about = {"encoder": "gene_aware", "fingerprint": "0" * 16, "crop_px": 224, "mpp": 0.25}
    taught_cells.uns["nichekd"]["features"] = {"X_image": about}
    with pytest.warns(UserWarning, match=r"not in this session: the student goes without it.*register_encoder"):
        assert quickly(taught_cells).encoder is None


def test_squares_are_those_of_all_training_cells(taught_cells):
    """So that a gene-aware encoder has held the same ones back, whatever the teacher labels."""
    taught_cells.obs["some"] = taught_cells.obs["niche_teacher"].where(np.arange(1500) % 3 > 0)
    fit = FitSettings(max_epochs=1, min_steps=0, validation=0.15)
    held = {}
    for teacher in ("niche_teacher", "some"):
        nk.tl.distill(taught_cells, use_rep="X_image", teacher=teacher, fit=fit)
        held[teacher] = set(taught_cells.uns["nichekd"]["distill"]["held_out"]["cells"].tolist())
    assert held["some"] == {i for i in held["niche_teacher"] if i % 3}


@pytest.mark.parametrize("labelled", ["in the squares", "beyond them"])
def test_labels_that_cannot_spare_the_squares(taught_cells, labelled, caplog):
    """Annotations of a corner of the tissue: all of them train, for as long as was asked."""
    squares = taught_cells.uns["nichekd"]["distill"]["held_out"]["cells"]
    known = np.isin(np.arange(1500), squares if labelled == "in the squares" else squares[3:])
    taught_cells.obs["some"] = taught_cells.obs["niche_teacher"].where(known == (labelled == "in the squares"))
    fit = FitSettings(max_epochs=2, min_steps=0, n_components=4)
    with caplog.at_level("INFO", logger="nichekd"):
        nk.tl.distill(taught_cells, use_rep="X_image", teacher="some", fit=fit)
    about = taught_cells.uns["nichekd"]["distill"]
    assert "held_out" not in about
    assert about["history"]["epoch"].tolist() == [1, 2]
    assert "nothing is held back" in caplog.text


def test_all_steps_run_on_the_device(monkeypatch, quick_nolan):
    """Also those that distill does because their results are missing."""
    sdata = nk.datasets.simulate(300, K=3, seed=0)
    devices = []

    def latent(data, *, device, **_):
        devices.append(device)
        data["table"].obsm["X_scVI"] = np.log1p(data["table"].X.toarray()[:, :8])

    monkeypatch.setattr("nichekd.pp.expression_features", latent)
    monkeypatch.setattr("nichekd.tl._nolan.nolan", partial(nk.tl.nolan, fit=quick_nolan))
    monkeypatch.setattr(nk.settings, "encoder", "color")
    monkeypatch.setattr(nk.settings, "device", "nowhere")  # whatever asks for it fails
    nk.tl.distill(sdata, K=3, fit=ONE_EPOCH, device="cpu")
    assert devices == ["cpu"]


def test_labels_that_read_alike_cannot_teach(taught_cells):
    taught_cells.obs["mixed"] = pd.Series([1, "1", 2] * 500, dtype=object, index=taught_cells.obs_names)
    with pytest.raises(ValueError, match=r"obs\['mixed'\] has categories that read alike, \[1, '1'\]"):
        resolve_teacher(taught_cells, "mixed")
    frame = pd.DataFrame(taught_cells.obsm["teacher_logits"], columns=["a", "b", "a"])
    with pytest.raises(ValueError, match=r"columns that read alike, \['a', 'a'\]"):
        resolve_teacher(taught_cells, frame)


def test_stored_colors_that_are_none_are_not_taken(taught_cells):
    taught_cells.uns["niche_teacher_colors"] = ["no colour", "#222222", "#333333"]
    assert all(color.startswith("#") for color in resolve_teacher(taught_cells, "niche_teacher").colors)
    taught_cells.uns["niche_teacher_colors"] = np.eye(3)
    assert resolve_teacher(taught_cells, "niche_teacher").colors == ("#ff0000", "#00ff00", "#0000ff")


def test_a_label_without_a_training_cell_is_warned_of(taught_cells, quickly):
    train = taught_cells.obs["split"] == "train"
    taught_cells.obs["label"] = np.where(train, "a", "t")
    with pytest.warns(UserWarning, match=r"No training cell has the label 't'.*test_strip="):
        assert quickly(taught_cells, teacher="label").n_niches == 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_features_that_are_too_large(taught_cells, quickly, dtype):
    taught_cells.obsm["X_image"] = np.full((taught_cells.n_obs, 4), 1e30, dtype=dtype)
    with pytest.raises(ValueError, match=r"obsm\['X_image'\] has values of up to 1e\+30.*scale them"):
        quickly(taught_cells)


def test_a_loss_that_is_not_finite_is_named(taught_cells, quickly):
    """Outliers among lazy features, which are not looked at before."""
    steps = FitSettings(max_epochs=2, min_steps=0, batch_size=256, validation=0, n_components=4, learning_rate=1e30)
    with pytest.raises(ValueError, match="loss is no longer finite.*learning_rate="):
        quickly(taught_cells, fit=steps)
