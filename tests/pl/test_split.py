import matplotlib.pyplot as plt
import numpy as np
import pytest

import nichekd as nk


def test_train_test_and_buffer(cells):
    fig = nk.pl.split(cells)
    (ax,) = fig.axes
    counts = cells.obs["split"].value_counts()
    drawn = {dots.get_label(): len(dots.get_offsets()) for dots in ax.collections}
    assert drawn == counts.to_dict()
    colors = {tuple(dots.get_facecolors()[0]) for dots in ax.collections}
    assert len(colors) == 3
    texts = [text.get_text() for text in fig.legends[0].get_texts()]
    assert texts == [f"{name}: {counts[name]} cells" for name in ("train", "test", "buffer")]


def test_the_test_strip_is_framed(cells):
    (ax,) = nk.pl.split(cells).axes
    (box,) = [patch for patch in ax.patches if patch.get_gid() == "test"]
    y = cells.obsm["spatial"][cells.obs["split"] == "test", 1]
    assert y.min() - 10 < box.get_y() < y.min()
    assert y.max() < box.get_y() + box.get_height() < y.max() + 10


def test_a_vertical_strip_and_a_block(cells):
    x, y = cells.obsm["spatial"].T
    for inside in (x > 150, (x > 150) & (y > 150)):
        cells.obs["split"] = np.where(inside, "test", "train")
        (ax,) = nk.pl.split(cells).axes
        (box,) = [patch for patch in ax.patches if patch.get_gid() == "test"]
        left, top = box.get_xy()
        assert x[inside].min() - 10 < left < x[inside].min()
        assert y[inside].min() - 10 < top < y[inside].min()


def test_no_dot_of_the_test_cells_is_cut(cells):
    """Spots on a grid touch each other."""
    cells.obsm["spatial"] = np.floor(cells.obsm["spatial"] / 10) * 10
    inside = cells.obsm["spatial"][:, 1] == 50
    cells.obs["split"] = np.where(inside, "test", "train")
    (ax,) = nk.pl.split(cells).axes
    (box,) = [patch for patch in ax.patches if patch.get_gid() == "test"]
    assert (box.get_y(), box.get_height()) == pytest.approx((45, 10))


def test_nothing_lies_over_the_cells(cells):
    fig = nk.pl.split(cells)
    fig.canvas.draw()
    (ax,) = fig.axes
    (bar,) = ax.artists
    found = bar.get_window_extent(fig.canvas.get_renderer())
    assert 0 <= found.y0 < found.y1 <= ax.get_window_extent().y0 + 1


def test_in_a_panel_of_ones_own(cells, tmp_path):
    fig, axes = plt.subplots(1, 2)
    assert nk.pl.split(cells, ax=axes[1], save=tmp_path / "split.pdf") is fig
    assert not axes[0].collections
    assert axes[1].collections
    assert (tmp_path / "split.pdf").exists()


def test_no_split(cells):
    del cells.obs["split"]
    with pytest.raises(KeyError, match=r"'split'.*nk\.pp\.split"):
        nk.pl.split(cells)


def test_other_words(cells):
    cells.obs["split"] = "fold1"
    with pytest.raises(ValueError, match=r"'fold1'.*nk\.pp\.split"):
        nk.pl.split(cells)
