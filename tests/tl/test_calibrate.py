import numpy as np
import pytest
import torch
from scipy.special import softmax

import nichekd as nk
from nichekd._calibration import best_temperature, expected_calibration_error
from nichekd.models import NicheStudent
from nichekd.tl import FitSettings
from nichekd.tl._calibrate import proven_temperature


@pytest.fixture(scope="module")
def distilled(section, quick_nolan):
    """A student that trained long enough to be too sure, and what it held out."""
    adata = section.copy()
    nk.tl.nolan(adata, 3, use_rep="X_pca", fit=quick_nolan)
    fit = FitSettings(max_epochs=6, min_steps=0, batch_size=96, n_components=16, validation=0.15)
    return adata, nk.tl.distill(adata, use_rep="X_image", fit=fit)


@pytest.fixture
def student(distilled, tmp_path):
    """Each test its own, uncalibrated."""
    return NicheStudent.load(distilled[1].save(tmp_path / "student"))


def test_lowers_the_error_where_it_was_fitted(distilled, student):
    adata = distilled[0].copy()
    factor = nk.tl.calibrate(adata, student)
    noted = adata.uns["nichekd"]["calibrate"]
    assert factor == student.config.calibration == noted["factor"]
    held_out = adata.uns["nichekd"]["distill"]["held_out"]
    truth = adata.obs["niche_teacher"].cat.codes.to_numpy()[held_out["cells"]]
    proba = softmax(held_out["logits"] / (student.config.temperature * factor), axis=1)
    assert noted["ece_after"] == pytest.approx(expected_calibration_error(proba, truth))
    assert noted["n_cells"] == len(truth)


def test_held_out_cells_trained_nobody(distilled):
    adata, _ = distilled
    cells = adata.uns["nichekd"]["distill"]["held_out"]["cells"]
    assert (adata.obs["split"].to_numpy()[cells] == "train").all()
    assert len(np.unique(cells)) == len(cells) > 50


def test_labels_stay_and_probabilities_are_rewritten(distilled, student):
    adata = distilled[0].copy()
    labels, logits = adata.obs["niche"].copy(), adata.obsm["student_logits"].copy()
    student.configure(calibration=1.0)
    factor = nk.tl.calibrate(adata, student, subset="test")
    assert (adata.obs["niche"] == labels).all()
    expected = softmax(logits / (student.config.temperature * factor), axis=1)
    np.testing.assert_allclose(adata.obsm["student_proba"], expected, atol=1e-5)
    entropy = -(expected * np.log(expected)).sum(1) / np.log(3)
    np.testing.assert_allclose(adata.obs["niche_entropy"], entropy, atol=1e-4)


def test_the_factor_travels_with_the_student(distilled, student, tmp_path):
    adata = distilled[0].copy()
    factor = nk.tl.calibrate(adata, student)
    assert NicheStudent.load(student.save(tmp_path / "calibrated")).config.calibration == factor


def test_undoes_logits_that_are_too_sharp(distilled, student):
    adata = distilled[0].copy()
    adata.obsm["student_logits"] = adata.obsm["student_logits"] * 30
    before = nk.tl.calibrate(adata, student, subset="test")
    assert before > 1
    adata.obsm["student_logits"] = adata.obsm["student_logits"] * 3
    assert nk.tl.calibrate(adata, student, subset="test") == pytest.approx(3 * before, rel=1e-3)


def test_survives_a_reload(distilled, student, tmp_path):
    import anndata

    adata = distilled[0].copy()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    again = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert nk.tl.calibrate(again, student) == pytest.approx(nk.tl.calibrate(adata, student))


def test_nothing_held_out(section, student, taught):
    adata = taught[0].copy()
    adata.uns["nichekd"]["distill"].pop("held_out", None)
    with pytest.raises(KeyError, match="no held-out cells"):
        nk.tl.calibrate(adata, student)


def test_a_student_that_is_none(section):
    with pytest.raises(TypeError, match="student is a str.*NicheStudent.load"):
        nk.tl.calibrate(section, "folder")


def test_unknown_niches(distilled, student):
    adata = distilled[0].copy()
    adata.obs["other"] = "tumour"
    with pytest.raises(ValueError, match=r"niches \['tumour'\] that the student does not know"):
        nk.tl.calibrate(adata, student, reference="other")


