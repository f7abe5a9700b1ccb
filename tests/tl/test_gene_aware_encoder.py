from __future__ import annotations

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy.sparse import diags_array

import nichekd as nk
from nichekd._keys import Keys
from nichekd.tl import FitSettings, GeneAwareSettings
from nichekd.tl._batches import validation_part
from nichekd.tl._gene_aware_fit import encoder_parts

FAST = GeneAwareSettings(max_epochs=2, crops_per_epoch=16)


def section(seed: int = 0):
    """Simulated cells with a latent that needs no training."""
    sdata = nk.datasets.simulate(n_cells=600, K=3, seed=seed)
    adata = sdata["table"]
    counts = np.log1p(np.asarray(adata.X.todense(), dtype=np.float32))
    adata.obsm["X_latent"] = np.linalg.svd(counts - counts.mean(0), full_matrices=False)[0][:, :4]
    nk.pp.split(sdata, crop_px=64)
    return sdata


@pytest.fixture(scope="module")
def trained():
    sdata = section()
    encoder = nk.tl.gene_aware_encoder(sdata, target="X_latent", crop_px=64, fit=FAST)
    return sdata, encoder


def test_encoder_is_frozen_and_recorded(trained):
    sdata, encoder = trained
    assert not any(p.requires_grad for p in encoder.module.parameters())
    entry = sdata["table"].uns[Keys.UNS]["gene_aware_encoder"]
    assert entry["fingerprint"] == encoder.fingerprint
    assert len(entry["history"]["train_loss"]) == 2


def test_same_seed_same_encoder(trained):
    again = nk.tl.gene_aware_encoder(section(), target="X_latent", crop_px=64, fit=FAST)
    assert again.fingerprint == trained[1].fingerprint


def test_test_cells_play_no_part(trained):
    """Other expression on the test strip, same encoder: nothing of it was looked at."""
    sdata = section()
    adata = sdata["table"]
    test = (adata.obs["split"] == "test").to_numpy()
    adata.obsm["X_latent"][test] = 100.0
    encoder = nk.tl.gene_aware_encoder(sdata, target="X_latent", crop_px=64, fit=FAST)
    assert encoder.fingerprint == trained[1].fingerprint


# a student of so few cells finds their neighbors in the buffer strange
@pytest.mark.filterwarnings("ignore:.*look unlike the tissue")
def test_it_travels_with_the_student(trained, tmp_path):
    sdata, encoder = trained
    nk.pp.histology_features(sdata, encoder=encoder, crop_px=64)
    labels = sdata["table"].obs["niche_true"]
    assert labels.notna().all()
    quick = FitSettings(max_epochs=1, min_steps=1)
    student = nk.tl.distill(sdata, teacher="niche_true", fit=quick)
    student.save(tmp_path / "student")

    other = section(seed=1)
    loaded = nk.models.NicheStudent.load(tmp_path / "student")
    nk.tl.predict_niches(other, loaded)
    assert loaded.encoder is not None
    assert loaded.encoder.fingerprint == encoder.fingerprint
    assert other["table"].obs["niche"].notna().all()


def test_a_teacher_shapes_the_encoder_where_it_teaches(trained):
    sdata = section()
    niches = sdata["table"].obs["niche_true"]
    train = (sdata["table"].obs["split"] == "train").to_numpy()
    sdata["table"].obs["label"] = niches.where(train)
    options = {"target": "X_latent", "crop_px": 64, "fit": FAST}
    taught = nk.tl.gene_aware_encoder(sdata, teacher="label", **options)
    assert taught.fingerprint != trained[1].fingerprint
    assert taught.module.niches.out_features == niches.nunique()
    assert sdata["table"].uns[Keys.UNS]["gene_aware_encoder"]["teacher"] == "label"
    # what it says of other cells plays no part
    sdata["table"].obs["label"] = niches.where(train, niches.iloc[0])
    assert nk.tl.gene_aware_encoder(sdata, teacher="label", **options).fingerprint == taught.fingerprint


