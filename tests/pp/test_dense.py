from __future__ import annotations

import anndata as ad
import dask.array as da
import numpy as np
import pytest
import torch
from torch import nn

import nichekd as nk
from nichekd.pp._crops import CropReader
from nichekd.pp._dense import WINDOW, DensePlan
from nichekd.pp._feature_store import FeatureStore

HEIGHT, WIDTH, MPP = 150, 230, 0.5


class PixelMap(nn.Module):
    """A feature map that is the tile itself, and its mean colour."""

    def forward_features(self, x):
        return x

    def forward_head(self, x):
        return x.mean(dim=(2, 3))

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def encoder():
    return nk.models.Encoder("pixels", PixelMap(), mean=(0, 0, 0), sd=(1, 1, 1))


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(nk.settings, "progress", False)
    monkeypatch.setattr(nk.settings, "device", "cpu")


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH), dtype=np.uint8)


def paired(pixels, n=60):
    xy = np.random.default_rng(1).uniform((0, 0), (WIDTH * MPP, HEIGHT * MPP), (n, 2))
    adata = ad.AnnData(np.ones((n, 2), dtype=np.float32), obsm={"spatial": xy})
    return nk.io.paired(adata, da.from_array(pixels, chunks=(3, 64, 64)), mpp=MPP)


def by_hand(pixels, centre, crop_px, stride):
    """Cell by cell: the mean colour of the window, cut at the edges of the nearest tile, then that of the tile."""
    white = np.full((3, HEIGHT + 2 * crop_px, WIDTH + 2 * crop_px), 255.0)
    white[:, crop_px:-crop_px, crop_px:-crop_px] = pixels
    found = []
    for column, row in centre:
        middle = [min(c // stride * stride + stride // 2, n - 1) for c, n in ((column, WIDTH), (row, HEIGHT))]
        left, top = (m - crop_px // 2 for m in middle)
        tile = white[:, top + crop_px : top + 2 * crop_px, left + crop_px : left + 2 * crop_px]
        weights = []
        for position in (row + 0.5 - top, column + 0.5 - left):
            low, high = position - WINDOW * crop_px / 2, position + WINDOW * crop_px / 2
            covered = [max(0.0, min(high, i + 1) - max(low, i)) for i in range(crop_px)]
            weights.append(np.array(covered) / sum(covered))
        around = np.einsum("cyx,y,x->c", tile, *weights)
        found.append(np.concatenate([around, tile.mean(axis=(1, 2))]) / 255)
    return np.array(found)


@pytest.mark.parametrize(("crop_px", "stride"), [(32, 20), (31, 31), (48, 7)])
def test_cells_get_what_is_around_them_and_their_tile(pixels, crop_px, stride):
    sdata = paired(pixels)
    nk.pp.histology_features(sdata, encoder=encoder(), crop_px=crop_px, mode="dense", stride_px=stride, batch_size=5)
    table = sdata["table"]
    centre = np.floor(table.obsm["spatial"] / MPP).astype(int)
    assert table.obsm["X_pixels_dense"].shape == (60, 6)
    np.testing.assert_allclose(table.obsm["X_pixels_dense"], by_hand(pixels, centre, crop_px, stride), atol=1e-3)


def test_what_is_recorded(pixels):
    sdata = paired(pixels)
    nk.pp.histology_features(sdata, encoder=encoder(), crop_px=33, mode="dense")
    about = sdata["table"].uns["nichekd"]["features"]["X_pixels_dense"]
    assert (about["mode"], about["stride_px"], about["n_features"]) == ("dense", 24, 6)  # five sevenths
    assert sdata["table"].uns["nichekd"]["use_rep"] == "X_pixels_dense"


def test_fewer_tiles_than_cells(pixels):
    from nichekd._image import get_image

    sdata = paired(pixels, n=500)
    reader = CropReader(get_image(sdata, sdata["table"]), crop_px=48)
    plan = DensePlan(reader, encoder(), stride_px=32)
    assert plan.n_tiles == 5 * 8
    assert sorted(plan.order()) == list(range(500))


def test_threads_change_nothing(pixels):
    found = []
    for num_workers in (0, 3):
        sdata = paired(pixels, n=300)
        nk.pp.histology_features(sdata, encoder=encoder(), crop_px=32, mode="dense", num_workers=num_workers)
        found.append(sdata["table"].obsm["X_pixels_dense"])
    np.testing.assert_array_equal(*found)


def test_broken_off_and_taken_up_again(pixels, tmp_path):
    class Breaks(PixelMap):
        left = 10**9

        def forward_features(self, x):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return x

    run = {"crop_px": 32, "mode": "dense", "store": tmp_path / "f", "batch_size": 3}
    whole = paired(pixels, n=3000)
    module = Breaks()
    network = nk.models.Encoder("pixels", module, mean=(0, 0, 0), sd=(1, 1, 1))
    nk.pp.histology_features(whole, encoder=network, **(run | {"store": None}))
    module.left = 20  # batches; 3 tiles hold some 100 cells
    broken = paired(pixels, n=3000)
    with pytest.raises(KeyboardInterrupt):
        nk.pp.histology_features(broken, encoder=network, **run)
    assert 0 < FeatureStore(tmp_path / "f").n_done < 3000
    module.left = 10**9
    nk.pp.histology_features(broken, encoder=network, **run)
    assert broken["table"].obsm["X_pixels_dense"].compute().tobytes() == whole["table"].obsm["X_pixels_dense"].tobytes()
    with pytest.raises(ValueError, match=r"mode is 'dense' in the store and 'crop' now.*stride_px is 23"):
        nk.pp.histology_features(broken, encoder=network, **(run | {"mode": "crop"}))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mode": "sparse"}, "mode='sparse'"),
        ({"mode": "crop", "stride_px": 16}, "goes with mode='dense'"),
        ({"mode": "dense", "stride_px": 0}, "stride of 1 to 32 px"),
        ({"mode": "dense", "stride_px": 33}, "stride_px=33"),
        ({"mode": "dense", "encoder": "color"}, "no feature map"),
    ],
)
def test_bad_options(pixels, options, match):
    sdata = paired(pixels, n=5)
    with pytest.raises(ValueError, match=match):
        nk.pp.histology_features(sdata, **({"encoder": encoder(), "crop_px": 32} | options))
    assert list(sdata["table"].obsm) == ["spatial"]


def test_a_vit_in_bf16(pixels):
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, depth=1)
    sdata = paired(pixels)
    network = nk.models.Encoder("vit", vit, multiple_px=16)
    nk.pp.histology_features(sdata, encoder=network, crop_px=64, mode="dense", precision="bf16")
    assert sdata["table"].obsm["X_vit_dense"].shape == (60, 2 * 192)


