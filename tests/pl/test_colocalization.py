import numpy as np
import pandas as pd
import pytest

import nichekd as nk


@pytest.fixture
def near(cells):
    """Four types, two of which are on the left and two on the right, and predictions of them."""
    rng = np.random.default_rng(0)
    left = cells.obsm["spatial"][:, 0] < 100
    true = np.column_stack([left, ~left, left, ~left]) + rng.random((400, 4))
    for key, values in (("true", true), ("abundance", true + rng.random((400, 4)))):
        cells.obsm[key] = pd.DataFrame(values, index=cells.obs_names, columns=["T", "tumour", "B", "mural"])
    nk.pp.neighborhoods(cells, radius=15)
    return cells


def heatmaps(fig):
    return {ax.get_title().split("\n")[0]: ax for ax in fig.axes if ax.images and ax.get_title()}


def test_both_in_one_order_with_the_types_that_are_near_side_by_side(near):
    fig = nk.pl.colocalization(near, truth="true")
    shown = heatmaps(fig)
    assert list(shown) == ["true abundances", "predicted abundances"]
    names = [label.get_text() for label in shown["true abundances"].get_xticklabels()]
    assert {frozenset(names[:2]), frozenset(names[2:])} == {frozenset(["T", "B"]), frozenset(["tumour", "mural"])}
    assert [it.get_text() for it in shown["predicted abundances"].get_xticklabels()] == names


def test_numbers_are_those_of_the_table(near):
    drawn = heatmaps(nk.pl.colocalization(near))["predicted abundances"]
    names = [label.get_text() for label in drawn.get_yticklabels()]
    image = np.ma.filled(drawn.images[0].get_array(), np.nan)
    for row in nk.tl.colocalization(near, key="abundance").itertuples():
        assert image[names.index(row.type_a), names.index(row.type_b)] == pytest.approx(row.moran_r)
    assert np.isnan(np.diag(image)).all(), "a type with itself is no pair"


def test_colours_run_as_far_below_zero_as_above(near):
    limits = {ax.images[0].get_clim() for ax in heatmaps(nk.pl.colocalization(near, truth="true")).values()}
    ((low, high),) = limits
    assert low == -high


def test_agreement_stands_above(near):
    fig = nk.pl.colocalization(near, truth="true")
    (title,) = [ax.get_title() for ax in fig.axes if "Spearman" in ax.get_title()]
    tables = [
        nk.tl.colocalization(near, key=key).set_index(["type_a", "type_b"])["moran_r"] for key in ("true", "abundance")
    ]
    assert title.endswith(f"{tables[0].corr(tables[1], method='spearman'):.2f}")


def test_mean_over_slides(near, tmp_path):
    near.obs["slide"] = np.where(near.obsm["spatial"][:, 1] < 100, "one", "two")
    drawn = heatmaps(nk.pl.colocalization(near, library_key="slide", save=tmp_path / "r.png", dpi=50))
    names = [label.get_text() for label in drawn["predicted abundances"].get_yticklabels()]
    table = nk.tl.colocalization(near, key="abundance", library_key="slide")
    expected = table.groupby(["type_a", "type_b"])["moran_r"].mean()
    image = np.ma.filled(drawn["predicted abundances"].images[0].get_array(), np.nan)
    for (a, b), r in expected.items():
        assert image[names.index(a), names.index(b)] == pytest.approx(r)
    assert (tmp_path / "r.png").exists()


def test_constant_types_are_grey_and_last(near):
    near.obsm["abundance"]["T"] = 1.0
    drawn = heatmaps(nk.pl.colocalization(near))["predicted abundances"]
    assert [label.get_text() for label in drawn.get_xticklabels()][-1] == "T"
    assert np.ma.getmaskarray(drawn.images[0].get_array())[-1].all() or np.isnan(drawn.images[0].get_array()[-1]).all()


def test_bad_input(near):
    near.obsm["abundance"].columns = ["T", "tumour", "B", "new"]
    with pytest.raises(ValueError, match="of other types"):
        nk.pl.colocalization(near, truth="true")
    del near.obsp["spatial_connectivities"]
    with pytest.raises(KeyError, match=r"nk\.pp\.neighborhoods"):
        nk.pl.colocalization(near)
