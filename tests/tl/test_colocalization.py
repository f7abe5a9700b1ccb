from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import squidpy as sq
from anndata import AnnData

import nichekd as nk


def on_a_line(*columns):
    """Spots a step apart, and the abundances of some types on them."""
    values = np.column_stack(columns).astype(float)
    names = [f"spot{i}" for i in range(len(values))]
    adata = AnnData(obs=pd.DataFrame(index=names))
    adata.obsm["spatial"] = np.column_stack([np.arange(len(values)), np.zeros(len(values))]).astype(float)
    adata.obsm["abundance"] = pd.DataFrame(values, index=names, columns=list("abcdefgh")[: values.shape[1]])
    nk.pp.neighborhoods(adata, radius=1)
    return adata


@pytest.fixture
def field():
    """900 spots of six types: two are drawn to the same patches but never to the same spot."""
    rng = np.random.default_rng(0)
    xy = np.stack(np.meshgrid(np.arange(30.0), np.arange(30.0)), axis=-1).reshape(-1, 2)
    names = [f"spot{i}" for i in range(900)]
    values = rng.gamma(1, 1, (900, 6))
    patch = np.exp(-((xy - [8, 9]) ** 2).sum(1) / 30) + np.exp(-((xy - [21, 20]) ** 2).sum(1) / 20)
    chess = xy.sum(1) % 2 == 0
    values[:, 1] += 8 * patch * chess
    values[:, 4] += 8 * patch * ~chess
    adata = AnnData(obs=pd.DataFrame(index=names), obsm={"spatial": xy})
    adata.obsm["abundance"] = pd.DataFrame(values, index=names, columns=list("abcdef"))
    nk.pp.neighborhoods(adata, radius=1.5)
    return adata


def test_by_hand():
    adata = on_a_line([1, 0, 0, 0], [0, 1, 0, 0])
    # deviations (3, -1, -1, -1) / 4 and (-1, 3, -1, -1) / 4, squares sum up to 12 / 16; edges 0-1, 1-2, 2-3 both ways
    cross = (9 + 1) + (1 - 3) + (1 + 1)  # a_i b_j + a_j b_i of each edge, in sixteenths
    table = nk.tl.colocalization(adata, key="abundance")
    assert table[["library", "type_a", "type_b"]].to_numpy().tolist() == [["all", "a", "b"]]
    assert table["moran_r"].item() == pytest.approx(4 / 6 * (cross / 16) / (12 / 16))


def test_a_type_with_its_copy_is_squidpys_moran():
    rng = np.random.default_rng(0)
    values = rng.gamma(1, 1, 40)
    adata = on_a_line(values, values)
    adata.obs["value"] = values
    nk.pp.neighborhoods(adata, radius=2.5)
    sq.gr.spatial_autocorr(adata, mode="moran", genes=["value"], attr="obs", transformation=False)
    expected = adata.uns["moranI"].loc["value", "I"]
    assert nk.tl.colocalization(adata, key="abundance")["moran_r"].item() == pytest.approx(expected)


def test_weights_that_are_not_symmetric_count_both_ways():
    adata = on_a_line(np.arange(6), [3, 1, 4, 1, 5, 9])
    graph = adata.obsp["spatial_connectivities"].copy()
    both = nk.tl.colocalization(adata, key="abundance")["moran_r"].item()
    adata.obsp["spatial_connectivities"] = np.triu(graph.toarray())
    assert nk.tl.colocalization(adata, key="abundance")["moran_r"].item() == pytest.approx(both)


def test_units_do_not_matter(field):
    one = nk.tl.colocalization(field, key="abundance")
    field.obsm["abundance"] = field.obsm["abundance"] * [1, 10, 3, 0.1, 7, 2] + 1
    pd.testing.assert_frame_equal(nk.tl.colocalization(field, key="abundance"), one)


def test_a_planted_pair_ranks_first_and_a_permutation_kills_it(field):
    table = nk.tl.colocalization(field, key="abundance", n_permutations=99)
    assert len(table) == 15
    assert set(table.loc[0, ["type_a", "type_b"]]) == {"b", "e"}
    assert table.loc[0, "moran_r"] > 5 * table["moran_r"][1:].abs().max()
    assert table.loc[0, "p_value"] == pytest.approx(0.01)
    # neighbors, not the spot's own: in its own spot the pair excludes each other
    assert np.corrcoef(field.obsm["abundance"][["b", "e"]].T)[0, 1] < table.loc[0, "moran_r"]
    field.obsm["abundance"] = pd.DataFrame(
        np.random.default_rng(1).permutation(field.obsm["abundance"].to_numpy()),
        index=field.obs_names,
        columns=list("abcdef"),
    )
    killed = nk.tl.colocalization(field, key="abundance", n_permutations=99)
    pair = killed[(killed["type_a"] == "b") & (killed["type_b"] == "e")].iloc[0]
    assert abs(pair["moran_r"]) < 0.1 * table.loc[0, "moran_r"]
    assert pair["p_value"] > 0.02


def test_slides_are_looked_at_one_by_one():
    adata = on_a_line([1, 2, 3, 9, 1, 1], [2, 1, 4, 1, 1, 7])
    adata.obs["slide"] = list("aaabbb")
    table = nk.tl.colocalization(adata, key="abundance", library_key="slide")
    expected = [
        nk.tl.colocalization(adata[adata.obs["slide"] == slide].copy(), key="abundance")["moran_r"].item()
        for slide in "ab"
    ]
    assert table.set_index("library")["moran_r"][["a", "b"]].tolist() == pytest.approx(expected)


def test_same_seed_same_p_value(field):
    first, again, other = (
        nk.tl.colocalization(field, key="abundance", n_permutations=19, seed=seed)["p_value"] for seed in (0, 0, 1)
    )
    assert first.equals(again)
    assert not first.equals(other)


def test_constant_types_are_nan_with_a_warning_and_a_count():
    adata = on_a_line([1, 0, 2, 0], [0, 1, 0, 3], [2, 2, 2, 2])
    with pytest.warns(UserWarning, match="1 of 3 types are constant"):
        table = nk.tl.colocalization(adata, key="abundance", n_permutations=9)
    assert table["moran_r"].isna().tolist() == [False, True, True]
    assert table["p_value"].isna().tolist() == [False, True, True]


def test_missing_graph(field):
    del field.obsp["spatial_connectivities"]
    with pytest.raises(KeyError, match=r"nk\.pp\.neighborhoods or squidpy\.gr\.spatial_neighbors"):
        nk.tl.colocalization(field, key="abundance")


def test_no_neighbors(field):
    field.obsp["spatial_connectivities"] = field.obsp["spatial_connectivities"] * 0
    with pytest.raises(ValueError, match="connects none of the 900"):
        nk.tl.colocalization(field, key="abundance")


def test_bad_input(field):
    with pytest.raises(KeyError, match=r"obsm\['none'\] is missing"):
        nk.tl.colocalization(field, key="none")
    with pytest.raises(ValueError, match="n_permutations=-1"):
        nk.tl.colocalization(field, key="abundance", n_permutations=-1)
    field.obsm["one"] = np.ones((900, 1))
    with pytest.raises(ValueError, match="has one type"):
        nk.tl.colocalization(field, key="one")
