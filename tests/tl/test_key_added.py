"""What a call may write over: what it wrote itself, and nothing else."""

from __future__ import annotations

import re
from functools import partial

import pytest
from anndata import read_h5ad

import nichekd as nk
from nichekd._keys import Keys
from nichekd.tl import FitSettings


@pytest.fixture
def quickly():
    fit = FitSettings(max_epochs=1, min_steps=0, batch_size=256, validation=0, n_components=4)
    return partial(nk.tl.distill, use_rep="X_image", fit=fit)


@pytest.fixture
def refused(monkeypatch):
    """A call that is refused before any work, and leaves the table as it is."""
    monkeypatch.setattr("nichekd.tl._fit.fit_student", lambda *_, **__: pytest.fail("trained"))

    def check(adata, message: str, call, **options) -> None:
        before = adata.obs.copy()
        with pytest.raises(ValueError, match=message):
            call(adata, **options)
        assert adata.obs.equals(before)

    return check


@pytest.mark.parametrize(
    ("teacher", "key"), [("niche", "niche"), ("annotation", "annotation"), ("student_logits", "niche")]
)
def test_labels_that_teach_are_not_written_over(taught_cells, quickly, refused, teacher, key):
    taught_cells.obs["annotation"] = taught_cells.obs["niche_teacher"]
    slot = "obsm" if teacher in taught_cells.obsm else "obs"
    message = rf"would replace {slot}\['{teacher}'\], which this call reads.*key_added='{key}_2'"
    refused(taught_cells, message, quickly, teacher=teacher, key_added=key)


def test_a_users_column_is_not_written_over(cells, taught, quickly, refused):
    cells.obs["niche"] = cells.obs["niche_true"]
    message = (
        r"obs\['niche'\], which no student of .* wrote.*key_added='niche_2'.*rename\(columns=\{'niche': 'niche_before'"
    )
    refused(cells, message, quickly, teacher="niche_true")
    refused(cells, message, nk.tl.predict_niches, student=taught[1], use_rep="X_image")


@pytest.mark.parametrize("key", ["cell_type", "niche_true", "split", "n_neighbors", "niche_entropy", "niche_ood"])
def test_columns_of_others_are_not_written_over(taught_cells, taught, quickly, refused, key):
    refused(taught_cells, f"key_added='{key}'", quickly, key_added=key)
    refused(
        taught_cells, f"key_added='{key}'", nk.tl.predict_niches, student=taught[1], use_rep="X_image", key_added=key
    )


def test_logits_of_another_teacher_are_not_written_over(taught_cells, quickly, refused):
    taught_cells.obsm["mine_logits"] = taught_cells.obsm["teacher_logits"]
    refused(taught_cells, r"would replace obsm\['mine_logits'\], which no student", quickly, key_added="niche_mine")


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        (3, TypeError, "key_added=3 is a int; it has to be a string"),
        (None, TypeError, "key_added=None"),
        ("", ValueError, "key_added='' is no name that a file can hold"),
        ("a/b", ValueError, "slash as a folder"),
        ("_index", ValueError, "no name that a file can hold"),
        ("__mine", ValueError, "no name that a file can hold"),
    ],
)
def test_names_that_no_file_can_hold(taught_cells, taught, quickly, key, error, message):
    for call in (
        partial(quickly, key_added=key),
        partial(nk.tl.predict_niches, student=taught[1], use_rep="X_image", key_added=key),
        partial(nk.pp.split, crop_px=0, key_added=key),
        partial(nk.tl.nolan, K=3, use_rep="X_pca", key_added=key),
    ):
        with pytest.raises(error, match=re.escape(message)):
            call(taught_cells)


def test_spatialdata_has_fewer_names(taught_cells, taught):
    predict = partial(nk.tl.predict_niches, student=taught[1], key_added="my niche")
    with pytest.raises(ValueError, match=r"key_added='my niche' has \[' '\]"):
        predict(nk.datasets.simulate(60, K=2, image=False))
    predict(taught_cells, use_rep="X_image")
    assert "my niche_entropy" in taught_cells.obs


@pytest.mark.parametrize("key", ["niche", "niche_old", "mine"])
def test_what_a_student_wrote_is_written_again(cells, taught, key, tmp_path):
    predict = partial(nk.tl.predict_niches, student=taught[1], use_rep="X_image", key_added=key)
    predict(cells)
    predict(cells)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    again = read_h5ad(tmp_path / "cells.h5ad")
    del again.obsm[Keys.student(key)[1]]
    predict(again)  # the record says whose it is
    predict(again, key_added="other")
    del again.uns["nichekd"]["predict_niches"]
    predict(again)  # and so does what lies beside it
    again.obs[key] = again.obs[key].cat.rename_categories(lambda name: f"niche {name}")
    predict(again)
    assert again.obs[key].tolist() == cells.obs[key].tolist()