def test_a_teacher_that_teaches_no_training_cell(trained):
    adata = trained[0]["table"]
    adata.obs["label"] = adata.obs["niche_true"].where(adata.obs["split"] == "test")
    with pytest.raises(ValueError, match="none of the .* training cells"):
        nk.tl.gene_aware_encoder(trained[0], target="X_latent", teacher="label")


def test_no_image_names_the_next_call(trained):
    with pytest.raises(TypeError, match="SpatialData"):
        nk.tl.gene_aware_encoder(AnnData(obsm={"spatial": np.random.default_rng(0).random((5, 2))}), target="spatial")


def test_missing_target_is_named(trained):
    with pytest.raises(KeyError, match="X_nothing"):
        nk.tl.gene_aware_encoder(trained[0], target="X_nothing")


def test_unknown_backbone(trained):
    with pytest.raises(ValueError, match="no encoder"):
        nk.tl.gene_aware_encoder(trained[0], target="X_latent", encoder="no_such_network", crop_px=64)


def test_torch_random_state_is_left_alone():
    before = torch.get_rng_state()
    nk.tl.gene_aware_encoder(section(), target="X_latent", crop_px=64, fit=FAST)
    assert torch.equal(before, torch.get_rng_state())


def test_crops_at_another_resolution():
    """Of an image with four equal pixels for each of another's, it learns at that one's resolution what it does there."""
    coarse, fine = section(), section()
    pixels = np.asarray(coarse["he"].data)
    twice = pixels.repeat(2, axis=1).repeat(2, axis=2)
    fine = nk.io.paired(fine["table"].copy(), twice, mpp=0.125)
    quick = GeneAwareSettings(max_epochs=1, crops_per_epoch=16)
    about = {"target": "X_latent", "crop_px": 64, "fit": quick}
    expected = nk.tl.gene_aware_encoder(coarse, **about).fingerprint
    assert nk.tl.gene_aware_encoder(fine, mpp=0.25, **about).fingerprint == expected
    assert fine["table"].uns[Keys.UNS]["gene_aware_encoder"]["mpp"] == 0.25
    assert nk.tl.gene_aware_encoder(fine, **about).fingerprint != expected


def test_crops_of_normalised_stain(trained):
    encoder = nk.tl.gene_aware_encoder(section(), target="X_latent", crop_px=64, stain="reinhard", fit=FAST)
    assert encoder.fingerprint != trained[1].fingerprint
    with pytest.raises(ValueError, match="stain='pink'; choose one of"):
        nk.tl.gene_aware_encoder(section(), target="X_latent", crop_px=64, stain="pink")
    with pytest.raises(ValueError, match="µm per pixel"):
        nk.tl.gene_aware_encoder(section(), target="X_latent", crop_px=64, mpp=50)


def test_squares_are_the_students_where_a_cell_has_no_transcripts():
    """The student reads that cell's image: its squares are found among all training cells, so the encoder's are, too."""
    xy, cells = np.random.default_rng(0).uniform(0, 2000, (10_000, 2)), np.arange(10_000)
    _, students = validation_part(xy, cells, share=0.1, margin=50)
    counted = np.delete(cells, students[0])
    fitted, held_back = encoder_parts(xy, counted, cells, share=0.1, margin=28)
    assert set(held_back) == set(students[1:])
    assert not set(fitted) & set(students)


def test_squares_are_found_among_all_training_cells(trained, monkeypatch):
    sdata = section()
    train = np.flatnonzero(sdata["table"].obs["split"] == "train")
    rows = np.ones(600)
    rows[train[0]] = 0
    sdata["table"].X = diags_array(rows).tocsr() @ sdata["table"].X
    given = {}

    def stop(*args, all_train, **_):
        given.update(train=args[3], all_train=all_train)
        raise InterruptedError

    monkeypatch.setattr("nichekd.tl._gene_aware_fit.fit_gene_aware", stop)
    with pytest.raises(InterruptedError):
        nk.tl.gene_aware_encoder(sdata, target="X_latent", crop_px=64, fit=FAST)
    assert given["train"].tolist() == train[1:].tolist()
    assert given["all_train"].tolist() == train.tolist()
