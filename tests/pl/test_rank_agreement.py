from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import nichekd as nk


@pytest.fixture
def table() -> pd.DataFrame:
    rows = [
        (name, scale, library, value + shift)
        for name, value in (("X_uni2", 0.6), ("X_rank_by_gene", 0.7))
        for scale, shift in (("slide", 0.0), ("neighborhood", -0.05))
        for library in ("s1", "s2")
    ]
    return pd.DataFrame(rows, columns=["a", "scale", "library", "agreement"])


def points() -> AnnData:
    rng = np.random.default_rng(0)
    b = rng.normal(size=(80, 3))
    return AnnData(obsm={"X_b": b, "X_noisy": b + rng.normal(size=(80, 3)), "X_noise": rng.normal(size=(80, 3))})


def test_a_bar_for_each_representation_and_scale(table, tmp_path):
    fig = nk.pl.rank_agreement(table, save=tmp_path / "bars.png", dpi=50)
    (ax,) = fig.axes
    names = [it.get_text() for it in ax.get_yticklabels()]
    assert names == ["uni2, slide", "rank_by_gene, slide", "uni2, neighborhood", "rank_by_gene, neighborhood"]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([0.1, 0.2, 0.05, 0.15])
    assert {"0.600", "0.700", "0.550", "0.650"} == {text.get_text() for text in ax.texts}
    assert (tmp_path / "bars.png").exists()


def test_order_and_choice_of_rows(table):
    slide = table[table["scale"] == "slide"]
    (ax,) = nk.pl.rank_agreement(slide, a=["X_rank_by_gene", "X_uni2"]).axes
    assert [it.get_text() for it in ax.get_yticklabels()] == ["rank_by_gene", "uni2"]
    (ax,) = nk.pl.rank_agreement(slide, a="X_uni2").axes
    assert len(ax.patches) == 1


def test_cells_show_where_the_order_is_easy():
    fig = nk.pl.rank_agreement(points(), a=["X_b", "X_noisy", "X_noise"], b="X_b", n_triplets=20_000)
    _, curves = fig.axes
    same, noisy, noise = (line.get_ydata() for line in curves.lines[:3])
    assert same == pytest.approx(np.ones(10))
    assert noisy[-1] > noisy[0] + 0.2, "cells far apart in genes are easier to order"
    assert np.abs(noise - 0.5).max() < 0.06


def test_the_number_is_that_of_the_tool():
    adata = points()
    fig = nk.pl.rank_agreement(adata, a="X_noisy", b="X_b", n_triplets=50_000)
    drawn = fig.axes[0].patches[0].get_width() + 0.5
    assert drawn == pytest.approx(nk.tl.rank_agreement(adata, a="X_noisy", b="X_b")["agreement"].item(), abs=0.01)


def test_bad_input(table):
    with pytest.raises(KeyError, match=r"no column \['agreement'\].*nk\.tl\.rank_agreement"):
        nk.pl.rank_agreement(table.drop(columns="agreement"))
    with pytest.raises(KeyError, match=r"no row \['X_none'\]"):
        nk.pl.rank_agreement(table, a="X_none")
    with pytest.raises(ValueError, match="The table is empty"):
        nk.pl.rank_agreement(table.iloc[:0])
    with pytest.raises(TypeError, match="a= is missing"):
        nk.pl.rank_agreement(points())
    with pytest.raises(KeyError, match="no 'X_none'"):
        nk.pl.rank_agreement(points(), a="X_none", b="X_b")
    with pytest.raises(ValueError, match="3 cells; an order of similarity needs 4"):
        nk.pl.rank_agreement(points()[:3].copy(), a="X_b", b="X_noise")
