import logging

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import nichekd as nk

RED, BLUE = (200, 40, 60), (60, 40, 200)  # left and right half of the slide
TITLES = ["H&E", "Teacher (gene expression)", "Student (H&E only)", "Histology-Leiden"]


def dots(ax):
    return ax.collections[0]


def outlines(ax):
    return [patch for patch in ax.patches if patch.get_gid() == "test"]


def test_slide_then_reference_then_methods(slide, panels):
    fig = nk.pl.niches(slide)
    assert isinstance(fig, Figure)
    assert list(panels(fig)) == TITLES


def test_the_slide_lies_under_its_cells(slide, panels, color_at):
    ax = panels(nk.pl.niches(slide))["H&E"]
    assert color_at(ax, 50, 150) == pytest.approx(RED, abs=6)
    assert color_at(ax, 150, 150) == pytest.approx(BLUE, abs=6)


@pytest.mark.parametrize(
    "to_um",
    [
        [[-0.5, 0, 200], [0, 0.5, 0], [0, 0, 1]],  # mirrored
        [[0, -0.5, 200], [0.5, 0, 0], [0, 0, 1]],  # a quarter turn
        [[0.5 * 0.96, -0.5 * 0.28, 30], [0.5 * 0.28, 0.5 * 0.96, -25], [0, 0, 1]],  # a small turn
    ],
)
def test_a_turned_or_mirrored_slide_lies_under_its_cells(cells, with_slide, to_um, panels, color_at):
    to_um = np.array(to_um, dtype=float)
    inner = cells[(np.abs(cells.obsm["spatial"] - 100) < 60).all(axis=1)].copy()
    ax = panels(nk.pl.niches(with_slide(inner, to_um)))["H&E"]
    assert color_at(ax, 60, 140) == pytest.approx(RED, abs=6)
    assert color_at(ax, 140, 140) == pytest.approx(BLUE, abs=6)
    assert color_at(ax, 90, 120) == pytest.approx(RED, abs=6)
    assert color_at(ax, 110, 60) == pytest.approx(BLUE, abs=6)


def test_a_pyramid_shows_the_same(cells, with_slide, panels, color_at):
    ax = panels(nk.pl.niches(with_slide(cells, scale_factors=[2, 2])))["H&E"]
    assert color_at(ax, 90, 150) == pytest.approx(RED, abs=6)
    assert color_at(ax, 110, 150) == pytest.approx(BLUE, abs=6)


def test_a_large_slide_is_not_loaded_whole():
    """432 MB of pixels, of which a few chunks at a time are held."""
    import tracemalloc

    import dask.array as da
    from anndata import AnnData

    xy = np.random.default_rng(0).uniform(100, 2900, (50, 2))
    obs = pd.DataFrame({"niche": pd.Categorical(["0", "1"] * 25)}, index=[str(i) for i in range(50)])
    pixels = da.full((3, 12_000, 12_000), 99, dtype=np.uint8, chunks=(3, 1000, 1000))
    sdata = nk.io.paired(AnnData(obs=obs, obsm={"spatial": xy}), pixels, mpp=0.25)
    tracemalloc.start()
    fig = nk.pl.niches(sdata)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6
    (thumbnail,) = fig.axes[0].images
    assert max(thumbnail.get_array().shape) < 3000
    assert (thumbnail.get_array() == 99).all()


def test_a_table_alone_has_no_slide(cells, caplog, panels):
    with caplog.at_level(logging.INFO, "nichekd"):
        fig = nk.pl.niches(cells)
    assert list(panels(fig)) == TITLES[1:]
    assert "the H&E is left out" in caplog.text


def test_a_spatialdata_without_images_has_no_slide(slide, panels):
    del slide.images["he"]
    assert "H&E" not in panels(nk.pl.niches(slide))


def test_test_strip_is_framed_in_every_panel(slide, panels):
    shown = panels(nk.pl.niches(slide))
    y = slide["table"].obsm["spatial"][slide["table"].obs["split"] == "test", 1]
    for ax in shown.values():
        (box,) = outlines(ax)
        assert y.min() - 10 < box.get_y() < y.min()
        assert y.max() < box.get_y() + box.get_height() < y.max() + 10
        assert box.get_width() > 190


