"""Columns of labels, and the cells they are looked at on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import nichekd as nk


@pytest.fixture
def cells() -> AnnData:
    names = [str(i) for i in range(8)]
    return AnnData(
        obs=pd.DataFrame({"niche_teacher": list("aabbaabb"), "niche": list("xxyyxyxy"), "split": "test"}, index=names)
    )


@pytest.mark.parametrize("largest", [np.inf, -np.inf, 1e300])
def test_numbers_that_no_label_is(cells, largest):
    cells.obs["niche"] = [largest, 1.0] * 4
    with pytest.raises(TypeError, match=r"obs\['niche'\] holds fractions or infinite numbers \(-?(inf|1e\+300), …\)"):
        nk.tl.agreement(cells)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, "Float32"])
def test_whole_floats_are_labels(cells, dtype):
    cells.obs["niche"] = pd.Series([3, 1, None, 1] * 2, index=cells.obs_names, dtype="Float64").astype(
        dtype if dtype == "Float32" else object
    )
    if dtype != "Float32":
        cells.obs["niche"] = np.array([3, 1, np.nan, 1] * 2, dtype=dtype)
    assert nk.tl.agreement(cells).loc[0, "n_cells"] == 6


@pytest.mark.parametrize("subset", [["test"], 3, ("train", "test")])
def test_a_subset_is_one_name(cells, subset):
    with pytest.raises(TypeError, match=r"subset=.* one of \['train', 'test', 'buffer'\], or None"):
        nk.tl.agreement(cells, subset=subset)


def test_keys_are_names(cells):
    with pytest.raises(TypeError, match="keys=3; it has to be a column of obs, or a list"):
        nk.tl.agreement(cells, keys=3)
