from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from spatialdata import SpatialData, read_zarr
from torch import nn

import nichekd as nk
from nichekd.models import Encoder, NicheStudent
from nichekd.tl import FitSettings


@pytest.fixture(scope="module")
def slide() -> SpatialData:
    """250 cells with an image and, from it, colour features; nothing else was done."""
    sdata = nk.datasets.simulate(250, K=2, seed=0)
    nk.pp.histology_features(sdata, encoder="color", crop_px=64)
    return sdata


@pytest.fixture(scope="module")
def lesson(slide) -> tuple[AnnData, NicheStudent]:
    """The slide's cells and a student of them; its radius is not the one that another slide would be given."""
    sdata = nk.datasets.simulate(250, K=2, seed=0, image=False)
    adata = sdata["table"]
    adata.obsm["X_color"] = slide["table"].obsm["X_color"]
    adata.uns["nichekd"] |= {name: slide["table"].uns["nichekd"][name] for name in ("features", "use_rep")}
    nk.pp.neighborhoods(adata, radius=40)
    fit = FitSettings(max_epochs=2, min_steps=0, batch_size=128, validation=0, n_components=6)
    return adata, nk.tl.distill(adata, teacher="niche_true", fit=fit)


@pytest.fixture
def student(lesson) -> NicheStudent:
    return lesson[1]


@pytest.fixture
def cells(slide):
    """A table with colour features, and its record of them to change."""
    return slide["table"].copy()


def of_another_kind(student: NicheStudent, **changes) -> NicheStudent:
    other = NicheStudent(replace(student.config, features=student.config.features | changes))
    other.load_state_dict(student.state_dict())
    return other.eval()


def test_writes_niches_from_image_and_places_alone(student, slide):
    sdata = nk.datasets.simulate(250, K=2, seed=0)
    del sdata["table"].X, sdata["table"].obs["niche_true"]
    nk.tl.predict_niches(sdata, student)  # features and neighborhoods are missing
    adata = sdata["table"]
    np.testing.assert_array_equal(adata.obsm["X_color"], slide["table"].obsm["X_color"])
    assert adata.uns["nichekd"]["radius"] == student.config.radius == 40
    assert adata.uns["nichekd"]["features"]["X_color"]["crop_px"] == 64
    assert adata.obsm["student_logits"].dtype == adata.obsm["student_proba"].dtype == np.float32
    assert adata.obsm["student_proba"].sum(1) == pytest.approx(1, abs=1e-5)
    assert adata.obs["niche"].cat.categories.tolist() == ["0", "1"]
    assert (adata.obs["niche"].cat.codes == adata.obsm["student_logits"].argmax(1)).all()
    assert adata.obs["niche_entropy"].between(0, 1).all()
    assert adata.uns["niche_colors"] == list(student.config.niche_colors)
    about = adata.uns["nichekd"]["predict_niches"]
    assert about["K"] == 2
    assert about["use_rep"] == "X_color"
    assert about["radius"] == 40


def test_says_what_the_student_said_when_it_was_taught(lesson, cells):
    taught, student = lesson
    nk.tl.predict_niches(cells, student)
    assert np.array_equal(cells.obsm["student_logits"], taught.obsm["student_logits"])


def test_saved_and_loaded_student_says_the_same(student, cells, tmp_path):
    loaded = NicheStudent.load(student.save(tmp_path / "student"))
    other = nk.tl.predict_niches(cells, loaded, copy=True)
    nk.tl.predict_niches(cells, student)
    assert np.array_equal(cells.obsm["student_logits"], other.obsm["student_logits"])


def test_features_at_hand_are_taken(student, cells, monkeypatch):
    monkeypatch.setattr(nk.pp, "histology_features", None)
    cells.obsm["X_renamed"] = cells.obsm.pop("X_color")
    cells.uns["nichekd"]["features"] = {"X_renamed": cells.uns["nichekd"]["features"]["X_color"]}
    cells.uns["nichekd"]["use_rep"] = "X_other"
    nk.tl.predict_niches(cells, student)
    assert cells.uns["nichekd"]["predict_niches"]["use_rep"] == "X_renamed"


def test_neighborhoods_of_another_radius_are_made_again(student, cells):
    nk.pp.neighborhoods(cells, radius=20)
    few = cells.obs["n_neighbors"].mean()
    nk.tl.predict_niches(cells, student)
    assert cells.uns["nichekd"]["radius"] == 40
    assert cells.obs["n_neighbors"].mean() > 2 * few


