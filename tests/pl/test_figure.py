import subprocess
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt

import nichekd as nk


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
