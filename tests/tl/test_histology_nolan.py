import numpy as np
import pandas as pd
import pytest
from anndata import read_h5ad
from sklearn.metrics import adjusted_rand_score

import nichekd as nk


@pytest.fixture(scope="module")
def found(section, quick_nolan):
    adata = section.copy()
    nk.tl.histology_nolan(adata, 3, use_rep="X_image", fit=quick_nolan)
    return adata


def test_writes_logits_and_labels(found):
    logits, labels = found.obsm["histology_nolan_logits"], found.obs["niche_histology_nolan"]
    assert logits.dtype == np.float32
    assert logits.shape == (1500, 3)
    assert labels.cat.categories.tolist() == ["0", "1", "2"]
    assert (labels.cat.codes == logits.argmax(1)).all()
    about = found.uns["nichekd"]["histology_nolan"]
    assert (about["K"], about["use_rep"], about["seed"]) == (3, "X_image", 0)
    assert about["history"]["step"].tolist() == [0, 20]


def test_is_nolan_on_the_image(found, section, quick_nolan):
    teacher = section.copy()
    nk.tl.nolan(teacher, 3, use_rep="X_image", fit=quick_nolan)
    assert np.array_equal(teacher.obsm["teacher_logits"], found.obsm["histology_nolan_logits"])


def test_finds_niches_that_the_image_shows(found):
    assert adjusted_rand_score(found.obs["niche_true"], found.obs["niche_histology_nolan"]) > 0.3


def test_survives_h5ad(found, tmp_path):
    found.write_h5ad(tmp_path / "cells.h5ad")
    back = read_h5ad(tmp_path / "cells.h5ad")
    assert np.array_equal(back.obsm["histology_nolan_logits"], found.obsm["histology_nolan_logits"])
    pd.testing.assert_series_equal(back.obs["niche_histology_nolan"], found.obs["niche_histology_nolan"])


def test_takes_the_features_written_last_and_leaves_the_input(cells, quick_nolan, found):
    cells.uns["nichekd"]["use_rep"] = "X_image"
    other = nk.tl.histology_nolan(cells, 3, fit=quick_nolan, key_added="mine", copy=True)
    assert np.array_equal(other.obsm["mine_logits"], found.obsm["histology_nolan_logits"])
    assert "niche_mine" in other.obs
    assert "niche_mine" not in cells.obs


def test_features_are_never_the_expression(cells, monkeypatch):
    # with no image features it goes for the image, which this table has none of
    monkeypatch.setattr(nk.settings, "encoder", "color")
    with pytest.raises(TypeError, match="no image"):
        nk.tl.histology_nolan(cells, 3)


@pytest.mark.parametrize(
    ("K", "error", "message"), [(1, ValueError, "K=1"), (1000, ValueError, "K=1000"), (2.5, TypeError, r"K is 2\.5")]
)
def test_impossible_number_of_niches(cells, K, error, message):
    with pytest.raises(error, match=message):
        nk.tl.histology_nolan(cells, K, use_rep="X_image")


def test_bad_features(cells):
    with pytest.raises(KeyError, match=r"obsm\['X_uni2'\] is missing.*Run nk.pp.histology_features"):
        nk.tl.histology_nolan(cells, 3, use_rep="X_uni2")
    cells.obsm["X_image"][0] = np.nan
    with pytest.raises(ValueError, match=r"NaN or infinite for 1 of 1,500 cells; run nk.pp.histology_features"):
        nk.tl.histology_nolan(cells, 3, use_rep="X_image")
