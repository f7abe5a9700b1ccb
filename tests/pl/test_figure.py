import subprocess
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

import nichekd as nk

NEEDED = {"composition": {"cell_type_key": "cell_type"}, "neighborhood": {"cell": 0}}


@pytest.mark.parametrize("name", dir(nk.pl))
def test_where_to_save_is_looked_at_first(name, tmp_path):
    """Before even the data, which are none here."""
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        getattr(nk.pl, name)(None, save=tmp_path / "nowhere" / "figure.png", **NEEDED.get(name, {}))


@pytest.mark.parametrize(
    ("save", "match"),
    [
        ("there", r"there' is a folder\. Name a file in it: .*there/figure\.png"),
        ("o7", r"o7' has no ending; .*'pdf', .*'png', .*o7\.png"),
        ("o7.xyz", r"ends in '\.xyz'; .*'png'"),
        (".png", r"has no ending"),
    ],
)
def test_a_path_that_no_figure_can_have(cells, tmp_path, save, match):
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match=match):
        nk.pl.split(cells, save=tmp_path / save)
    assert [it.name for it in tmp_path.iterdir()] == ["there"]
    assert not plt.get_fignums()


def test_save_is_a_path(cells, tmp_path):
    with pytest.raises(TypeError, match="save=3 is a int"):
        nk.pl.split(cells, save=3)
    nk.pl.split(cells, save=str(tmp_path / "split.PNG"), dpi=30)
    assert [it.name for it in tmp_path.iterdir()] == ["split.PNG"]


@pytest.mark.parametrize("name", ["niches", "split", "uncertainty", "neighborhood", "composition", "abundance"])
def test_a_table_without_cells(cells, name):
    with pytest.raises(ValueError, match="has 0 cells"):
        getattr(nk.pl, name)(cells[:0].copy(), **NEEDED.get(name, {}))


def test_a_notebook_shows_a_figure_once(cells, monkeypatch):
    """What is returned is shown by the notebook; the inline backend shows, besides, what is left open."""
    kept = nk.pl.split(cells)
    assert plt.fignum_exists(kept.number)
    monkeypatch.setattr(mpl, "get_backend", lambda: "module://matplotlib_inline.backend_inline")
    shown = nk.pl.split(cells)
    assert not plt.fignum_exists(shown.number)


def test_styles_of_ones_own_are_left_alone(cells):
    before = dict(mpl.rcParams)
    nk.pl.niches(cells)
    assert dict(mpl.rcParams) == before


def test_names_are_no_formulas(cells, tmp_path):
    cells.obs["niche"] = cells.obs["niche"].cat.rename_categories(lambda name: f"$$ {name} $")
    nk.pl.niches(cells, keys=["niche"], reference="niche", save=tmp_path / "niches.png")
    assert (tmp_path / "niches.png").stat().st_size > 0


def test_plots_load_neither_torch_nor_the_models():
    code = "import sys, nichekd.pl as pl; [getattr(pl, name) for name in pl.__all__]; " + "; ".join(
        f"assert {name!r} not in sys.modules" for name in ("torch", "matplotlib", "nichekd.tl._distill", "spatialdata")
    )
    subprocess.run([sys.executable, "-c", code], check=True)
