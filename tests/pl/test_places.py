"""Tables of several sections: each cell of a map in a place of its own."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import nichekd as nk

N = 60


def several(corners):
    """Sections of one shape, 100 by 40 µm, at these corners; the test cells are those of the left ends."""
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 1, (N, 2)) * (100, 40)
    xy[:2] = (0, 0), (100, 40)
    names = [f"s{i}" for i in range(len(corners))]
    obs = pd.DataFrame(
        {
            "slide": np.repeat(names, N),
            "niche": pd.Categorical(np.tile(np.where(xy[:, 0] > 50, "1", "0"), len(corners))),
            "niche_entropy": np.tile(xy[:, 0] / 100, len(corners)),
        },
        index=[str(i) for i in range(N * len(corners))],
    )
    adata = AnnData(obs=obs, obsm={"spatial": np.concatenate([xy + corner for corner in corners])})
    nk.pp.neighborhoods(adata, radius=20, library_key="slide")
    return adata


def drawn(fig):
    return np.asarray(fig.axes[0].collections[0].get_offsets())


@pytest.mark.parametrize("n", [2, 3, 5])
def test_sections_on_top_of_each_other_are_moved_apart(n):
    adata = several([(0, 0)] * n)
    xy = drawn(nk.pl.niches(adata))
    boxes = [(part.min(axis=0), part.max(axis=0)) for part in np.split(xy, n)]
    for i, (low, high) in enumerate(boxes):
        assert high - low == pytest.approx((100, 40)), "a section keeps its shape"
        for other_low, other_high in boxes[:i]:
            assert (low > other_high).any() or (other_low > high).any()


def test_those_that_lie_apart_stay_where_they_are():
    adata = several([(0, 0), (300, 20)])
    assert np.array_equal(drawn(nk.pl.niches(adata)), adata.obsm["spatial"].astype(np.float64))


def test_so_do_sections_of_which_one_is_shown():
    adata = several([(0, 0), (0, 0)])
    adata.obs["split"] = np.where(adata.obs["slide"] == "s0", "train", "test")
    assert np.array_equal(drawn(nk.pl.niches(adata, subset="test")), adata.obsm["spatial"][N:])


def test_all_maps_do_so():
    adata = several([(0, 0), (0, 0)])
    assert len(np.unique(drawn(nk.pl.uncertainty(adata, keys="niche_entropy")), axis=0)) == 2 * N
    del adata.obsp["spatial_connectivities"]
    nk.pp.split(adata, crop_px=0, library_key="slide")
    parts = [np.asarray(found.get_offsets()) for found in nk.pl.split(adata).axes[0].collections]
    assert len(np.unique(np.concatenate(parts), axis=0)) == 2 * N


@pytest.mark.parametrize("corner", [(0, 0), (300, 25)])
def test_each_section_has_its_own_frame(corner):
    adata = several([(0, 0), corner])
    adata.obs["split"] = np.where(adata.obsm["spatial"][:, 1] > np.repeat([30, corner[1] + 10], N), "test", "train")
    fig = nk.pl.niches(adata)
    boxes = [patch.get_bbox() for patch in fig.axes[0].patches if patch.get_gid() == "test"]
    assert len(boxes) == 2
    for box, xy, is_test in zip(
        boxes, np.split(drawn(fig), 2), np.split((adata.obs["split"] == "test").to_numpy(), 2), strict=True
    ):
        inside = (xy > (box.x0, box.y0)).all(axis=1) & (xy < (box.x1, box.y1)).all(axis=1)
        assert inside[is_test].all()
        assert inside[~is_test].mean() < 0.2
        assert box.width < 140


def test_sections_on_one_image_stay_on_it(tmp_path):
    adata = several([(0, 0), (60, 30)])  # their boxes overlap
    sdata = nk.io.paired(adata, np.full((200, 400, 3), 200, dtype=np.uint8), mpp=0.5)
    fig = nk.pl.niches(sdata)
    assert [ax.get_title() for ax in fig.axes] == ["H&E", "Student (H&E only)"]
    assert np.array_equal(np.asarray(fig.axes[1].collections[0].get_offsets()), adata.obsm["spatial"])
