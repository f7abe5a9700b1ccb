from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import pearsonr, spearmanr

import nichekd as nk


def spots(true, predicted, **obs):
    true, predicted = np.asarray(true, dtype=float), np.asarray(predicted, dtype=float)
    names = [f"spot{i}" for i in range(len(true))]
    adata = AnnData(obs=pd.DataFrame(obs, index=names))
    types = [f"type{i}" for i in range(true.shape[1])]
    adata.obsm["true"] = pd.DataFrame(true, index=names, columns=types)
    adata.obsm["abundance"] = pd.DataFrame(predicted, index=names, columns=types)
    return adata


def agreement(adata, **options):
    return nk.tl.abundance_agreement(adata, truth="true", prediction="abundance", **options)


def test_a_row_per_type():
    table = agreement(spots([[1, 0], [3, 4]], [[2, 0], [3, 2]]))
    assert table.columns.tolist() == ["library", "cell_type", "pearson", "spearman", "RMSE", "JSD", "n_cells"]
    assert table["cell_type"].tolist() == ["type0", "type1"]
    assert set(table["library"]) == {"all"}


def test_numbers_by_hand():
    row = agreement(spots([[1.0], [3.0], [4.0]], [[1.0], [2.0], [6.0]])).iloc[0]
    # deviations -5/3, 1/3, 4/3 and -2, -1, 3
    assert row["pearson"] == pytest.approx((10 / 3 - 1 / 3 + 4) / np.sqrt((25 + 1 + 16) / 9 * 14))
    assert row["spearman"] == pytest.approx(1)
    assert row["RMSE"] == pytest.approx(np.sqrt((0 + 1 + 4) / 3))
    assert row["n_cells"] == 3


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_against_scipy(seed):
    rng = np.random.default_rng(seed)
    true, predicted = rng.gamma(1, 1, (12, 3)), rng.integers(0, 4, (12, 3)) + rng.random((1, 3))
    predicted[0] += 1  # never constant
    table = agreement(spots(true, predicted))
    for k in range(3):
        a, b = true[:, k], predicted[:, k]
        assert table.loc[k, "pearson"] == pytest.approx(pearsonr(a, b).statistic)
        assert table.loc[k, "spearman"] == pytest.approx(spearmanr(a, b).statistic)
        assert table.loc[k, "JSD"] == pytest.approx(jensenshannon(a, b, base=2) ** 2, abs=1e-9)


def test_scale_changes_the_error_alone():
    rng = np.random.default_rng(0)
    true = rng.gamma(1, 1, (20, 2))
    one, other = (agreement(spots(true, factor * (true + 0.3))) for factor in (1, 5))
    pd.testing.assert_frame_equal(one.drop(columns="RMSE"), other.drop(columns="RMSE"))
    assert (other["RMSE"] > one["RMSE"]).all()


def test_slide_by_slide_not_pooled():
    # within each slide the prediction runs the wrong way; pooled, offsets would make it right
    adata = spots([[1.0], [2], [11], [12]], [[2.0], [1], [12], [11]], slide=list("aabb"))
    table = agreement(adata, library_key="slide")
    assert table["library"].tolist() == ["a", "b"]
    assert table["pearson"].tolist() == pytest.approx([-1, -1])
    assert agreement(adata)["pearson"].item() > 0.9


def test_columns_are_matched_by_name():
    adata = spots([[1, 5], [2, 4], [3, 9]], [[1, 5], [2, 4], [3, 9]])
    adata.obsm["abundance"] = adata.obsm["abundance"][["type1", "type0"]]
    table = agreement(adata)
    assert table["cell_type"].tolist() == ["type0", "type1"]
    assert table["pearson"].tolist() == pytest.approx([1, 1])


def test_subset():
    adata = spots([[1.0], [2], [3], [9]], [[1.0], [2], [3], [0]], split=["test"] * 3 + ["train"])
    assert agreement(adata, subset="test")["pearson"].item() == pytest.approx(1)
    assert agreement(adata)["n_cells"].item() == 4


def test_constant_types_are_nan_with_a_warning_and_a_count():
    adata = spots([[1, 0, 1], [2, 0, 2], [3, 0, 3]], [[1, 1, 2], [2, 2, 2], [3, 3, 2]])
    with pytest.warns(UserWarning, match="2 of 3 rows have a constant truth or prediction"):
        table = agreement(adata)
    assert table["pearson"].isna().tolist() == [False, True, True]
    assert table["spearman"].isna().tolist() == [False, True, True]
    assert table["JSD"].isna().tolist() == [False, True, False]
    assert table["RMSE"].notna().all()


def test_other_types():
    adata = spots([[1, 2], [2, 3]], [[1, 2], [2, 3]])
    adata.obsm["abundance"].columns = ["type0", "new"]
    with pytest.raises(ValueError, match=r"former alone has \['type1'\], the latter alone \['new'\]"):
        agreement(adata)


def test_missing_keys():
    adata = spots([[1], [2]], [[1], [2]])
    with pytest.raises(KeyError, match=r"obsm\['other'\] is missing; obsm has .*abundance"):
        nk.tl.abundance_agreement(adata, truth="other", prediction="abundance")
    del adata.obsm["abundance"]
    with pytest.raises(KeyError, match=r"Run nk\.tl\.predict_abundance"):
        agreement(adata)
    adata = spots([[1], [2]], [[1], [2]])
    with pytest.raises(KeyError, match=r"obs\['slide'\] is missing"):
        agreement(adata, library_key="slide")
    with pytest.raises(KeyError, match=r"subset='test', but obs\['split'\] is missing"):
        agreement(adata, subset="test")


def test_spots_without_a_slide():
    adata = spots([[1], [2]], [[1], [2]], slide=["a", None])
    with pytest.raises(ValueError, match=r"obs\['slide'\] is missing for 1 of 2"):
        agreement(adata, library_key="slide")


def test_truth_that_is_none():
    adata = spots([[1], [2]], [[1], [2]])
    adata.obsm["true"] = np.array([[1.0], [np.nan]])
    adata.obsm["abundance"] = np.array([[1.0], [2.0]])
    with pytest.raises(ValueError, match=r"obsm\['true'\] is NaN"):
        agreement(adata)
