from __future__ import annotations

import time
import warnings

import anndata as ad
import numpy as np
import pytest

import nichekd as nk
from nichekd.pp._alignment_qc import warn_if_misaligned
from nichekd.pp._shifts import TRANSFORMS, best_peak, draw_points, transform_px

pytestmark = pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning")

SIDE = 1000.1  # µm of the bundled section
# what takes cells back that were put through this
BACK = {name: name for name in TRANSFORMS} | {"rot90": "rot270", "rot270": "rot90"}


@pytest.fixture(scope="module")
def section():
    return nk.datasets.pancreas()


@pytest.fixture(scope="module")
def drawn():
    return nk.datasets.simulate(600, K=2, seed=1)


def moved(sdata, xy):
    """A copy whose cells are elsewhere."""
    from nichekd._resolve import working_copy

    other = working_copy(sdata, True)
    other["table"].obsm["spatial"] = xy
    return other


def whole(table):
    return table.set_index("tile").loc["global"]


def test_aligned_cells(section):
    start = time.process_time()
    table = nk.pp.alignment_qc(section, transforms=False)
    assert time.process_time() - start < 6
    row = whole(table)
    assert row["transform"] == "identity"
    assert row["shift"] < 0.5
    assert row["confidence"] > 0.5
    assert len(table) == 17
    assert table.loc[1:, "n_cells"].min() >= 20


@pytest.mark.parametrize("shift", [(2.0, 0.0), (-3.3, 4.4), (0.0, 20.0), (35.0, -35.7), (-50.0, 7.0)])
def test_planted_shifts(section, shift):
    table = nk.pp.alignment_qc(moved(section, section["table"].obsm["spatial"] - shift), transforms=False, grid=(2, 2))
    found = whole(table)[["dx", "dy"]].to_numpy(float)
    assert np.hypot(*(found - shift)) < 1
    local = table.loc[1:, ["dx", "dy"]].to_numpy(float)
    assert np.median(np.hypot(*(local - shift).T)) < 1


@pytest.mark.parametrize("planted", ["rot90", "rot180", "rot270", "flip", "flip_rot90"])
def test_turned_and_mirrored_cells(section, planted):
    xy = transform_px(section["table"].obsm["spatial"], np.array([SIDE, SIDE]), planted)
    row = whole(nk.pp.alignment_qc(moved(section, xy), grid=(2, 2)))
    assert row["transform"] == BACK[planted]
    assert row["shift"] < 1


def test_turned_and_shifted(section):
    xy = transform_px(section["table"].obsm["spatial"] - (12.0, -7.0), np.array([SIDE, SIDE]), "rot90")
    row = whole(nk.pp.alignment_qc(moved(section, xy), grid=(2, 2)))
    assert row["transform"] == "rot270"
    assert (row["dx"], row["dy"]) == pytest.approx((12, -7), abs=1)


def test_in_the_frame_of_the_cells(drawn):
    """An image that lies mirrored: a shift of the cells is found as it was made."""
    pixels = np.asarray(drawn["he"].data)[:, :, ::-1]
    width = pixels.shape[2] * 0.25
    xy = drawn["table"].obsm["spatial"]
    sdata = nk.io.paired(ad.AnnData(obsm={"spatial": xy}), pixels, affine=[[-0.25, 0, width], [0, 0.25, 0]])
    row = whole(nk.pp.alignment_qc(moved(sdata, xy - (9.0, 4.0)), transforms=False))
    assert (row["dx"], row["dy"]) == pytest.approx((9, 4), abs=1)


def test_cells_that_have_nothing_to_do_with_the_image(drawn):
    xy = np.random.default_rng(0).uniform(20, 300, (600, 2))
    row = whole(nk.pp.alignment_qc(moved(drawn, xy)))
    assert row["confidence"] < 0.25 or row["peak"] < 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert warn_if_misaligned(moved(drawn, xy)) is None


def test_hook_warns_beyond_five_um(drawn):
    xy = drawn["table"].obsm["spatial"]
    assert warn_if_misaligned(drawn) < 1
    assert warn_if_misaligned(moved(drawn, xy + (3.0, 0.0))) == pytest.approx(3, abs=1)
    with pytest.warns(UserWarning, match=r"8\.\d µm beside.*alignment_qc"):
        warn_if_misaligned(moved(drawn, xy + (0.0, 8.3)))
    width = drawn["he"].shape[2] * 0.25
    with pytest.warns(UserWarning, match="turned or mirrored, by 'flip'"):
        warn_if_misaligned(moved(drawn, np.c_[width - xy[:, 0], xy[:, 1]]))


