import numpy as np
import pandas as pd
import pytest

import nichekd as nk


def widths(ax):
    return {text.get_text(): bar.get_width() for text, bar in zip(ax.get_yticklabels(), ax.patches, strict=True)}


def lines(ax):
    """Upright lines across the panel."""
    return sorted(
        line.get_xdata()[0] for line in ax.lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2
    )


def metric(fig, name):
    """The panels of a metric, by title."""
    return [ax for ax in fig.axes if ax.get_title().startswith(name)]


@pytest.fixture
def table():
    rows = [
        {"K": K, "key": key, "role": role, "ARI": value - (K - 10) / 100 + seed, "NMI": value / 2}
        for K in (10, 20)
        for seed in (-0.1, 0.1)
        for key, role, value in [
            ("niche", "method", 0.6),
            ("niche_histology_nolan", "baseline", 0.3),
            ("expression", "ceiling", 0.8),
            ("colour", "floor", 0.2),
            ("shuffled", "floor", 0.05),
        ]
    ]
    return pd.DataFrame(rows)


def test_bars_are_the_scores_of_tl(cells):
    fig = nk.pl.agreement(cells)
    expected = nk.tl.agreement(cells).set_index("key")
    for column, title in (("ARI", "Adjusted Rand index"), ("NMI", "Normalised mutual information")):
        (ax,) = metric(fig, title)
        assert [bar.get_width() for bar in ax.patches] == pytest.approx(expected[column].tolist())
    (ax,) = metric(fig, "Adjusted")
    assert list(widths(ax)) == ["Student", "Histology-Leiden"]


def test_the_table_of_tl_gives_the_same_bars(cells):
    (one,), (other,) = (metric(nk.pl.agreement(it), "Adjusted") for it in (cells, nk.tl.agreement(cells)))
    assert list(widths(one).values()) == pytest.approx(list(widths(other).values()))


def test_confusion_has_partners_on_the_diagonal(cells, panels):
    ax = panels(nk.pl.agreement(cells, subset=None))["Histology-Leiden"]
    shares = np.ma.filled(ax.images[0].get_array(), np.nan)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["0", "1", "2", "3"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["d", "c", "b", "a", "e"]
    assert np.allclose(shares.sum(axis=1), 1)
    counts = pd.crosstab(cells.obs["niche_teacher"], cells.obs["niche_histology_leiden"], normalize="index")
    assert np.allclose(shares, counts[list("dcbae")])


def test_a_niche_without_a_partner_has_an_empty_column(cells, panels):
    cells.obs["niche_few"] = cells.obs["niche_teacher"].astype(str).replace({"1": "0"}).astype("category")
    ax = panels(nk.pl.agreement(cells, keys="niche_few", subset=None))["niche_few"]
    names = [text.get_text() for text in ax.get_xticklabels()]
    assert names.count("–") == 1
    assert np.isnan(np.ma.filled(ax.images[0].get_array(), np.nan)[:, names.index("–")]).all()


def test_floors_and_ceiling_are_lines(table, tmp_path):
    fig = nk.pl.agreement(table, save=tmp_path / "bars.png", dpi=50)
    at_10, at_20 = metric(fig, "Adjusted")
    assert at_10.get_title() == "Adjusted Rand index, K = 10"
    assert widths(at_10) == pytest.approx({"Student": 0.6, "Histology-NOLAN": 0.3})
    assert widths(at_20) == pytest.approx({"Student": 0.5, "Histology-NOLAN": 0.2})
    assert lines(at_10) == pytest.approx([0.05, 0.2, 0.8])
    names = [text.get_text() for text in fig.legends[0].get_texts()]
    assert names == ["ceiling: expression", "floor: colour", "floor: shuffled"]
    assert (tmp_path / "bars.png").exists()


def spread(ax):
    """Half the length of each error bar."""
    segments = ax.collections[0].get_segments()
    return [(segment[1, 0] - segment[0, 0]) / 2 for segment in segments]


def test_seeds_become_mean_and_sd(table):
    (ax,) = metric(nk.pl.agreement(table[table["K"] == 10].drop(columns="K")), "Adjusted")
    assert spread(ax) == pytest.approx([np.std([-0.1, 0.1], ddof=1)] * 2)


def test_no_bar_of_error_where_there_is_one_seed(table):
    table = table[(table["K"] == 10) & ~((table["key"] == "niche_histology_nolan") & (table["ARI"] < 0.3))]
    (ax,) = metric(nk.pl.agreement(table.drop(columns="K")), "Adjusted")
    assert spread(ax) == pytest.approx([np.std([-0.1, 0.1], ddof=1)])


def test_no_line_runs_through_a_value(table):
    fig = nk.pl.agreement(table)
    fig.canvas.draw()
    for ax in (ax for ax in fig.axes if ax.texts):
        assert all(text.get_window_extent().x0 > ax.get_window_extent().x1 for text in ax.texts)


def test_an_sd_that_is_given(cells):
    table = nk.tl.agreement(cells).assign(ARI_sd=[0.1, 0.2])
    (ax,) = metric(nk.pl.agreement(table), "Adjusted")
    assert spread(ax) == pytest.approx([0.1, 0.2])


def test_chosen_rows_in_their_order(table):
    ax, _ = metric(nk.pl.agreement(table, keys=["niche_histology_nolan", "niche"]), "Adjusted")
    assert list(widths(ax)) == ["Histology-NOLAN", "Student"]
    assert not lines(ax)


def test_bad_input(cells, table):
    with pytest.raises(KeyError, match=r"no column \['NMI'\].*nk\.tl\.agreement"):
        nk.pl.agreement(table.drop(columns="NMI"))
    with pytest.raises(KeyError, match=r"no row \['mine'\].*'niche'"):
        nk.pl.agreement(table, keys="mine")
    with pytest.raises(ValueError, match="table is empty"):
        nk.pl.agreement(table.iloc[:0])
    cells.obs["niche"] = cells.obs["niche"].where(cells.obs["split"] == "train")
    with pytest.raises(ValueError, match=r"No cell of subset 'test' has both obs\['niche'\]"):
        nk.pl.agreement(cells)
    del cells.obs["split"]
    with pytest.raises(KeyError, match=r"nk\.pp\.split"):
        nk.pl.agreement(cells)