@pytest.mark.filterwarnings("ignore:Cells have .* neighbors:UserWarning")  # half as dense, each
@pytest.mark.filterwarnings("ignore:.*cells look unlike:UserWarning")
def test_sections_stay_apart(student, cells):
    cells.obs["section"] = pd.Categorical(np.arange(250) % 2)  # two, one on top of the other
    nk.pp.neighborhoods(cells, radius=30, library_key="section")
    nk.tl.predict_niches(cells, student)
    i, j = cells.obsp["spatial_connectivities"].nonzero()
    assert cells.uns["nichekd"]["radius"] == 40
    assert (i % 2 == j % 2).all()


def test_survives_a_reload(student, slide, tmp_path):
    sdata = nk.tl.predict_niches(slide, student, copy=True)
    sdata.write(tmp_path / "slide.zarr")
    sdata["table"].write_h5ad(tmp_path / "cells.h5ad")
    for back in (read_zarr(tmp_path / "slide.zarr")["table"], read_h5ad(tmp_path / "cells.h5ad")):
        for key in ("student_logits", "student_proba"):
            np.testing.assert_array_equal(back.obsm[key], sdata["table"].obsm[key])
        pd.testing.assert_series_equal(back.obs["niche"], sdata["table"].obs["niche"])
        nk.tl.predict_niches(back, student)  # and goes on from there
        np.testing.assert_array_equal(back.obsm["student_logits"], sdata["table"].obsm["student_logits"])


def test_copy_leaves_the_input(student, slide):
    before = set(slide["table"].obs), set(slide["table"].obsm), set(slide["table"].uns["nichekd"])
    other = nk.tl.predict_niches(slide, student, copy=True)
    assert "niche" in other["table"].obs
    assert (set(slide["table"].obs), set(slide["table"].obsm), set(slide["table"].uns["nichekd"])) == before


def test_two_students_side_by_side(student, cells):
    nk.tl.predict_niches(cells, student)
    nk.tl.predict_niches(cells, student, key_added="niche_old")
    assert {"niche", "niche_entropy", "niche_old", "niche_old_entropy"} <= set(cells.obs)
    assert {"student_logits", "student_proba", "old_logits", "old_proba"} <= set(cells.obsm)
    assert cells.uns["niche_old_colors"] == cells.uns["niche_colors"]


def test_neighborhoods_do_not_cross_the_split(student, cells):
    nk.pp.split(cells, mpp=0.25, crop_px=64)
    nk.tl.predict_niches(cells, student)
    split = cells.obs["split"].to_numpy()
    i, j = cells.obsp["spatial_connectivities"].nonzero()
    assert (split[i] == split[j]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "uni2"}, r"has encoder 'color'; the student was trained on 'uni2'"),
        ({"fingerprint": "other"}, r"has fingerprint '\w+'; the student was trained on 'other'"),
        ({"crop_px": 224}, "has crop_px 64; the student was trained on 224"),
        ({"mode": "dense"}, "has mode 'crop'; the student was trained on 'dense'"),
        ({"mpp": 0.5}, r"was made at 0\.25 µm per pixel; the student was trained at 0\.5"),
    ],
)
def test_features_of_another_kind(student, cells, changes, message):
    with pytest.raises(ValueError, match=rf"obsm\['X_color'\] {message}.*Leave use_rep out"):
        nk.tl.predict_niches(cells, of_another_kind(student, **changes), use_rep="X_color")


def test_nearly_the_same_resolution_will_do(student, cells):
    nk.tl.predict_niches(cells, of_another_kind(student, mpp=0.2504), use_rep="X_color")


def test_features_of_another_length(student, cells):
    cells.obsm["X_short"] = cells.obsm["X_color"][:, :5]
    n = cells.obsm["X_color"].shape[1]
    with pytest.raises(ValueError, match=f"has 5 features; the student reads {n}"):
        nk.tl.predict_niches(cells, student, use_rep="X_short")


@pytest.mark.filterwarnings("ignore:.*cells look unlike:UserWarning")  # other niches, drawn with another seed
def test_resamples_to_the_students_resolution(student):
    sdata = nk.datasets.simulate(60, K=2, seed=1, mpp=0.5)
    nk.tl.predict_niches(sdata, student)
    assert sdata["table"].uns["nichekd"]["features"]["X_color"]["mpp"] == pytest.approx(0.25, rel=0.02)


@pytest.mark.filterwarnings("ignore:.*cells look unlike:UserWarning")  # it was taught on other features
def test_a_students_own_encoder_makes_its_features(student, slide):
    encoder = Encoder("mine", nn.Sequential(nn.AdaptiveAvgPool2d((2, 7)), nn.Flatten()))  # 42 numbers, as color has
    features = student.config.features | {"encoder": "mine", "fingerprint": encoder.fingerprint}
    own = NicheStudent(replace(student.config, features=features), encoder=encoder)
    own.load_state_dict(student.state_dict())
    sdata = nk.tl.predict_niches(slide, own.eval(), copy=True)
    assert sdata["table"].uns["nichekd"]["predict_niches"]["use_rep"] == "X_mine"
    assert sdata["table"].obsm["X_mine"].shape == (250, 42)


