import numpy as np
import pytest
from matplotlib.quiver import QuiverKey

import nichekd as nk


@pytest.fixture(params=[0.25, 4.0], ids=["tall", "wide"])
def aligned(cells, with_slide, request):
    """A strip of cells, with a shift as of ``nk.pp.alignment_qc``."""
    near = cells.obsm["spatial"][:, 0 if request.param < 1 else 1] < 50
    sdata = with_slide(cells[near].copy())
    middle = sdata["table"].obsm["spatial"].mean(axis=0)
    tiles = {"tile": np.array(["global", "0-0"])} | {
        name: np.full(2, value)
        for name, value in [("x", middle[0]), ("y", middle[1]), ("dx", -0.04), ("dy", 0.2), ("confidence", 0.9)]
    }
    found = {"image_key": "he", "transform": "identity", "tiles": tiles | {"peak": np.ones(2)}}
    sdata["table"].uns["nichekd"]["alignment_qc"] = found
    return sdata


def test_nothing_is_cut_off_and_nothing_lies_over_the_cells(aligned):
    fig = nk.pl.alignment(aligned)
    fig.canvas.draw()
    whole, close = fig.axes
    (key,) = [it for it in whole.get_children() if isinstance(it, QuiverKey)]
    legend = close.get_legend()
    for part in (whole.title, close.title, key.text, legend):
        box = part.get_window_extent(fig.canvas.get_renderer())
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= fig.bbox.x1
        assert box.y1 <= fig.bbox.y1
    assert key.text.get_window_extent().y1 <= whole.get_window_extent().y0
    assert legend.get_window_extent().y1 <= close.get_window_extent().y0 + 1


def test_cells_are_seen_beneath_where_they_were_moved(aligned):
    close = nk.pl.alignment(aligned).axes[1]
    before, after = close.collections
    assert len(before.get_offsets()) == len(after.get_offsets()) > 0
    assert not len(before.get_facecolors()), "rings"
    assert before.get_sizes()[0] > 2 * after.get_sizes()[0]


def test_a_zero_has_no_sign(aligned):
    titles = [ax.get_title() for ax in nk.pl.alignment(aligned).axes]
    assert titles == ["Cells to nuclei\n(0.0, 0.2) µm, confidence 0.90", "Tile 0-0: (0.0, 0.2) µm"]
