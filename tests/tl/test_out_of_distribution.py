"""A student knows what it doesn't know: cells and slides unlike those that it was trained on."""

from dataclasses import replace

import numpy as np
import pytest
from anndata import read_h5ad
from sklearn.metrics import roc_auc_score
from spatialdata import SpatialData

import nichekd as nk
from nichekd.models import NicheStudent
from nichekd.tl import FitSettings

ONE_EPOCH = FitSettings(max_epochs=1, min_steps=0, batch_size=256, validation=0, n_components=6)


@pytest.fixture(scope="module")
def lesson() -> tuple[SpatialData, NicheStudent]:
    """400 cells with an image and a student of them, not to be changed."""
    sdata = nk.datasets.simulate(400, K=2, seed=0)
    nk.pp.histology_features(sdata, encoder="color", crop_px=64)
    return sdata, nk.tl.distill(sdata, teacher="niche_true", fit=ONE_EPOCH)


@pytest.fixture
def student(lesson) -> NicheStudent:
    return lesson[1]


def slide_of(lesson, change=None, mpp: float = 0.25) -> SpatialData:
    """The same cells on another image."""
    sdata = lesson[0]
    pixels = np.asarray(sdata["he"].data)
    cells = sdata["table"].copy()
    for key in ("nichekd", "spatialdata_attrs"):
        cells.uns.pop(key, None)
    cells.obsp.clear()
    return nk.io.paired(cells, pixels if change is None else change(pixels), mpp=mpp)


def stained(pixels: np.ndarray) -> np.ndarray:
    """Optical densities of another scanner."""
    density = -np.log((pixels.astype(float) + 1) / 256) * np.array([0.7, 1.1, 1.6])[:, None, None]
    return np.clip(256 * np.exp(-density) - 1, 0, 255).astype(np.uint8)


def predict(data, student, **options):
    """Predict where warnings are not the point."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return nk.tl.predict_niches(data, student, **options)


# the score


def test_training_and_test_tissue_is_in_distribution(taught):
    adata, _ = taught
    assert adata.obs["niche_ood"].dtype == np.float32
    for part, most in (("train", 0.05), ("test", 0.15)):
        assert (adata.obs.loc[adata.obs["split"] == part, "niche_ood"] > 1).mean() < most


def test_tissue_of_another_look_is_not(taught_cells, taught):
    test = (taught_cells.obs["split"] == "test").to_numpy()
    known = taught[0].obs["niche_ood"].to_numpy()[test]
    spread = taught_cells.obsm["X_image"].std(0)
    taught_cells.obsm["X_image"] = taught_cells.obsm["X_image"] + spread * np.where(np.arange(16) % 2, 1, -1)
    with pytest.warns(UserWarning, match=r"\d+% of the cells look unlike the tissue that the student was trained on"):
        nk.tl.predict_niches(taught_cells, taught[1], use_rep="X_image")
    new = taught_cells.obs["niche_ood"].to_numpy()[test]
    assert roc_auc_score(np.repeat([0, 1], test.sum()), np.concatenate([known, new])) >= 0.9
    (said,) = taught_cells.uns["nichekd"]["predict_niches"]["warnings"]
    assert "look unlike" in said


def test_score_does_not_depend_on_what_else_is_predicted(taught_cells, taught):
    """Of one part, neighborhoods and all."""
    before = taught[0].obs["niche_ood"]
    part = taught_cells[taught_cells.obs["split"] == "test"].copy()
    del part.obs["split"]
    predict(part, taught[1], use_rep="X_image")
    np.testing.assert_allclose(part.obs["niche_ood"], before[part.obs_names], rtol=1e-3, atol=1e-4)


def test_score_travels_with_the_student(taught, taught_cells, tmp_path):
    loaded = NicheStudent.load(taught[1].save(tmp_path / "student"))
    del taught_cells.obs["niche_ood"]
    predict(taught_cells, loaded, use_rep="X_image")
    np.testing.assert_allclose(taught_cells.obs["niche_ood"], taught[0].obs["niche_ood"], rtol=1e-5)
    assert loaded.config.training_range == taught[1].config.training_range


def test_lazy_features(taught, taught_cells):
    import dask.array as da

    taught_cells.obsm["X_image"] = da.from_array(np.asarray(taught_cells.obsm["X_image"]), chunks=(400, 16))
    predict(taught_cells, taught[1], use_rep="X_image")
    np.testing.assert_allclose(taught_cells.obs["niche_ood"], taught[0].obs["niche_ood"], rtol=1e-5)


def test_student_of_the_first_format(taught, taught_cells, tmp_path):
    """It has no range: no score, and nobody else's is left standing."""
    import json

    old = NicheStudent(replace(taught[1].config, training_range={}))
    state = {name: value for name, value in taught[1].state_dict().items() if not name.startswith("training_range.")}
    old.load_state_dict(state)
    old.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["training_range"], config["metrics"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"format": 1}))
    loaded = NicheStudent.load(tmp_path)
    assert loaded.training_range is None
    nk.tl.predict_niches(taught_cells, loaded, use_rep="X_image")
    assert "niche_ood" not in taught_cells.obs
    assert "warnings" not in taught_cells.uns["nichekd"]["predict_niches"]
    np.testing.assert_allclose(taught_cells.obsm["student_logits"], taught[0].obsm["student_logits"], atol=1e-5)


