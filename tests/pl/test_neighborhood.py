import numpy as np
import pytest
from matplotlib.patches import Circle
from scipy.sparse import csr_array

import nichekd as nk

TRAIN, TEST, BUFFER = 390, 145, 101  # cells of each side


def circle(ax):
    (found,) = [patch for patch in ax.patches if isinstance(patch, Circle)]
    return found


def neighbors(ax):
    """Places of the cells that count: drawn after the paler ones and before the centre."""
    _, near, centre = ax.collections
    return near.get_offsets(), centre.get_offsets()[0]


@pytest.fixture
def sides(cells):
    assert cells.obs["split"].iloc[[TRAIN, TEST, BUFFER]].tolist() == ["train", "test", "buffer"]


@pytest.mark.usefixtures("sides")
@pytest.mark.parametrize("index", [TRAIN, TEST])
def test_all_cells_of_its_side_within_the_radius(slide, index):
    fig = nk.pl.neighborhood(slide, cell=index, crop_px=64)
    whole, close, crop = fig.axes
    xy, split = slide["table"].obsm["spatial"], slide["table"].obs["split"].to_numpy()
    expected = (np.hypot(*(xy - xy[index]).T) <= 25) & (split == split[index])
    expected[index] = False
    near, centre = neighbors(close)
    assert np.allclose(near, xy[expected])
    assert np.allclose(centre, xy[index])
    assert close.get_title() == f"Neighborhood: {expected.sum()} neighbors within 25 µm"
    for ax in (whole, close):
        assert circle(ax).get_radius() == 25
        assert circle(ax).get_center() == pytest.approx(xy[index])
    assert crop.get_title() == "Crop: 64 px = 32 µm"
    assert crop.images[0].get_array().shape == (64, 64, 3)


@pytest.mark.usefixtures("sides")
def test_a_cell_of_the_buffer_has_none(slide):
    close = nk.pl.neighborhood(slide, cell=BUFFER).axes[1]
    assert close.get_title() == "Neighborhood: 0 neighbors within 25 µm"


def test_the_graph_has_the_last_word(cells):
    cells.obsp["spatial_connectivities"] = csr_array(([1.0, 1.0], ([7, 7], [8, 9])), shape=(400, 400))
    near, _ = neighbors(nk.pl.neighborhood(cells, cell="cell7").axes[1])
    assert np.allclose(near, cells.obsm["spatial"][[8, 9]])


def test_the_border_of_the_crop_in_micrometres(slide):
    close = nk.pl.neighborhood(slide, cell=TRAIN, crop_px=64).axes[1]
    border = np.array(close.lines[0].get_data())
    pixel = np.floor(slide["table"].obsm["spatial"][TRAIN] / 0.5)
    assert np.allclose(border.min(axis=1), (pixel - 32) * 0.5)
    assert np.allclose(border.max(axis=1), (pixel + 32) * 0.5)


def test_neighbors_by_type(slide, tmp_path):
    from matplotlib.colors import to_rgba_array

    fig = nk.pl.neighborhood(slide, cell=TRAIN, color_key="niche", save=tmp_path / "cell.png", dpi=50)
    adata = slide["table"]
    near, _ = neighbors(fig.axes[1])
    index = [int(np.flatnonzero((adata.obsm["spatial"] == place).all(axis=1))[0]) for place in near]
    expected = to_rgba_array(adata.uns["niche_colors"])[adata.obs["niche"].cat.codes.to_numpy()[index]]
    assert np.allclose(fig.axes[1].collections[1].get_facecolors(), expected)
    assert fig.legends[0].get_title().get_text() == "niche"
    assert (tmp_path / "cell.png").exists()


def test_a_table_alone_has_two_panels(cells):
    assert len(nk.pl.neighborhood(cells, cell=0).axes) == 2


def test_no_split(cells):
    del cells.obs["split"]
    near, _ = neighbors(nk.pl.neighborhood(cells, cell=TEST).axes[1])
    assert len(near) == (np.hypot(*(cells.obsm["spatial"] - cells.obsm["spatial"][TEST]).T) <= 25).sum() - 1


@pytest.mark.parametrize("crop_px", [0, -5, 1.5])
def test_a_crop_of_no_size(slide, crop_px):
    with pytest.raises(ValueError, match=f"crop_px={crop_px}; it has to be a whole number, at least 1"):
        nk.pl.neighborhood(slide, cell=TRAIN, crop_px=crop_px)


def test_a_crop_that_no_memory_holds(slide):
    import matplotlib.pyplot as plt

    with pytest.raises(ValueError, match=r"crop_px=100000: .* 27\.9 GiB.*Choose a smaller"):
        nk.pl.neighborhood(slide, cell=TRAIN, crop_px=10**5)
    assert not plt.get_fignums()


@pytest.mark.filterwarnings("ignore:Observation names are not unique:UserWarning")
def test_a_name_of_several_cells(cells):
    cells.obs_names = ["c" if i in (3, 7) else f"cell{i}" for i in range(400)]
    with pytest.raises(
        ValueError, match="2 cells are called 'c'.* position of one, such as 3, .*obs_names_make_unique"
    ):
        nk.pl.neighborhood(cells, cell="c")
    assert nk.pl.neighborhood(cells, cell="cell4")


def test_bad_input(cells):
    with pytest.raises(KeyError, match="no cell 'cell400'.*'cell0' to 'cell399'"):
        nk.pl.neighborhood(cells, cell="cell400")
    with pytest.raises(ValueError, match="cell=400, and there are 400 cells.* from 0 to 399, or from -400 to -1"):
        nk.pl.neighborhood(cells, cell=400)
    with pytest.raises(TypeError, match="1.5 is a float"):
        nk.pl.neighborhood(cells, cell=1.5)
    with pytest.raises(TypeError, match="True is a bool"):
        nk.pl.neighborhood(cells, cell=True)
    with pytest.raises(KeyError, match=r"obs\['region'\] is missing"):
        nk.pl.neighborhood(cells, cell=0, color_key="region")
    del cells.uns["nichekd"]["radius"]
    with pytest.raises(KeyError, match=r"no radius.*nk\.pp\.neighborhoods"):
        nk.pl.neighborhood(cells, cell=0)
