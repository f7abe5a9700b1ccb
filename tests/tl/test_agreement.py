import logging

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

import nichekd as nk


def cells(**columns):
    n = len(next(iter(columns.values())))
    obs = pd.DataFrame({name: pd.Categorical(list(values)) for name, values in columns.items()})
    return AnnData(obs=obs.set_axis([f"cell{i}" for i in range(n)]))


def test_by_hand():
    # pairs together in both: 1 (cells 0, 1); in the teacher's 2; in the student's 3; of 6 in all
    adata = cells(niche_teacher="aabb", niche="xxxy", split=["test"] * 4)
    expected = 2 * 3 / 6
    ari = (1 - expected) / ((2 + 3) / 2 - expected)
    table = nk.tl.agreement(adata)
    assert table.columns.tolist() == ["key", "ARI", "NMI", "n_cells"]
    assert table["ARI"].item() == pytest.approx(ari)
    h_teacher, h_student = np.log(2), -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    mutual = 0.5 * np.log(0.5 / (0.5 * 0.75)) + 0.25 * np.log(0.25 / (0.5 * 0.75)) + 0.25 * np.log(0.25 / (0.5 * 0.25))
    assert table["NMI"].item() == pytest.approx(2 * mutual / (h_teacher + h_student))
    assert table["n_cells"].item() == 4


@given(
    pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=40),
    names=st.permutations("abcd"),
)
def test_same_as_sklearn_and_blind_to_names(pairs, names):
    teacher, student = (list(map(str, it)) for it in zip(*pairs, strict=True))
    adata = cells(niche_teacher=teacher, niche=student, niche_renamed=[names[int(it)] for it in student])
    table = nk.tl.agreement(adata, subset=None).set_index("key")
    assert table.loc["niche", "ARI"] == pytest.approx(adjusted_rand_score(teacher, student))
    assert table.loc["niche", "NMI"] == pytest.approx(normalized_mutual_info_score(teacher, student))
    assert table.loc["niche_renamed", ["ARI", "NMI"]].tolist() == pytest.approx(
        table.loc["niche", ["ARI", "NMI"]].tolist()
    )


def test_all_columns_of_niches_are_judged():
    adata = cells(
        niche_mine="ab", niche_histology_leiden="ab", niche="ab", niche_teacher="ab", niche_true="ab", cell_type="ab"
    )
    adata.obs["niche_entropy"] = [0.1, 0.2]
    table = nk.tl.agreement(adata, subset=None)
    assert table["key"].tolist() == ["niche", "niche_histology_leiden", "niche_mine"]


def test_another_reference():
    adata = cells(niche="aabb", niche_teacher="abab", niche_true="aabb")
    table = nk.tl.agreement(adata, reference="niche_true", subset=None).set_index("key")
    assert table["ARI"].to_dict() == pytest.approx({"niche": 1.0, "niche_teacher": -0.5})


def test_only_the_test_cells_count():
    adata = cells(niche_teacher="aabbab", niche="xxyyyx", split=["test"] * 4 + ["train", "buffer"])
    assert nk.tl.agreement(adata)["ARI"].item() == 1
    assert nk.tl.agreement(adata, subset=None)["ARI"].item() < 1
    assert nk.tl.agreement(adata, subset=None)["n_cells"].item() == 6


def test_cells_that_miss_a_label_are_left_out_and_counted(caplog):
    adata = cells(niche_teacher=["a", "a", "b", None], niche=["x", "x", "y", "y"])
    with caplog.at_level(logging.WARNING, "nichekd"):
        table = nk.tl.agreement(adata, subset=None)
    assert table["ARI"].item() == 1
    assert table["n_cells"].item() == 3
    assert "1 of 4 cells miss a label" in caplog.text


@pytest.mark.parametrize("labels", [[1, 1, 0, 0], [1.0, 1.0, 0.0, np.nan], list("xxyy"), [True, True, False, False]])
def test_plain_columns_are_labels_too(labels):
    adata = cells(niche_teacher="aabb")
    adata.obs["mine"] = labels
    assert nk.tl.agreement(adata, keys="mine", subset=None)["ARI"].item() == 1


def test_a_spatialdata_and_its_table_key():
    from spatialdata import SpatialData

    sdata = SpatialData(tables={"mine": cells(niche_teacher="aabb", niche="xxyy")})
    assert nk.tl.agreement(sdata, subset=None, table_key="mine")["ARI"].item() == 1
    with pytest.raises(KeyError, match=r"no table 'table'.*'mine'"):
        nk.tl.agreement(sdata, subset=None)


def test_what_ran_is_recorded():
    adata = cells(niche_teacher="aabb", niche="xxyy")
    nk.tl.agreement(adata, subset=None)
    entry = adata.uns["nichekd"]["agreement"]
    assert entry["subset"] == "all"
    assert list(entry["keys"]) == ["niche"]


def test_no_split():
    with pytest.raises(KeyError, match=r"'split'.*nk\.pp\.split"):
        nk.tl.agreement(cells(niche_teacher="ab", niche="ab"))


def test_empty_subset_says_what_there_is():
    adata = cells(niche_teacher="ab", niche="ab", split=["train"] * 2)
    with pytest.raises(ValueError, match=r"no cell 'test'.*'train': 2"):
        nk.tl.agreement(adata)
    with pytest.raises(ValueError, match="no cell 'tset'"):
        nk.tl.agreement(adata, subset="tset")


def test_no_method_has_run():
    with pytest.raises(KeyError, match=r"no column of niches.*nk\.tl\.distill"):
        nk.tl.agreement(cells(niche_teacher="ab"), subset=None)


def test_missing_columns():
    with pytest.raises(KeyError, match=r"niche_teacher.*nk\.tl\.nolan"):
        nk.tl.agreement(cells(niche="ab"), subset=None)
    with pytest.raises(KeyError, match=r"niche_histology_nolan.*nk\.tl\.histology_nolan"):
        nk.tl.agreement(cells(niche_teacher="ab"), keys=["niche_histology_nolan"], subset=None)


@pytest.mark.parametrize("keys", [[], ["niche", "niche"]])
def test_no_key_or_one_twice(keys):
    with pytest.raises(ValueError, match="at least one column of obs, each once"):
        nk.tl.agreement(cells(niche_teacher="ab", niche="ab"), keys=keys, subset=None)


def test_fractions_are_no_labels():
    adata = cells(niche_teacher="ab")
    adata.obs["niche_entropy"] = [0.25, 0.5]
    with pytest.raises(TypeError, match=r"holds fractions.*niche_teacher"):
        nk.tl.agreement(adata, keys="niche_entropy", subset=None)


def test_no_cell_has_both_labels():
    with pytest.raises(ValueError, match=r"No cell has both obs\['niche'\]"):
        nk.tl.agreement(cells(niche_teacher=["a", None], niche=[None, "x"]), subset=None)


def test_no_table():
    with pytest.raises(TypeError, match="ndarray"):
        nk.tl.agreement(np.zeros(3))


def test_a_student_of_other_labels_is_told_what_to_be_compared_with(caplog):
    labels = {"niche_teacher": list("aabb"), "cluster": list("abab"), "niche_cl": list("xyxy"), "split": ["test"] * 4}
    adata = AnnData(obs=labels, uns={"nichekd": {"distill_niche_cl": {"teacher": "cluster"}}})
    nk.tl.agreement(adata, keys="niche_cl", reference="cluster")
    assert not caplog.records
    nk.tl.agreement(adata, keys="niche_cl")
    assert "taught by obs['cluster']" in caplog.text
    assert "reference='cluster'" in caplog.text