def test_a_score_for_each_column_of_niches(taught, taught_cells):
    nk.tl.predict_niches(taught_cells, taught[1], use_rep="X_image", key_added="niche_old")
    assert {"niche_ood", "niche_old_ood"} <= set(taught_cells.obs)


def test_shown(taught_cells):
    figure = nk.pl.uncertainty(taught_cells)
    assert "How unlike the training tissue" in {ax.get_title() for ax in figure.axes}


# missing niches


@pytest.mark.parametrize("least", [0.0, 0.6, 0.9])
def test_cells_that_are_not_sure_enough_get_no_niche(taught, taught_cells, tmp_path, least):
    nk.tl.predict_niches(taught_cells, taught[1], use_rep="X_image", min_confidence=least)
    confidence = taught_cells.obsm["student_proba"].max(1)
    niche = taught_cells.obs["niche"]
    np.testing.assert_array_equal(niche.isna(), confidence < least)
    sure = confidence >= least
    assert (niche.cat.codes[sure] == taught_cells.obsm["student_logits"].argmax(1)[sure]).all()
    assert niche.cat.categories.tolist() == ["0", "1", "2"]
    assert taught_cells.uns["nichekd"]["predict_niches"]["min_confidence"] == least
    taught_cells.write_h5ad(tmp_path / "x.h5ad")
    back = read_h5ad(tmp_path / "x.h5ad")
    np.testing.assert_array_equal(back.obs["niche"].isna(), niche.isna())
    np.testing.assert_array_equal(back.obs["niche_ood"], taught_cells.obs["niche_ood"])


@pytest.mark.parametrize("least", [-0.1, 1.5, float("nan")])
def test_impossible_confidence(taught, taught_cells, least):
    with pytest.raises(ValueError, match=r"min_confidence=.* from 0 to 1"):
        nk.tl.predict_niches(taught_cells, taught[1], use_rep="X_image", min_confidence=least)


# slides


def test_the_training_slide_gives_no_warning(lesson, student):
    sdata = slide_of(lesson)
    nk.tl.predict_niches(sdata, student)
    assert "warnings" not in sdata["table"].uns["nichekd"]["predict_niches"]


def test_what_a_student_remembers(lesson, student):
    known = student.config.training_range
    assert known["mpp"] == pytest.approx([0.25, 0.25])
    assert known["n_neighbors"] == pytest.approx([lesson[0]["table"].obs["n_neighbors"].mean()] * 2)
    assert known["n_groups"] == 2
    assert all(low < high for low, high in known["color"].values())