def test_missing_features(student, cells):
    with pytest.raises(KeyError, match=r"obsm\['X_uni2'\] is missing.*X_color"):
        nk.tl.predict_niches(cells, student, use_rep="X_uni2")


def test_student_of_unrecorded_features_takes_those_written_last(student, cells):
    anonymous = NicheStudent(replace(student.config, features={}))
    anonymous.load_state_dict(student.state_dict())
    nk.tl.predict_niches(cells, anonymous)
    assert cells.uns["nichekd"]["predict_niches"]["use_rep"] == "X_color"
    del cells.uns["nichekd"]["use_rep"]
    with pytest.raises(KeyError, match=r"name some by use_rep=.*X_color"):
        nk.tl.predict_niches(cells, anonymous)


def test_features_that_were_brought_along_are_found_by_their_key(lesson, cells):
    adata = lesson[0].copy()
    adata.obsm["X_mine"] = cells.obsm["X_mine"] = cells.obsm["X_color"]
    fit = FitSettings(max_epochs=1, min_steps=0, n_components=6)
    student = nk.tl.distill(adata, use_rep="X_mine", teacher="niche_true", fit=fit)
    nk.tl.predict_niches(cells, student)
    assert cells.uns["nichekd"]["predict_niches"]["use_rep"] == "X_mine"
    del cells.obsm["X_mine"]
    with pytest.raises(KeyError, match=r"trained on obsm\['X_mine'\].*missing here.*use_rep="):
        nk.tl.predict_niches(cells, student)


def test_features_of_another_crop_are_left_where_they_are(student):
    sdata = nk.datasets.simulate(250, K=2, seed=0)
    nk.pp.histology_features(sdata, encoder="color", crop_px=32)
    small = sdata["table"].obsm["X_color"].copy()
    nk.tl.predict_niches(sdata, student)
    adata = sdata["table"]
    np.testing.assert_array_equal(adata.obsm["X_color"], small)
    assert adata.uns["nichekd"]["predict_niches"]["use_rep"] == "X_color_2"
    assert adata.uns["nichekd"]["features"]["X_color_2"]["crop_px"] == 64
    del sdata["table"].obs["niche"]
    nk.tl.predict_niches(sdata, student)  # and found there
    assert "X_color_3" not in adata.obsm


def test_a_slide_is_not_segmented_for_a_student_that_cannot_read_it(student, slide, monkeypatch):
    from spatialdata import SpatialData

    monkeypatch.setattr(nk.pp, "segment_nuclei", None)
    bare = SpatialData(images=dict(slide.images))
    own = NicheStudent(replace(student.config, features={"use_rep": "X_mine"}))
    with pytest.raises(KeyError, match=r"read obsm\['X_mine'\], and this slide has no table.*use_rep="):
        nk.tl.predict_niches(bare, own)
    with pytest.raises(ValueError, match="'gone', which is not here"):
        nk.tl.predict_niches(bare, of_another_kind(student, encoder="gone"))


def test_table_without_an_image(student):
    cells = nk.datasets.simulate(60, K=2, image=False)["table"]
    with pytest.raises(TypeError, match=r"no image.*nk.io.paired"):
        nk.tl.predict_niches(cells, student)


@pytest.mark.parametrize("other", ["a/folder", None, nn.Identity()])
def test_not_a_student(cells, other):
    with pytest.raises(TypeError, match=rf"student is a {type(other).__name__}.*NicheStudent.load"):
        nk.tl.predict_niches(cells, other)


def test_neighborhoods_older_than_the_split(student, cells):
    nk.pp.neighborhoods(cells, radius=40)
    with pytest.warns(UserWarning, match="made before this split"):
        nk.pp.split(cells, mpp=0.25, crop_px=64)
    with pytest.raises(ValueError, match="Run nk.pp.neighborhoods again"):
        nk.tl.predict_niches(cells, student)


def test_no_cells(student, cells):
    with pytest.raises(ValueError, match="The table has no cells"):
        nk.tl.predict_niches(cells[:0].copy(), student)


@pytest.mark.parametrize(("least", "error"), [("a", TypeError), (True, TypeError), (1.5, ValueError)])
def test_a_confidence_that_is_none(student, cells, least, error):
    with pytest.raises(error, match="min_confidence=.*from 0 to 1"):
        nk.tl.predict_niches(cells, student, min_confidence=least)