def test_hook_leaves_what_it_cannot_tell(drawn):
    assert warn_if_misaligned(drawn["table"]) is None
    few = moved(drawn, drawn["table"].obsm["spatial"])
    few.tables["table"] = few["table"][:5].copy()
    assert warn_if_misaligned(few) is None


def test_hook_hides_no_mistakes(drawn, monkeypatch):
    two = moved(drawn, drawn["table"].obsm["spatial"])
    two.images["other"] = two["he"]
    assert warn_if_misaligned(two) is None, "none is named; whoever needs one says so"
    with pytest.raises(KeyError, match="dab"):
        warn_if_misaligned(two, image_key="dab")
    with pytest.raises(KeyError, match="cells2"):
        warn_if_misaligned(drawn, table_key="cells2")

    def broken(*args):
        raise ValueError("operands could not be broadcast together")

    monkeypatch.setattr("nichekd.pp._alignment_qc.tile_surfaces", broken)
    with pytest.raises(ValueError, match="broadcast"):
        warn_if_misaligned(drawn)


def test_record_survives_h5ad(drawn, tmp_path):
    table = nk.pp.alignment_qc(drawn, transforms=False)
    drawn["table"].write_h5ad(tmp_path / "a.h5ad")
    noted = ad.read_h5ad(tmp_path / "a.h5ad").uns["nichekd"]["alignment_qc"]
    assert noted["tiles"]["dx"] == pytest.approx(table["dx"].to_numpy())
    assert noted["transform"] == "identity"


def test_figure(drawn, tmp_path):
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    sdata = moved(drawn, drawn["table"].obsm["spatial"] + (6.0, 0.0))
    with pytest.raises(KeyError, match=r"nk\.pp\.alignment_qc"):
        nk.pl.alignment(moved(nk.datasets.simulate(50, K=2), sdata["table"].obsm["spatial"][:50]))
    table = nk.pp.alignment_qc(sdata)
    fig = nk.pl.alignment(sdata, save=tmp_path / "alignment.png")
    (arrows,) = [it for it in fig.axes[0].collections if it.get_gid() == "shifts"]
    assert len(arrows.U) == len(table) - 1
    assert np.median(arrows.U) == pytest.approx(-6, abs=1)
    assert "(-6" in fig.axes[0].get_title() or "(-5" in fig.axes[0].get_title()
    assert (tmp_path / "alignment.png").stat().st_size > 10_000
    plt.close("all")


@pytest.mark.parametrize("wrong", [{"max_shift_um": 0}, {"grid": (0, 3)}, {"mpp": 50}])
def test_wrong_arguments(drawn, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        nk.pp.alignment_qc(drawn, **wrong)


def test_too_few_cells_and_no_image(drawn):
    few = moved(drawn, drawn["table"].obsm["spatial"])
    few.tables["table"] = few["table"][:5].copy()
    with pytest.raises(ValueError, match=r"20 cells.*grid=\(1, 1\)"):
        nk.pp.alignment_qc(few)
    with pytest.raises(TypeError, match="no image"):
        nk.pp.alignment_qc(drawn["table"])


def test_points_by_hand():
    image = draw_points(np.array([[1.5, 0.5], [3.0, 2.25]]), 4)
    assert image[0, 1] == 1  # on the middle of a pixel
    assert image[1, 2:4] == pytest.approx([0.125, 0.125])
    assert image[2, 2:4] == pytest.approx([0.375, 0.375])
    assert image.sum() == pytest.approx(2)


def test_peak_by_hand():
    y, x = np.mgrid[-20:21, -20:21].astype(float)
    rho = 0.6 * np.exp(-((x - 3.3) ** 2 + (y + 5.8) ** 2) / 18) + 0.3 * np.exp(-((x + 14) ** 2 + (y - 14) ** 2) / 18)
    peak = best_peak(rho, 0.5)
    assert (peak.dx, peak.dy) == pytest.approx((1.65, -2.9), abs=0.05)
    assert peak.confidence == pytest.approx(0.5, abs=0.02)


def test_transforms_by_hand():
    """As numpy turns and mirrors an image of 3 × 2 pixels."""
    image = np.arange(6).reshape(2, 3)
    y, x = (it.ravel() + 0.5 for it in np.indices(image.shape))
    for name in TRANSFORMS:
        quarters = int(name[-3:].strip("rot_") or 0) // 90 if "rot" in name else 0
        turned = np.rot90(image[:, ::-1] if name.startswith("flip") else image, quarters)
        size = np.array(turned.shape[::-1])
        at = np.floor(transform_px(np.c_[x, y], size, name)).astype(int)
        assert turned[at[:, 1], at[:, 0]].tolist() == image.ravel().tolist(), name
