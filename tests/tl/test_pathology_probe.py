import logging

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.metrics import f1_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.preprocessing import OneHotEncoder
from sklearn.svm import LinearSVC

import nichekd as nk


@pytest.fixture
def slide():
    """A row of 400 cells: stripes of tumour and stroma, niches that know them, halfway and not at all."""
    rng = np.random.default_rng(0)
    n = 400
    xy = np.c_[np.sort(rng.random(n)) * 2000, rng.random(n) * 100]
    annotation = np.where((xy[:, 0] // 50) % 2 == 0, "tumour", "stroma")
    niche = np.where(rng.random(n) < 0.8, annotation == "tumour", rng.random(n) < 0.5).astype(int) * 2
    obs = {
        "split": np.repeat("test", n),
        "pathology": annotation,
        "niche_teacher": (annotation == "tumour").astype(int).astype(str),
        "niche": (niche + rng.integers(0, 2, n)).astype(str),
        "niche_random": rng.integers(0, 4, n).astype(str),
    }
    frame = pd.DataFrame(obs, index=[f"cell{i}" for i in range(n)]).astype("category")
    return AnnData(obs=frame, obsm={"spatial": xy})


def probe(adata, **kwargs):
    return nk.tl.pathology_probe(adata, annotation_key="pathology", **kwargs)


def test_from_perfect_to_none(slide):
    table = probe(slide)
    assert table.columns.tolist() == ["key", "macro_f1", "n_cells"]
    assert table["key"].tolist() == ["niche_teacher", "niche", "niche_random"]
    perfect, halfway, none = table["macro_f1"]
    assert perfect == 1
    assert 0.8 < halfway < 0.98
    assert none < 0.65
    assert table["n_cells"].tolist() == [400] * 3


def test_same_as_sklearns_pipeline(slide):
    """Blocks of equal size along x, one-hot niches, pooled out-of-block predictions."""
    slide = slide[np.random.default_rng(1).permutation(400)].copy()
    block = np.argsort(np.argsort(slide.obsm["spatial"][:, 0])) // 80
    one_hot = OneHotEncoder().fit_transform(slide.obs[["niche"]].astype(str))
    machine = LinearSVC(class_weight="balanced", random_state=0)
    predicted = cross_val_predict(machine, one_hot, slide.obs["pathology"], groups=block, cv=GroupKFold(5))
    expected = f1_score(slide.obs["pathology"], predicted, average="macro")
    assert probe(slide, keys="niche")["macro_f1"].item() == pytest.approx(expected)


def test_blocks_lie_along_the_longer_side(slide):
    turned = slide.copy()
    turned.obsm["spatial"] = slide.obsm["spatial"][:, ::-1].copy()
    assert probe(turned).equals(probe(slide))


def test_what_lies_in_one_block_cannot_be_predicted(slide):
    """Were the folds random, these 40 cells would be learnt from their neighbors."""
    slide.obs["pathology"] = slide.obs["pathology"].cat.add_categories("necrosis")
    slide.obs["niche_teacher"] = slide.obs["niche_teacher"].cat.add_categories("2")
    slide.obs.iloc[:40, [slide.obs.columns.get_loc("pathology"), slide.obs.columns.get_loc("niche_teacher")]] = [
        "necrosis",
        "2",
    ]
    assert probe(slide, keys="niche_teacher")["macro_f1"].item() <= 2 / 3


def test_unannotated_cells_are_left_out(slide, caplog):
    slide.obs["pathology"] = slide.obs["pathology"].where(np.arange(400) % 4 > 0)
    with caplog.at_level(logging.INFO, "nichekd"):
        table = probe(slide, keys="niche_teacher")
    assert table["n_cells"].item() == 300
    assert "300 of 400 cells are annotated" in caplog.text


def test_the_teacher_may_be_alone(slide):
    slide.obs = slide.obs[["split", "pathology", "niche_teacher"]]
    assert probe(slide)["key"].tolist() == ["niche_teacher"]


def test_a_fold_with_one_kind_to_learn_from(slide):
    """All stroma lies in the first block, so that the first fold has seen tumour alone."""
    slide.obs["pathology"] = pd.Categorical(np.where(np.arange(400) < 60, "stroma", "tumour"))
    assert probe(slide, keys="niche")["macro_f1"].item() < 0.6


def test_no_annotation_in_the_test_strip(slide):
    slide.obs["split"] = pd.Categorical(np.where(np.arange(400) < 200, "test", "train"))
    slide.obs["pathology"] = slide.obs["pathology"].where(np.arange(400) >= 300)
    with pytest.raises(ValueError, match=r"marks 0 cells of subset 'test'.*100 cells.*by split \{'train': 100\}"):
        probe(slide)
    assert probe(slide, subset=None, keys="niche_teacher")["n_cells"].item() == 100


def test_one_kind_only(slide):
    slide.obs["pathology"] = pd.Categorical(["tumour"] * 400)
    with pytest.raises(ValueError, match=r"\{'tumour': 400\}.*2 kinds"):
        probe(slide)


def test_fewer_cells_than_blocks(slide):
    slide.obs["pathology"] = slide.obs["pathology"].where(np.arange(400) % 100 == 0)
    with pytest.raises(ValueError, match="marks 4 cells.*at least 5"):
        probe(slide)


def test_a_method_that_did_not_see_part_of_it(slide):
    slide.obs["niche"] = slide.obs["niche"].where(np.arange(400) < 200)
    with pytest.raises(ValueError, match=r"obs\['niche'\] labels 200 of the 400 annotated cells"):
        probe(slide)


def test_missing_columns(slide):
    with pytest.raises(KeyError, match=r"obs\['region'\] is missing.*'pathology'"):
        nk.tl.pathology_probe(slide, annotation_key="region")
    del slide.obs["split"]
    with pytest.raises(KeyError, match=r"nk\.pp\.split"):
        probe(slide)


def test_no_niches(slide):
    slide.obs = slide.obs[["split", "pathology"]]
    with pytest.raises(KeyError, match=r"nk\.tl\.distill"):
        probe(slide)