def test_the_word_test_stands_beside_the_panel(slide):
    fig = nk.pl.niches(slide)
    fig.canvas.draw()
    (word,) = [text for ax in fig.axes for text in ax.texts if text.get_text() == "test"]
    assert 0 <= word.get_window_extent().x0
    assert word.get_window_extent().x1 < word.axes.get_window_extent().x0


def test_test_cells_that_no_box_holds_stand_out(cells, panels):
    rng = np.random.default_rng(0)
    cells.obs["split"] = rng.choice(["train", "test"], 400)
    for ax in panels(nk.pl.niches(cells)).values():
        assert not outlines(ax)
        alpha = dots(ax).get_alpha()
        assert (alpha[(cells.obs["split"] == "test").to_numpy()] == 1).all()
        assert (alpha[(cells.obs["split"] == "train").to_numpy()] < 0.5).all()


def test_no_split_no_frame(cells, panels):
    del cells.obs["split"]
    assert not any(outlines(ax) for ax in panels(nk.pl.niches(cells)).values())


def test_subset_shows_its_cells_alone(slide, panels):
    shown = panels(nk.pl.niches(slide, subset="test"))
    test = (slide["table"].obs["split"] == "test").to_numpy()
    offsets = dots(shown["Student (H&E only)"]).get_offsets()
    assert np.allclose(offsets, slide["table"].obsm["spatial"][test])
    assert shown["H&E"].get_ylim()[0] < 110


def test_y_points_down_and_scales_are_equal(cells, panels):
    for ax in panels(nk.pl.niches(cells)).values():
        bottom, top = ax.get_ylim()
        assert bottom > top
        assert ax.get_aspect() == 1


def test_scale_bar_is_in_micrometres(cells, panels):
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

    first, *others = panels(nk.pl.niches(cells)).values()
    (bar,) = [it for it in first.artists if isinstance(it, AnchoredSizeBar)]
    assert bar.txt_label.get_text() == "20 µm"
    assert bar.size_bar.get_children()[0].get_width() == 20
    assert not any(ax.artists for ax in others)


def test_only_a_student_on_a_new_slide(cells, panels, legend):
    cells.obs = cells.obs[["niche"]]
    fig = nk.pl.niches(cells)
    assert list(panels(fig)) == ["Student (H&E only)"]
    assert list(legend(fig)) == ["0", "1", "2", "3"]


def test_columns_titles_and_file(cells, tmp_path, panels):
    fig = nk.pl.niches(
        cells, keys=["niche", "niche_teacher"], titles={"niche": "Ours"}, ncols=1, save=tmp_path / "niches.png", dpi=50
    )
    assert list(panels(fig)) == ["Ours", "Teacher (gene expression)"]
    assert fig.axes[0].get_gridspec().get_geometry() == (2, 1)
    assert (tmp_path / "niches.png").stat().st_size > 1000


def test_a_virtual_slide_is_called_so(slide, panels):
    slide["table"].uns["image_note"] = "The H&E is virtual: rendered from stains."
    assert "H&E (virtual)" in panels(nk.pl.niches(slide))


def test_bad_input(cells, slide):
    with pytest.raises(KeyError, match=r"niche_histology_nolan.*nk\.tl\.histology_nolan"):
        nk.pl.niches(cells, keys=["niche_histology_nolan"])
    with pytest.raises(KeyError, match=r"no image 'dapi'.*'he'"):
        nk.pl.niches(slide, image_key="dapi")
    with pytest.raises(ValueError, match="ncols=0"):
        nk.pl.niches(cells, ncols=0)
    with pytest.raises(ValueError, match=r"ncols=1\.5; it has to be a whole number"):
        nk.pl.niches(cells, ncols=1.5)
    with pytest.raises(ValueError, match="no cell 'dev'"):
        nk.pl.niches(cells, subset="dev")
    cells.obs = cells.obs[["split"]]
    with pytest.raises(KeyError, match=r"no column of niches.*nk\.tl\.distill"):
        nk.pl.niches(cells)
