import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix

import nichekd as nk


@pytest.fixture
def line():
    """Six cells in a row, each next to its neighbors; two niches of three, and one that nobody has."""
    steps = np.eye(6, k=1) + np.eye(6, k=-1)
    counts = np.zeros((6, 3), dtype=np.float32)
    counts[:3, 0], counts[3:, 1], counts[:, 2] = 9, 9, 1
    obs = pd.DataFrame(
        {"niche_teacher": pd.Categorical(list("aaabbb"), categories=list("abc")), "type": list("xxyyyy")},
        index=[f"cell{i}" for i in range(6)],
    )
    return AnnData(
        csr_matrix(counts), obs=obs, var=pd.DataFrame(index=["left", "right", "both"]),
        obsp={"spatial_connectivities": csr_matrix(steps)},
    )  # fmt: skip


def test_worked_by_hand(line):
    table = nk.tl.niche_summary(line, cell_type_key="type", n_markers=1).set_index("niche")
    assert table["n_cells"].tolist() == [3, 3, 0]
    # the outer two cells of a niche have its own around them, the inner one has one of two
    assert table["coherence"].tolist()[:2] == pytest.approx([2.5 / 3, 2.5 / 3])
    assert np.isnan(table.loc["c", "coherence"])
    assert table["markers"].tolist() == ["left", "right", ""]
    assert table["cell_types"].tolist() == ["x 67%, y 33%", "y 100%", ""]


def test_cells_without_counts_make_no_markers(line):
    """Nor warnings of scanpy's; a niche of which one cell is left has none."""
    line.X = line.X.toarray()
    line.X[0] = 0
    assert nk.tl.niche_summary(line, n_markers=1)["markers"].tolist() == ["left", "right", ""]
    line.X[1] = 0
    assert nk.tl.niche_summary(line, n_markers=1)["markers"].tolist() == ["", "", ""]


def test_usage(line):
    attrs = nk.tl.niche_summary(line, n_markers=0).attrs
    assert attrs["n_live"] == 2
    assert attrs["usage_entropy"] == pytest.approx(np.log(2) / np.log(3))


def test_one_class_is_used_alone(line):
    line.obs["niche_teacher"] = "all"
    assert nk.tl.niche_summary(line, n_markers=0).attrs["usage_entropy"] == 0


def test_subset(line):
    line.obs["split"] = list("rrrrrr")
    line.obs["split"] = ["train"] * 3 + ["test"] * 3
    table = nk.tl.niche_summary(line, subset="test", n_markers=0)
    assert table["n_cells"].tolist() == [0, 3, 0]


def test_no_markers_without_counts(line):
    line.X = line.X * 0.5
    with pytest.raises(ValueError, match="fractional"):
        nk.tl.niche_summary(line)
    assert "markers" not in nk.tl.niche_summary(line, n_markers=0)


@pytest.mark.parametrize(("kwargs", "missing"), [({"key": "nope"}, "nope"), ({"cell_type_key": "nope"}, "nope")])
def test_missing_column(line, kwargs, missing):
    with pytest.raises(KeyError, match=missing):
        nk.tl.niche_summary(line, n_markers=0, **kwargs)


def test_missing_graph(line):
    del line.obsp["spatial_connectivities"]
    with pytest.raises(KeyError, match="neighborhoods"):
        nk.tl.niche_summary(line)
