import numpy as np
import pandas as pd
import pytest

import nichekd as nk


def shares(ax):
    """Share by niche and type; rows in the order they are drawn, empty ones under None."""
    (image,) = ax.images
    drawn = np.ma.filled(image.get_array(), np.nan)
    names = {round(tick): text.get_text() for tick, text in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)}
    types = [text.get_text() for text in ax.get_xticklabels()]
    return pd.DataFrame(drawn, index=[names.get(i) for i in range(len(drawn))], columns=types)


def test_rows_are_the_niches_compositions(cells, panels):
    shown = panels(nk.pl.composition(cells, cell_type_key="cell_type", keys="niche"))
    expected = pd.crosstab(cells.obs["niche_teacher"], cells.obs["cell_type"], normalize="index")
    drawn = shares(shown["Teacher\n(gene expression)"])
    assert drawn.index.tolist() == ["0", "1", "2", "3"]
    assert np.allclose(drawn[expected.columns], expected)


def test_partners_stand_side_by_side(cells, panels):
    """The same as ``tl.composition_divergence`` pairs."""
    cells.obs["niche_mine"] = cells.obs["niche_teacher"].cat.rename_categories(list("dbca"))
    shown = panels(nk.pl.composition(cells, cell_type_key="cell_type", keys="niche_mine"))
    teacher, mine = shares(shown["Teacher\n(gene expression)"]), shares(shown["niche_mine"])
    assert np.allclose(teacher, mine)
    right = shown["niche_mine"].child_axes[0]
    assert [text.get_text() for text in right.get_yticklabels()] == ["0.00"] * 4


def test_niches_without_a_partner_come_last(cells, panels):
    fig = nk.pl.composition(cells, cell_type_key="cell_type", keys="niche_histology_leiden")
    mine = shares(panels(fig)["Histology-Leiden"])
    assert sorted(mine.index) == list("abcde")
    teacher = shares(panels(fig)["Teacher\n(gene expression)"])
    assert teacher.iloc[4].isna().all()
    assert not mine.isna().any(axis=None)


def test_fewer_niches_leave_a_row_empty(cells, panels):
    few = cells.obs["niche_teacher"].map({"0": "a", "1": "b", "2": "a", "3": "b"})
    cells.obs["niche_few"] = few.astype("category")
    drawn = shares(panels(nk.pl.composition(cells, cell_type_key="cell_type", keys="niche_few"))["niche_few"])
    assert drawn.isna().all(axis=1).sum() == 2
    assert set(drawn.index.dropna()) == {"a", "b"}


def test_chips_have_the_niches_colors(cells, panels):
    from matplotlib.colors import to_rgba_array

    shown = panels(nk.pl.composition(cells, cell_type_key="cell_type"))
    chips = shown["Teacher\n(gene expression)"].collections[0].get_facecolors()
    assert np.allclose(chips, to_rgba_array(cells.uns["niche_teacher_colors"]))


def test_untyped_cells_and_other_subsets_are_left_out(cells, panels, tmp_path):
    cells.obs["cell_type"] = cells.obs["cell_type"].where(cells.obs["niche_teacher"] != "0")
    fig = nk.pl.composition(cells, cell_type_key="cell_type", subset="train", save=tmp_path / "types.png", dpi=50)
    train = cells.obs[cells.obs["split"] == "train"]
    expected = pd.crosstab(train["niche_teacher"], train["cell_type"], normalize="index")
    drawn = shares(panels(fig)["Teacher\n(gene expression)"]).loc[["1", "2", "3"]]
    assert np.allclose(drawn[expected.columns], expected)
    assert fig.axes[-1].get_ylabel() == "share of the niche's cells (train cells)"
    assert (tmp_path / "types.png").exists()


def test_bad_input(cells):
    with pytest.raises(KeyError, match=r"obs\['type'\] is missing"):
        nk.pl.composition(cells, cell_type_key="type")
    cells.obs["cell_type"] = pd.Categorical([None] * 400, categories=["T"])
    with pytest.raises(ValueError, match="both a niche in"):
        nk.pl.composition(cells, cell_type_key="cell_type")
    del cells.obs["niche_teacher"]
    with pytest.raises(KeyError, match=r"niche_teacher.*nk\.tl\.nolan"):
        nk.pl.composition(cells, cell_type_key="cell_type")
