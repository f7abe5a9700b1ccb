import numpy as np
import pytest

import nichekd as nk


def pictures(fig):
    """Crops row by row."""
    return [ax.images[0].get_array() for ax in fig.axes if ax.images]


@pytest.fixture
def sure(slide):
    """One cell of each niche that is surest by far, away from the edge."""
    adata = slide["table"]
    xy, niche = adata.obsm["spatial"], adata.obs["niche"].cat.codes.to_numpy()
    inner = (np.abs(xy - 100) < 60).all(axis=1)
    chosen = [int(np.flatnonzero(inner & (niche == k))[-1]) for k in range(4)]
    adata.obsm["student_proba"][chosen, range(4)] = 0.99
    return chosen


def test_surest_cell_of_each_niche(slide, sure):
    """Each crop is what lies around the cell: [c - 16, c + 16) around its pixel."""
    shown = pictures(nk.pl.crops(slide, n_crops=1, crop_px=32))
    image = slide["he"].to_numpy()
    pixel = np.floor(slide["table"].obsm["spatial"][sure] / 0.5).astype(int)
    expected = [image[:, y - 16 : y + 16, x - 16 : x + 16].transpose(1, 2, 0) for x, y in pixel]
    assert all(np.array_equal(one, other) for one, other in zip(shown, expected, strict=True))


def test_rows_have_names_colors_and_probabilities(slide, sure):
    from matplotlib.colors import to_rgba

    fig = nk.pl.crops(slide, n_crops=2, crop_px=32)
    rows = [ax for ax in fig.axes if ax.get_ylabel()]
    assert [ax.get_ylabel() for ax in rows] == ["0", "1", "2", "3"]
    colors = slide["table"].uns["niche_colors"]
    assert [ax.spines["left"].get_edgecolor() for ax in rows] == [to_rgba(color) for color in colors]
    assert [ax.texts[0].get_text() for ax in rows] == ["0.99"] * 4


def test_niches_of_another_student_are_ranked_by_its_own_probabilities(slide, sure):
    adata = slide["table"]
    adata.obs["niche_old"] = adata.obs["niche"]
    adata.obsm["old_proba"] = np.full((400, 4), 0.3)
    fig = nk.pl.crops(slide, key="niche_old", n_crops=1, crop_px=32)
    assert [ax.texts[0].get_text() for ax in fig.axes if ax.get_ylabel()] == ["0.30"] * 4
    fig = nk.pl.crops(slide, key="niche_old", proba_key="student_proba", n_crops=1, crop_px=32)
    assert [ax.texts[0].get_text() for ax in fig.axes if ax.get_ylabel()] == ["0.99"] * 4


def test_crops_of_a_niche_do_not_overlap(slide, monkeypatch):
    from nichekd.pl import _crops

    taken = []
    real = _crops.crops_at
    monkeypatch.setattr(
        _crops, "crops_at", lambda image, cells, px: taken.append(image.xy_px[cells]) or real(image, cells, px)
    )
    nk.pl.crops(slide, n_crops=3, crop_px=40)
    (xy,) = taken
    for row in xy.reshape(4, 3, 2):
        apart = np.abs(row[:, None] - row[None]).max(axis=-1) + 1e9 * np.eye(3)
        assert apart.min() >= 40


def test_beyond_the_slide_is_white(slide):
    """The only cell shown lies 3 µm from the corner."""
    corner = slide["table"].obsm["spatial"].sum(axis=1).argmin()
    obs = slide["table"].obs
    obs["niche"] = obs["niche"].where(np.arange(400) == corner)
    (picture,) = pictures(nk.pl.crops(slide, n_crops=1, crop_px=64))
    x, y = np.floor(slide["table"].obsm["spatial"][corner] / 0.5).astype(int)
    assert (picture[: 32 - y] == 255).all()
    assert (picture[:, : 32 - x] == 255).all()
    assert (picture[32 - y :, 32 - x :] != 255).all()


def test_a_niche_with_fewer_cells_than_crops(slide, tmp_path):
    obs = slide["table"].obs
    obs["niche"] = obs["niche"].where((obs["niche"] != "2") | (np.cumsum(obs["niche"] == "2") <= 2))
    fig = nk.pl.crops(slide, n_crops=4, crop_px=32, save=tmp_path / "crops.png", dpi=50)
    assert len(pictures(fig)) == 4 + 4 + 2 + 4
    assert (tmp_path / "crops.png").exists()


def test_a_niche_outside_the_subset_is_not_shown(slide):
    fig = nk.pl.crops(slide, n_crops=1, crop_px=32, subset="test")
    names = [ax.get_ylabel() for ax in fig.axes if ax.get_ylabel()]
    niche, test = slide["table"].obs["niche"], slide["table"].obs["split"] == "test"
    assert names == sorted(niche[test].unique())


def test_bad_input(slide, cells):
    with pytest.raises(TypeError, match=r"AnnData.*nk\.io\.paired"):
        nk.pl.crops(cells)
    with pytest.raises(ValueError, match="n_crops=0"):
        nk.pl.crops(slide, n_crops=0)
    with pytest.raises(ValueError, match=r"n_crops=1\.5; it has to be a whole number"):
        nk.pl.crops(slide, n_crops=1.5)
    with pytest.raises(ValueError, match=r"crop_px=1\.5; it has to be a whole number"):
        nk.pl.crops(slide, crop_px=1.5)
    with pytest.raises(ValueError, match=r"crop_px=100000: .* GiB.*Choose a smaller"):
        nk.pl.crops(slide, crop_px=10**5)
    with pytest.raises(KeyError, match=r"niche_other.*is missing"):
        nk.pl.crops(slide, key="niche_other")
    with pytest.raises(KeyError, match=r"histology_leiden_proba.*is missing"):
        nk.pl.crops(slide, key="niche_histology_leiden")
    with pytest.raises(ValueError, match=r"\(400, 4\).*5 niches"):
        nk.pl.crops(slide, key="niche_histology_leiden", proba_key="student_proba")
    slide["table"].obs["niche"] = slide["table"].obs["niche"].where(slide["table"].obs["split"] == "train")
    with pytest.raises(ValueError, match="has a niche"):
        nk.pl.crops(slide, subset="test")
    del slide["table"].obsm["student_proba"]
    with pytest.raises(KeyError, match=r"student_proba.*nk\.tl\.distill"):
        nk.pl.crops(slide)