def test_reference_labels_none_of_the_cells(distilled, student):
    adata = distilled[0].copy()
    adata.obs["partial"] = adata.obs["niche_teacher"].where(adata.obs["split"] == "train")
    with pytest.raises(ValueError, match="labels none of the"):
        nk.tl.calibrate(adata, student, reference="partial", subset="test")


def test_missing_reference(distilled, student):
    adata = distilled[0].copy()
    del adata.obs["niche_teacher"]
    with pytest.raises(KeyError, match="niche_teacher"):
        nk.tl.calibrate(adata, student)


def test_rows_that_were_changed_since(distilled, student):
    fewer = distilled[0][distilled[0].obs["split"] != "buffer"].copy()
    with pytest.raises(ValueError, match=r"cells are others, or in another order.*Distil it again"):
        nk.tl.calibrate(fewer, student)
    with pytest.raises(ValueError, match="cells are others"):
        nk.tl.calibrate(distilled[0][:20].copy(), student)


def test_a_label_that_no_cell_has(distilled, student):
    adata = distilled[0].copy()
    expected = nk.tl.calibrate(adata, student)
    adata.obs["niche_teacher"] = adata.obs["niche_teacher"].cat.add_categories("fat")
    assert nk.tl.calibrate(adata, student) == pytest.approx(expected)


def test_cells_held_out_from_another_student(distilled, student):
    adata = distilled[0].copy()
    proba = adata.obsm["student_proba"].copy()
    with torch.no_grad():
        student.head.bias += 1e-3
    with pytest.raises(ValueError, match=r"held out from another student.*Hand in the student.*distil again"):
        nk.tl.calibrate(adata, student)
    assert student.config.calibration == 1
    np.testing.assert_array_equal(adata.obsm["student_proba"], proba)
    del adata.uns["nichekd"]["distill"]["held_out"]["student"]  # as in tables of older versions
    nk.tl.calibrate(adata, student)


def test_a_reference_that_is_missing_everywhere(distilled, student):
    adata = distilled[0].copy()
    adata.obs["later"] = np.nan
    with pytest.raises(ValueError, match=r"obs\['later'\] labels none of the .* cells of subset='held_out'"):
        nk.tl.calibrate(adata, student, reference="later")


# whether a factor helps


def drawn(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of cells in a square of tissue, labels drawn from their probabilities, and centres."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(n, 3))
    cumulative = softmax(logits, axis=1).cumsum(1)
    return logits, (rng.random((n, 1)) > cumulative[:, :-1]).sum(1), rng.uniform(0, 1000, (n, 2))


@pytest.mark.parametrize("factor", [0.3, 1.5, 4])
def test_a_factor_that_helps_everywhere_is_kept(factor):
    logits, truth, xy = drawn(2000)
    found, gain = proven_temperature(factor * logits, truth, xy)
    assert found == pytest.approx(factor * best_temperature(logits, truth), rel=1e-3)
    assert gain > 0


def test_probabilities_that_are_right_stay():
    found, gain = proven_temperature(*drawn(2000))
    assert found == 1
    assert gain == 0


def test_a_factor_of_one_corner_is_not_kept(distilled, student):
    """Where the student errs in one corner, factors found there harm the rest, and the others don't help there."""
    adata = distilled[0].copy()
    logits, truth, _ = drawn(adata.n_obs)
    xy = adata.obsm["spatial"]
    corner = (xy < np.median(xy, axis=0)).all(axis=1)
    truth[corner] = np.random.default_rng(1).integers(3, size=corner.sum())
    assert best_temperature(logits, truth) > 1.2
    adata.obs["truth"] = truth.astype(str)
    adata.obsm["student_logits"] = (logits * student.config.temperature).astype(np.float32)
    assert nk.tl.calibrate(adata, student, reference="truth", subset=None) == student.config.calibration == 1
    assert adata.uns["nichekd"]["calibrate"]["gain"] == 0
    np.testing.assert_allclose(adata.obsm["student_proba"], softmax(logits, axis=1), atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_cells_too_few_to_prove_a_factor(n):
    logits, truth, xy = drawn(n)
    assert proven_temperature(5 * logits, truth, xy) == (1, 0)


def test_logits_of_another_student(distilled, student):
    adata = distilled[0].copy()
    adata.obsm["student_logits"] = np.zeros((adata.n_obs, 7), dtype=np.float32)
    with pytest.raises(ValueError, match="7 columns.*the student has 3 niches"):
        nk.tl.calibrate(adata, student, subset="test")
    assert student.config.calibration == 1
