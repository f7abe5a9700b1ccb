from itertools import permutations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st

import nichekd as nk


def cells(**columns):
    return AnnData(obs=pd.DataFrame({name: pd.Categorical(list(values)) for name, values in columns.items()}).set_axis(
        [f"cell{i}" for i in range(len(next(iter(columns.values()))))]
    ))  # fmt: skip


def test_by_hand():
    # x meets a twice and b once, y meets b twice: x-a, y-b keeps 4 of 5 cells
    adata = cells(niche_teacher="aabbb", mine="xxxyy")
    table = nk.tl.match_niches(adata, key="mine")
    assert table["niche"].tolist() == ["x", "y"]
    assert table["reference_niche"].tolist() == ["a", "b"]
    assert table["n_cells"].tolist() == [3, 2]
    assert table["n_shared"].tolist() == [2, 2]


def test_best_total_not_greedy():
    # the largest overlap is x-a (3), but x-b, y-a keeps 2 + 2 > 3 + 0
    adata = cells(niche_teacher="aaabbaa", mine="xxxxxyy")
    assert nk.tl.match_niches(adata, key="mine")["reference_niche"].tolist() == ["b", "a"]


def test_partners_share_a_color_and_the_rest_have_their_own():
    adata = cells(niche_teacher="aabbcc", mine="xxyyzw")
    table = nk.tl.match_niches(adata, key="mine")
    theirs = dict(zip(adata.obs["niche_teacher"].cat.categories, adata.uns["niche_teacher_colors"], strict=True))
    ours = dict(zip(adata.obs["mine"].cat.categories, adata.uns["mine_colors"], strict=True))
    matched = table.dropna(subset="reference_niche")
    assert len(matched) == 3
    assert all(ours[row.niche] == theirs[row.reference_niche] for row in matched.itertuples())
    (alone,) = set(table["niche"]) - set(matched["niche"])
    assert ours[alone] not in theirs.values()


def test_unmatched_niches_of_two_methods_differ_in_color():
    adata = cells(niche_teacher="aaaa", one="xxxy", two="vvvw")
    nk.tl.match_niches(adata, key="one")
    nk.tl.match_niches(adata, key="two")
    assert len({*adata.uns["one_colors"], *adata.uns["two_colors"]}) == 3


def test_the_references_own_colors_stay():
    adata = cells(niche_teacher="aabb", mine="yyxx")
    adata.uns["niche_teacher_colors"] = ["#112233", "#445566"]
    nk.tl.match_niches(adata, key="mine")
    assert adata.uns["niche_teacher_colors"] == ["#112233", "#445566"]
    assert adata.uns["mine_colors"] == ["#445566", "#112233"]


def test_pairs_that_share_no_cell_stay_unmatched():
    adata = cells(niche_teacher=["a", "a", "b", None], mine=["x", "x", "x", "y"])
    assert nk.tl.match_niches(adata, key="mine").set_index("niche")["reference_niche"].isna().to_dict() == {
        "x": False,
        "y": True,
    }


def test_labels_and_logits_are_left_alone():
    adata = cells(niche_teacher="aabb", niche_mine="1100")
    adata.obsm["mine_logits"] = np.eye(4, 2, dtype=np.float32)
    before = adata.copy()
    nk.tl.match_niches(adata, key="niche_mine")
    assert adata.obs.equals(before.obs)
    assert np.array_equal(adata.obsm["mine_logits"], before.obsm["mine_logits"])


def test_table_translates_labels():
    adata = cells(niche_teacher="aabb", mine="1100")
    table = nk.tl.match_niches(adata, key="mine")
    translated = adata.obs["mine"].map(table.set_index("niche")["reference_niche"])
    assert translated.tolist() == list("aabb")


def test_by_composition():
    # by cells x is a; by what it is made of, it is b
    adata = cells(niche_teacher="aaaabb", mine="xxyyyy", cell_type="TTBBTT")
    table = nk.tl.match_niches(adata, key="mine", cell_type_key="cell_type").set_index("niche")
    # compositions (B, T): a (1/2, 1/2), b (0, 1); x (0, 1), y (1/2, 1/2)
    assert table["reference_niche"].to_dict() == {"x": "b", "y": "a"}
    assert table["JSD"].tolist() == pytest.approx([0, 0])


def test_subset_decides_on_its_cells_alone():
    adata = cells(niche_teacher="abaabb", mine="xyyyxx", split=["test"] * 2 + ["train"] * 4)
    on = {subset: nk.tl.match_niches(adata, key="mine", subset=subset) for subset in ("test", None)}
    assert on["test"]["reference_niche"].tolist() == ["a", "b"]
    assert on["test"]["n_cells"].tolist() == [1, 1]
    assert on[None]["reference_niche"].tolist() == ["b", "a"]


def test_record_survives_a_file(tmp_path):
    adata = cells(niche_teacher="aabb", one="xxyy", two="ppqr")
    nk.tl.match_niches(adata, key="one")
    nk.tl.match_niches(adata, key="two")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    back = ad.read_h5ad(tmp_path / "cells.h5ad")
    entries = back.uns["nichekd"]["match_niches"]
    assert {"one", "two"} <= set(entries)
    assert list(entries["one"]["niche"]) == ["x", "y"]
    assert list(entries["one"]["reference_niche"]) == ["a", "b"]
    assert entries["one"]["reference"] == "niche_teacher"
    assert list(back.uns["one_colors"]) == adata.uns["one_colors"]


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=40), names=st.permutations("abcde"))
def test_a_renamed_partition_is_recognised(labels, names):
    adata = cells(niche_teacher=[str(it) for it in labels], mine=[names[it] for it in labels])
    table = nk.tl.match_niches(adata, key="mine").set_index("niche")["reference_niche"]
    assert table.to_dict() == {names[it]: str(it) for it in set(labels)}


@given(counts=st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), min_size=3, max_size=3))
def test_no_other_matching_shares_more_cells(counts):
    counts = np.array(counts)
    if not counts.any():
        return
    i, j = np.nonzero(counts)
    repeats = counts[i, j]
    adata = cells(niche_teacher=np.repeat(i, repeats).astype(str), mine=np.repeat(j, repeats).astype(str))
    best = max(sum(counts[order[j], j] for j in range(3)) for order in permutations(range(3)))
    assert nk.tl.match_niches(adata, key="mine")["n_shared"].sum() == best


def test_key_is_the_reference():
    with pytest.raises(ValueError, match="both 'niche_teacher'"):
        nk.tl.match_niches(cells(niche_teacher="ab"), key="niche_teacher")


def test_missing_column_names_the_next_call():
    with pytest.raises(KeyError, match=r"niche_histology_leiden.*nk\.tl\.histology_leiden"):
        nk.tl.match_niches(cells(niche_teacher="ab"), key="niche_histology_leiden")
    with pytest.raises(KeyError, match=r"niche_teacher.*nk\.tl\.nolan"):
        nk.tl.match_niches(cells(niche="ab"), key="niche")


def test_no_cell_in_common():
    with pytest.raises(ValueError, match=r"No cell has both obs\['mine'\] and obs\['niche_teacher'\]"):
        nk.tl.match_niches(cells(niche_teacher=["a", None], mine=[None, "x"]), key="mine")


def test_no_typed_cell():
    adata = cells(niche_teacher="ab", mine="xy", cell_type=[None, None])
    with pytest.raises(ValueError, match="leave cell_type_key out"):
        nk.tl.match_niches(adata, key="mine", cell_type_key="cell_type")
