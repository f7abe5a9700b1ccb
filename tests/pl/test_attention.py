from __future__ import annotations

import numpy as np
import pytest

import nichekd as nk


@pytest.fixture
def attended(cells):
    cells.obs["attention"] = np.random.default_rng(0).lognormal(size=400).astype(np.float32)
    cells.obs["slide"] = np.where(np.arange(400) < 200, "one", "two")
    return cells


def test_a_panel_a_slide_with_one_scale(attended, panels, tmp_path):
    fig = nk.pl.attention(attended, library_key="slide", save=tmp_path / "maps.png", dpi=50)
    shown = panels(fig)
    assert {"one", "two"} <= set(shown)
    values = [np.asarray(shown[name].collections[0].get_array()) for name in ("one", "two")]
    assert [len(it) for it in values] == [200, 200]
    assert all(np.all(np.diff(it) >= 0) for it in values), "what counts most on top"
    norms = {(shown[name].collections[0].norm.vmin, shown[name].collections[0].norm.vmax) for name in ("one", "two")}
    assert len(norms) == 1
    assert (tmp_path / "maps.png").exists()
    bar = fig.axes[-1].yaxis
    assert {tick.label1.get_text() for tick in bar.get_major_ticks()} <= {
        "0.1",
        "0.2",
        "0.5",
        "1",
        "2",
        "5",
        "10",
        "20",
    }
    assert not [text for text in bar.get_minorticklabels() if text.get_text()], "no formula where a number should be"


def test_one_slide_over_its_image(attended, with_slide, panels):
    shown = panels(nk.pl.attention(with_slide(attended)))
    assert len(shown["Attention"].images) == 1
    assert len(shown["Attention"].collections[0].get_offsets()) == 400
    (name,) = set(panels(nk.pl.attention(attended, library_key="slide", libraries="two"))) & {"one", "two"}
    assert name == "two"


def test_bad_input(attended):
    with pytest.raises(KeyError, match=r"obs\['risk'\].*nk\.tl\.predict_slides"):
        nk.pl.attention(attended, key="risk")
    with pytest.raises(TypeError, match="has to be numeric"):
        nk.pl.attention(attended, key="niche")
    with pytest.raises(KeyError, match=r"no slides \['three'\]; it has \['one', 'two'\]"):
        nk.pl.attention(attended, library_key="slide", libraries=["three"])
    with pytest.raises(ValueError, match=r"libraries=\[\] names no slide\. Name some of \['one', 'two'\]"):
        nk.pl.attention(attended, library_key="slide", libraries=[])
    with pytest.raises(KeyError, match="without a library_key="):
        nk.pl.attention(attended, libraries="one")
    attended.obs["attention"] = 0.0
    with pytest.raises(ValueError, match="0 values above 0"):
        nk.pl.attention(attended)