class RedAt(nn.Module):
    """Says itself what it sees at a point: the red there, and where in the tile that is."""

    def at(self, tiles, points):
        column, row = points.floor().long().unbind(-1)
        red = tiles[torch.arange(len(tiles))[:, None], 0, row, column]  # (b, m)
        return torch.cat([red[..., None], points], dim=-1)

    def forward(self, tiles):
        middle = torch.full((len(tiles), 1, 2), tiles.shape[-1] / 2)
        return self.at(tiles, middle)[:, 0]


@pytest.mark.parametrize("stride", [1, 10, 32])
def test_a_module_that_reads_off_points_is_asked_for_the_cells(pixels, stride):
    sdata = paired(pixels)
    nk.pp.histology_features(
        sdata, encoder=nk.models.Encoder("red", RedAt(), mean=(0, 0, 0), sd=(1, 1, 1)), crop_px=32, mode="dense",
        stride_px=stride, precision="32",
    )  # fmt: skip
    column, row = np.floor(sdata["table"].obsm["spatial"] / MPP).astype(int).T
    found = sdata["table"].obsm["X_red_dense"]
    np.testing.assert_allclose(found[:, 0], pixels[0, row, column] / 255, atol=1e-3)
    inside = (column < WIDTH - stride) & (row < HEIGHT - stride)  # the last tiles end with the image
    assert (np.abs(found[inside, 1:] - 16) <= stride / 2 + 0.5).all()
