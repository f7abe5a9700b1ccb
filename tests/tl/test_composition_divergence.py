import logging
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import jensenshannon

import nichekd as nk


def cells(**columns):
    n = len(next(iter(columns.values())))
    obs = pd.DataFrame({name: pd.Categorical(list(values)) for name, values in columns.items()})
    return AnnData(obs=obs.set_axis([f"cell{i}" for i in range(n)]))


def with_compositions(p, q):
    """Cells whose two partitions have ``p`` and ``q`` cells of each type; both need the same total of each."""
    types, teacher, student = [], [], []
    for kind in range(p.shape[1]):
        a, b = np.repeat(np.arange(len(p)), p[:, kind]), np.repeat(np.arange(len(q)), q[:, kind])
        assert len(a) == len(b)
        types += [f"type{kind}"] * len(a)
        teacher += a.astype(str).tolist()
        student += b.astype(str).tolist()
    return cells(niche_teacher=teacher, niche=student, cell_type=types)


def divergence(adata, **kwargs):
    return nk.tl.composition_divergence(adata, cell_type_key="cell_type", subset=None, **kwargs)


def test_by_hand():
    # teacher: a = 4 T, b = 2 B; student: x = 3 T, y = 1 T + 2 B
    adata = cells(niche_teacher="aaaabb", niche="xxxyyy", cell_type="TTTTBB")
    table = divergence(adata)
    assert table.columns.tolist() == ["key", "JSD", "p_value", "n_matched", "n_unmatched", "n_cells"]
    # b (0, 1) against y (1/3, 2/3), mixture (1/6, 5/6)
    b_y = 0.5 * np.log2(6 / 5) + 0.5 * (1 / 3 * np.log2(2) + 2 / 3 * np.log2(4 / 5))
    assert table["JSD"].item() == pytest.approx((4 * 0 + 2 * b_y) / 6)
    assert table[["n_matched", "n_unmatched", "n_cells"]].values.tolist() == [[2, 0, 6]]


def test_same_partition_under_other_names_is_zero():
    adata = cells(niche_teacher="aabbccdd" * 3, niche="zzxxyyww" * 3, cell_type="TTBBTBNN" * 3)
    row = divergence(adata).iloc[0]
    assert row["JSD"] == 0
    assert row["p_value"] < 0.1


def test_compositions_that_share_no_type_are_one_apart():
    adata = cells(niche_teacher=["a", "a", "a"], niche=["x", "y", "z"], cell_type="TBN")
    # a is a third of each; matched to one of x, y, z, pure each
    third = jensenshannon([1 / 3, 1 / 3, 1 / 3], [1, 0, 0], base=2) ** 2
    row = divergence(adata, keys="niche").iloc[0]
    assert row["JSD"] == pytest.approx(third)
    assert (row["n_matched"], row["n_unmatched"]) == (1, 2)


counts = hnp.arrays(np.int64, (4, 3), elements=st.integers(0, 5))


@given(p=counts, order=st.permutations(range(4)), move=st.integers(0, 3))
def test_definition(p, order, move):
    """Against scipy's distance and all matchings, one after the other."""
    q = p[list(order)]
    q[move], q[(move + 1) % 4] = 0, q[move] + q[(move + 1) % 4]  # one niche swallows another
    if not p.any():
        return
    row = divergence(with_compositions(p, q), n_permutations=1).iloc[0]
    p, q = p[p.sum(axis=1) > 0], q[q.sum(axis=1) > 0]
    cost = np.array([[jensenshannon(a, b, base=2) ** 2 for b in q] for a in p])
    n = min(len(p), len(q))
    size = p.sum(axis=1)
    sums, means = [], []
    for left in permutations(range(len(p)), n):
        for right in permutations(range(len(q)), n) if len(q) > len(p) else [tuple(range(n))]:
            pairs = cost[list(left), list(right)]
            sums.append(pairs.sum())
            means.append(np.average(pairs, weights=size[list(left)]))
    best = np.isclose(sums, min(sums), atol=1e-9)
    assert np.isclose(row["JSD"], np.array(means)[best], atol=1e-7).any()
    assert (row["n_matched"], row["n_unmatched"]) == (n, abs(len(p) - len(q)))