@pytest.mark.filterwarnings("ignore::UserWarning")  # the others
def test_another_stain(lesson, student):
    sdata = slide_of(lesson, stained)
    with pytest.warns(UserWarning, match="stain is another") as said:
        nk.tl.predict_niches(sdata, student)
    (stain,) = [str(w.message) for w in said if "stain" in str(w.message)]
    assert "density of blue" in stain
    assert "training" in stain
    kept = sdata["table"].uns["nichekd"]["predict_niches"]["warnings"]
    assert stain in list(kept)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_stain_that_the_student_does_not_see_is_out_of_distribution(lesson, student):
    """Features as if the encoder were blind to it: the score is the stain's alone."""
    known = lesson[0]["table"].obs
    assert (known["niche_ood_stain"] > 1).mean() < 0.1
    assert (known["niche_ood_stain"] <= known["niche_ood"]).all()
    sdata, table = slide_of(lesson, stained), lesson[0]["table"]
    features = table.uns["nichekd"]["features"]["X_color"]
    sdata["table"].obsm["X_color"] = table.obsm["X_color"]
    sdata["table"].uns["nichekd"]["features"] = {"X_color": features | {"image": "he"}}
    nk.tl.predict_niches(sdata, student, use_rep="X_color")
    new = sdata["table"].obs
    assert (new["niche_ood"] > 1).mean() > 0.9
    np.testing.assert_array_equal(new["niche_ood"], new["niche_ood_stain"])
    np.testing.assert_array_equal(new["niche"].astype(str), known["niche"].astype(str))


def test_stain_travels_with_the_student(lesson, student, tmp_path):
    sdata = slide_of(lesson)
    predict(sdata, NicheStudent.load(student.save(tmp_path / "student")))
    expected = lesson[0]["table"].obs["niche_ood_stain"]
    np.testing.assert_allclose(sdata["table"].obs["niche_ood_stain"], expected, rtol=1e-4)


def test_stain_is_that_of_the_normalised_crops():
    """What normalisation takes away is not out of distribution."""
    found = {}
    for stain in (None, "reinhard"):
        home, slide = (nk.datasets.simulate(400, K=2, seed=0) for _ in range(2))
        nk.pp.histology_features(home, encoder="color", crop_px=64, stain=stain)
        student = nk.tl.distill(home, teacher="niche_true", fit=ONE_EPOCH)
        slide = nk.io.paired(slide["table"].copy(), stained(np.asarray(slide["he"].data)), mpp=0.25)
        predict(slide, student)
        found[stain] = (slide["table"].obs["niche_ood_stain"] > 1).mean()
    assert found["reinhard"] < found[None]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("mpp", "effect"), [(0.5, "detail is missing"), (0.125, "made coarser")])
def test_another_resolution(student, mpp, effect):
    sdata = nk.datasets.simulate(400, K=2, seed=0, mpp=mpp)
    with pytest.warns(UserWarning, match=f"{mpp} µm per pixel, those of training 0.25: .*{effect}"):
        nk.tl.predict_niches(sdata, student)


@pytest.mark.filterwarnings("ignore::UserWarning")  # the others
def test_another_density(lesson, student):
    sdata = slide_of(lesson)
    sdata["table"] = sdata.tables.pop("table")[::3].copy()
    with pytest.warns(UserWarning, match="neighbors within") as said:
        nk.tl.predict_niches(sdata, student)
    (density,) = [str(w.message) for w in said if "neighbors within" in str(w.message)]
    low = student.config.training_range["n_neighbors"][0]
    assert f"those of training {low:.1f}" in density


def test_without_its_image_nothing_is_said_of_it(lesson, student):
    table = lesson[0]["table"].copy()
    nk.tl.predict_niches(table, student)
    assert table.obs["niche_ood"].notna().all()
    assert "niche_ood_stain" not in table.obs
