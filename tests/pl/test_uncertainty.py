import numpy as np
import pytest

import nichekd as nk


def test_entropy_alone(cells, panels):
    shown = panels(nk.pl.uncertainty(cells))
    ax = shown["How unsure the student is"]
    values = np.asarray(ax.collections[0].get_array())
    assert np.allclose(np.sort(values), np.sort(cells.obs["niche_entropy"]))
    order = np.argsort(cells.obs["niche_entropy"])
    assert np.allclose(ax.collections[0].get_offsets(), cells.obsm["spatial"][order])  # the unsure on top
    assert "How unlike the training tissue" not in shown


def test_with_a_score_of_novelty(cells, panels, tmp_path):
    cells.obs["niche_ood"] = np.arange(400) > 300
    shown = panels(nk.pl.uncertainty(cells, save=tmp_path / "maps.png", dpi=50))
    assert {"How unsure the student is", "How unlike the training tissue"} <= set(shown)
    assert (tmp_path / "maps.png").exists()


def test_a_slide_with_nothing_new_does_not_look_as_if_it_had(cells, panels):
    """A score has one colour on all slides: blue below 1, red above, and far out neither."""
    found = {}
    for top in (0.9, 3.0, 60.0):
        cells.obs["niche_ood"] = np.linspace(0, top, 400)
        fig = nk.pl.uncertainty(cells, keys="niche_ood")
        dots = panels(fig)["How unlike the training tissue"].collections[0]
        found[top] = dots.to_rgba([0.5, 0.9, 1.1, 3.0, 6.0, 60.0]).tolist()
        bar = dots.colorbar
        assert bar.extend == "max"
        assert 1 in bar.get_ticks()
    assert found[0.9] == found[3.0] == found[60.0]
    for red, _, blue, _ in found[3.0][:2]:
        assert blue > red
    for red, _, blue, _ in found[3.0][2:4]:
        assert red > blue
    assert found[3.0][4] == found[3.0][5], "capped"
    assert sum(found[3.0][4][:3]) > 0.8, "and not black"


def test_subset(cells, panels):
    shown = panels(nk.pl.uncertainty(cells, subset="test"))
    n_test = (cells.obs["split"] == "test").sum()
    assert len(shown["How unsure the student is"].collections[0].get_offsets()) == n_test


def test_missing_values_are_grey(cells, panels):
    cells.obs.loc["cell0", "niche_entropy"] = np.nan
    fig = nk.pl.uncertainty(cells)
    dots = panels(fig)["How unsure the student is"].collections[0]
    fig.canvas.draw()
    assert dots.get_facecolors()[0][:3] == pytest.approx([0xD3 / 255] * 3)


def test_bad_input(cells):
    with pytest.raises(KeyError, match=r"niche_ood.*nk\.tl\.predict_niches"):
        nk.pl.uncertainty(cells, keys="niche_ood")
    with pytest.raises(TypeError, match=r"category.*nk\.pl\.niches"):
        nk.pl.uncertainty(cells, keys=["niche"])
    cells.obs["niche_entropy"] = np.nan
    with pytest.raises(ValueError, match="no value for any"):
        nk.pl.uncertainty(cells)