def test_weights_are_the_teachers_sizes_over_matched_niches():
    # the student has one niche; the teacher's a (6 T) is nearer to it than b (2 B), and alone counts
    adata = cells(niche_teacher="aaaaaabb", niche="xxxxxxxx", cell_type="TTTTTTBB")
    row = divergence(adata).iloc[0]
    assert row["JSD"] == pytest.approx(jensenshannon([0, 1], [0.25, 0.75], base=2) ** 2)
    assert (row["n_matched"], row["n_unmatched"]) == (1, 1)


def test_p_value_is_the_share_of_random_pairings():
    # three niches, each of its own type: 1 of the 6 pairings is as good as ours
    adata = cells(niche_teacher="aabbcc", niche="xxyyzz", cell_type="TTBBNN")
    p = divergence(adata, n_permutations=20_000)["p_value"].item()
    assert p == pytest.approx(1 / 6, abs=0.01)
    n = 50  # (1 + k) / (1 + n)
    assert (divergence(adata, n_permutations=n)["p_value"].item() * (n + 1)) % 1 == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("teacher", "student"), [("aabbcc", "xxxxyy"), ("aaaabb", "xxyyzz")])
def test_p_value_with_fewer_niches_on_one_side(teacher, student):
    """A random pairing leaves out a random niche, too."""
    adata = cells(niche_teacher=teacher, niche=student, cell_type="TTBBNN")
    row = divergence(adata, n_permutations=20_000).iloc[0]
    a, b = (pd.crosstab(adata.obs[key], adata.obs["cell_type"]) for key in ("niche_teacher", "niche"))
    cost = np.array([[jensenshannon(x, y, base=2) ** 2 for y in b.to_numpy()] for x in a.to_numpy()])
    size = a.sum(axis=1).to_numpy()
    if len(a) < len(b):
        means = [np.average(cost[range(len(a)), order], weights=size) for order in permutations(range(len(b)), len(a))]
    else:
        means = [
            np.average(cost[order, range(len(b))], weights=size[list(order)])
            for order in permutations(range(len(a)), len(b))
        ]
    assert row["p_value"] == pytest.approx(np.mean(np.array(means) <= row["JSD"] + 1e-9), abs=0.015)


def test_same_seed_same_p_value():
    rng = np.random.default_rng(0)
    adata = cells(**{key: rng.integers(0, 4, 60).astype(str) for key in ("niche_teacher", "niche", "cell_type")})
    first, again, other = (divergence(adata, n_permutations=99, seed=seed) for seed in (0, 0, 1))
    assert first.equals(again)
    assert first["JSD"].equals(other["JSD"])


def test_cells_without_a_type_are_left_out_and_counted(caplog):
    adata = cells(niche_teacher="aabba", niche="xxyyy", cell_type=["T", "T", "B", "B", None])
    with caplog.at_level(logging.WARNING, "nichekd"):
        row = divergence(adata).iloc[0]
    assert row["JSD"] == 0
    assert row["n_cells"] == 4
    assert "1 of 5 cells have no obs['cell_type']" in caplog.text


def test_a_niche_with_no_cell_in_the_subset_is_not_there():
    adata = cells(niche_teacher="aabbc", niche="xxyyz", cell_type="TTBBN", split=["test"] * 4 + ["train"])
    row = nk.tl.composition_divergence(adata, cell_type_key="cell_type").iloc[0]
    assert (row["n_matched"], row["n_unmatched"], row["n_cells"]) == (2, 0, 4)


def test_no_typed_cell_says_what_there_is():
    adata = cells(niche_teacher="ab", niche="xy", cell_type=["T", None], split=["train", "test"])
    with pytest.raises(ValueError, match=r"subset 'test'.*'cell_type': 0, 'niche': 1, 'niche_teacher': 1"):
        nk.tl.composition_divergence(adata, cell_type_key="cell_type")


def test_missing_cell_types():
    with pytest.raises(KeyError, match=r"obs\['cell_type'\] is missing.*niche_teacher"):
        divergence(cells(niche_teacher="ab", niche="xy"))


def test_no_permutation():
    with pytest.raises(ValueError, match="n_permutations=0"):
        divergence(cells(niche_teacher="ab", niche="xy", cell_type="TB"), n_permutations=0)


def test_no_split():
    with pytest.raises(KeyError, match=r"nk\.pp\.split"):
        nk.tl.composition_divergence(cells(niche_teacher="ab", niche="xy", cell_type="TB"), cell_type_key="cell_type")
