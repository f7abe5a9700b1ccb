import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import nichekd as nk


@pytest.fixture
def mapped(cells):
    """Three types whose prediction is the truth and noise; there is most of the second."""
    rng = np.random.default_rng(0)
    x, y = cells.obsm["spatial"].T / 200
    true = np.column_stack([x, 3 * y + 1, (x > 0.5) * 0.5])
    for key, values in (("true", true), ("abundance", np.clip(true + rng.normal(0, 0.2, true.shape), 0, None))):
        cells.obsm[key] = pd.DataFrame(values, index=cells.obs_names, columns=["T", "B", "tumour"])
    return cells


def test_prediction_beside_truth(mapped, panels):
    shown = panels(nk.pl.abundance(mapped, truth="true"))
    r = np.corrcoef(mapped.obsm["true"]["T"], mapped.obsm["abundance"]["T"])[0, 1]
    assert {"B, true", "T, true", f"T, predicted (r = {r:.2f})"} <= set(shown)
    drawn = shown["T, true"].collections[0]
    assert np.allclose(np.sort(np.asarray(drawn.get_array())), np.sort(mapped.obsm["true"]["T"]))


def test_both_maps_share_their_colours(mapped, panels):
    shown = panels(nk.pl.abundance(mapped, truth="true", types="T"))
    limits = [ax.collections[0].get_clim() for ax in shown.values() if ax.collections]
    assert limits[0] == limits[1]
    assert limits[0] == pytest.approx((0, np.percentile(mapped.obsm["true"]["T"], 99)))


def test_cells_with_most_are_on_top(mapped, panels):
    drawn = panels(nk.pl.abundance(mapped, types="T"))["T, predicted"].collections[0]
    order = np.argsort(mapped.obsm["abundance"]["T"], kind="stable")
    assert np.allclose(drawn.get_offsets(), mapped.obsm["spatial"][order])


def test_types_there_is_most_of_come_first(mapped):
    fig = nk.pl.abundance(mapped)
    titles = [ax.get_title() for ax in fig.axes if ax.get_title()]
    assert titles == ["B, predicted", "T, predicted", "tumour, predicted"]


def test_subset_and_file(mapped, panels, tmp_path):
    shown = panels(nk.pl.abundance(mapped, types=["T"], subset="test", save=tmp_path / "map.png", dpi=50))
    n_test = (mapped.obs["split"] == "test").sum()
    assert len(shown["T, predicted"].collections[0].get_offsets()) == n_test
    assert (tmp_path / "map.png").exists()


def test_spots_at_the_edge_are_not_cut_off(panels):
    """Of spots 100 µm apart, a map shows more than half that distance around them."""
    x, y = np.meshgrid(np.arange(6), np.arange(5))
    xy = 100.0 * np.column_stack([x.ravel(), y.ravel()])
    spots = AnnData(obs=pd.DataFrame(index=[f"s{i}" for i in range(30)]), obsm={"spatial": xy})
    spots.obsm["abundance"] = pd.DataFrame(np.ones((30, 1)), index=spots.obs_names, columns=["T"])
    ax = panels(nk.pl.abundance(spots))["T, predicted"]
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert min(0 - left, right - 500, 0 - top, bottom - 400) > 50


def test_one_slide_of_several(mapped, panels):
    mapped.obs["slide"] = np.where(np.arange(400) < 100, "one", "two")
    shown = panels(nk.pl.abundance(mapped, types="T", library_key="slide", library="one"))
    assert len(shown["T, predicted"].collections[0].get_offsets()) == 100
    with pytest.raises(ValueError, match=r"has \['one', 'two'\].*library="):
        nk.pl.abundance(mapped, library_key="slide")
    with pytest.raises(KeyError, match=r"has no 'three'; it has \['one', 'two'\]"):
        nk.pl.abundance(mapped, library_key="slide", library="three")
    with pytest.raises(ValueError, match="without library_key="):
        nk.pl.abundance(mapped, library="one")
    mapped.obs["slide"] = np.where(mapped.obs["split"] == "test", "two", "one")
    with pytest.raises(ValueError, match="No cell of subset 'test' is in library 'one'"):
        nk.pl.abundance(mapped, library_key="slide", library="one", subset="test")


def test_bad_input(mapped):
    with pytest.raises(KeyError, match=r"no type \['NK'\]; there are \['T', 'B', 'tumour'\]"):
        nk.pl.abundance(mapped, types=["NK"])
    with pytest.raises(ValueError, match="name at least one type"):
        nk.pl.abundance(mapped, types=[])
    with pytest.raises(KeyError, match=r"obsm\['none'\] is missing"):
        nk.pl.abundance(mapped, truth="none")
    del mapped.obsm["abundance"]
    with pytest.raises(KeyError, match=r"nk\.tl\.predict_abundance"):
        nk.pl.abundance(mapped)
