from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import anndata as ad
import dask.array as da
import numpy as np
import pytest
import torch
from torch import nn

import nichekd as nk
from nichekd.pp._feature_store import FeatureStore

pytestmark = [
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning"),  # anndata
    pytest.mark.filterwarnings("ignore:Call to deprecated class Scaler:DeprecationWarning"),  # spatialdata
    pytest.mark.filterwarnings("ignore:The table is annotating:UserWarning"),  # spatialdata, without shapes
]

MPP = 0.5
HEIGHT, WIDTH = 160, 240


class Corners(nn.Module):
    """Mean colours of the crop and of its four quarters: tells where a crop lies, and how it is turned."""

    def forward(self, x):
        h, w = x.shape[2] // 2, x.shape[3] // 2
        parts = [x, x[..., :h, :w], x[..., :h, w:], x[..., h:, :w], x[..., h:, w:]]
        return torch.cat([part.mean(dim=(2, 3)) for part in parts], dim=1)


def corners():
    return nk.models.Encoder("corners", Corners(), mean=(0, 0, 0), sd=(1, 1, 1))


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(nk.settings, "progress", False)
    monkeypatch.setattr(nk.settings, "device", "cpu")


@pytest.fixture
def pixels():
    """Smooth colours, so that neighbors look alike and places don't."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = np.stack([255 * x / WIDTH, 255 * y / HEIGHT, 127 + 127 * np.sin(x / 9) * np.cos(y / 7)])
    return image.astype(np.uint8)


def paired(pixels, n=40, seed=0, **options):
    xy = np.random.default_rng(seed).uniform((0, 0), (WIDTH * MPP, HEIGHT * MPP), (n, 2))
    adata = ad.AnnData(np.ones((n, 2), dtype=np.float32), obsm={"spatial": xy})
    return nk.io.paired(adata, da.from_array(pixels, chunks=(3, 64, 64)), **({"mpp": MPP} | options))


def expected(pixels, xy_px, crop_px=32):
    """Features by slicing the padded image."""
    padded = np.pad(pixels, ((0, 0), (crop_px, crop_px), (crop_px, crop_px)), constant_values=255)
    column, row = (np.floor(xy_px).astype(int) + crop_px - crop_px // 2).T
    crops = np.stack([padded[:, r : r + crop_px, c : c + crop_px] for c, r in zip(column, row, strict=True)])
    return Corners()(torch.from_numpy(crops) / 255).numpy()


def test_features_are_those_of_the_crops(pixels):
    sdata = paired(pixels)
    assert nk.pp.histology_features(sdata, encoder=corners(), crop_px=32) is None
    table = sdata["table"]
    found = table.obsm["X_corners"]
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected(pixels, table.obsm["spatial"] / MPP), atol=1e-3)


@pytest.mark.parametrize("turn", ["rotated", "mirrored"])
def test_crops_lie_in_the_images_own_frame(pixels, turn):
    """The slide lay turned under the scanner: cells in µm are turned, crops are the image's own pixels."""
    if turn == "rotated":
        affine = np.array([[0, -MPP, HEIGHT * MPP], [MPP, 0, 0]])  # pixels (x, y) → µm
    else:
        affine = np.array([[-MPP, 0, WIDTH * MPP], [0, MPP, 0]])
    xy_px = np.random.default_rng(0).uniform((0, 0), (WIDTH, HEIGHT), (30, 2))
    um = xy_px @ affine[:, :2].T + affine[:, 2]
    adata = ad.AnnData(np.ones((30, 2), dtype=np.float32), obsm={"spatial": um})
    sdata = nk.io.paired(adata, da.from_array(pixels, chunks=(3, 64, 64)), affine=affine)
    nk.pp.histology_features(sdata, encoder=corners(), crop_px=32)
    np.testing.assert_allclose(sdata["table"].obsm["X_corners"], expected(pixels, xy_px), atol=1e-3)


def test_what_is_recorded(pixels):
    sdata = paired(pixels)
    encoder = corners()
    nk.pp.histology_features(sdata, encoder=encoder, crop_px=32)
    notes = sdata["table"].uns["nichekd"]
    assert notes["use_rep"] == "X_corners"
    about = notes["features"]["X_corners"]
    assert about["encoder"] == "corners"
    assert about["fingerprint"] == encoder.fingerprint
    assert (about["crop_px"], about["mpp"], about["n_features"]) == (32, MPP, 15)
    assert (about["precision"], about["license"], about["mode"]) == ("32", "unknown", "crop")
    assert about["image"] in sdata.images
    assert len(about["image_fingerprint"]) == 16
    assert notes["histology_features"]["device"] == "cpu"
    assert notes["histology_features"]["seconds"] >= 0


def test_names_of_the_features(pixels):
    sdata = paired(pixels)
    nk.pp.histology_features(sdata, encoder=Corners(), crop_px=16)
    nk.pp.histology_features(sdata, encoder=Corners(), crop_px=16, key_added="X_mine")
    slashes = nk.models.Encoder("hf-hub:owner/name-1.0", Corners())
    nk.pp.histology_features(sdata, encoder=slashes, crop_px=16)
    assert set(sdata["table"].obsm) == {"spatial", "X_histology", "X_mine", "X_hf-hub_owner_name-1.0"}
    assert set(sdata["table"].uns["nichekd"]["features"]) == {"X_histology", "X_mine", "X_hf-hub_owner_name-1.0"}
    assert sdata["table"].uns["nichekd"]["use_rep"] == "X_hf-hub_owner_name-1.0"


def test_encoder_of_the_settings(pixels, monkeypatch):
    monkeypatch.setattr(nk.settings, "encoder", "color")
    sdata = paired(pixels, n=5)
    nk.pp.histology_features(sdata, encoder=None, crop_px=16)
    assert sdata["table"].obsm["X_color"].shape == (5, 42)


def test_copy_leaves_the_original(pixels):
    sdata = paired(pixels, n=5)
    other = nk.pp.histology_features(sdata, encoder=corners(), crop_px=16, copy=True)
    assert "X_corners" in other["table"].obsm
    assert "X_corners" not in sdata["table"].obsm
    assert "features" not in sdata["table"].uns.get("nichekd", {})


def test_threads_and_batches_change_nothing(pixels):
    found = []
    for num_workers, batch_size in [(0, 64), (3, 64), (2, 7)]:
        sdata = paired(pixels, n=200)
        nk.pp.histology_features(sdata, encoder=corners(), crop_px=32, num_workers=num_workers, batch_size=batch_size)
        found.append(sdata["table"].obsm["X_corners"])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0], found[2], atol=1e-3)


def test_another_resolution(pixels):
    sdata = paired(pixels)
    nk.pp.histology_features(sdata, encoder=corners(), crop_px=16, mpp=1.0)
    halved = pixels.reshape(3, HEIGHT // 2, 2, WIDTH // 2, 2).mean(axis=(2, 4))
    table = sdata["table"]
    np.testing.assert_allclose(
        table.obsm["X_corners"], expected(halved, table.obsm["spatial"] / 1.0, crop_px=16), atol=4e-3
    )
    assert table.uns["nichekd"]["features"]["X_corners"]["mpp"] == 1.0


def test_what_is_written_survives(pixels, tmp_path):
    import spatialdata

    sdata = paired(pixels)
    nk.pp.histology_features(sdata, encoder=corners(), crop_px=32)
    nk.pp.histology_features(sdata, encoder=corners(), crop_px=32, store=tmp_path / "f.zarr", key_added="X_lazy")
    table = sdata["table"]
    assert isinstance(table.obsm["X_lazy"], da.Array)
    plain = table.obsm["X_corners"]
    table.write_h5ad(tmp_path / "t.h5ad")
    sdata.write(tmp_path / "s.zarr")
    for read in (ad.read_h5ad(tmp_path / "t.h5ad"), spatialdata.read_zarr(tmp_path / "s.zarr")["table"]):
        for key in ("X_corners", "X_lazy"):
            assert read.obsm[key].dtype == np.float16
            np.testing.assert_array_equal(np.asarray(read.obsm[key]), plain)
        assert read.uns["nichekd"]["features"]["X_lazy"]["store"] == str(tmp_path / "f.zarr")
        assert read.uns["nichekd"]["use_rep"] == "X_lazy"


def test_lazy_features_are_subset_and_copied_as_others(pixels, tmp_path):
    sdata = paired(pixels)
    nk.pp.histology_features(sdata, encoder=corners(), crop_px=32, store=tmp_path / "f.zarr")
    table = sdata["table"]
    rows = np.array([7, 3, 30])
    whole = table.obsm["X_corners"].compute()
    np.testing.assert_array_equal(np.asarray(table[rows].obsm["X_corners"]), whole[rows])
    np.testing.assert_array_equal(np.asarray(table[rows].copy().obsm["X_corners"]), whole[rows])


def test_a_store_holds_the_same_bits(pixels, tmp_path):
    sdata = paired(pixels, n=1500)
    nk.pp.histology_features(sdata, encoder=corners(), crop_px=32)
    nk.pp.histology_features(sdata, encoder=corners(), crop_px=32, store=tmp_path / "f", key_added="X_stored")
    np.testing.assert_array_equal(sdata["table"].obsm["X_stored"].compute(), sdata["table"].obsm["X_corners"])


def test_a_complete_store_is_taken_as_it_is(pixels, tmp_path, monkeypatch, caplog):
    sdata = paired(pixels)
    nk.pp.histology_features(sdata, encoder=corners(), crop_px=32, store=tmp_path / "f")
    monkeypatch.setattr("nichekd.pp._encode.CropPlan.encoded", lambda *args, **options: 1 / 0)
    other = paired(pixels)
    with caplog.at_level("INFO", logger="nichekd"):
        nk.pp.histology_features(other, encoder=corners(), crop_px=32, store=tmp_path / "f")
    assert "all 40 cells" in caplog.text
    np.testing.assert_array_equal(
        other["table"].obsm["X_corners"].compute(), sdata["table"].obsm["X_corners"].compute()
    )


def test_auto_precision_is_that_of_the_store(pixels, tmp_path):
    sdata = paired(pixels)
    run = {"encoder": corners(), "crop_px": 32, "store": tmp_path / "f"}
    nk.pp.histology_features(sdata, precision="bf16", **run)
    nk.pp.histology_features(sdata, **run)
    assert sdata["table"].uns["nichekd"]["features"]["X_corners"]["precision"] == "bf16"
    with pytest.raises(ValueError, match="precision is 'bf16' in the store and '32' now"):
        nk.pp.histology_features(sdata, precision="32", **run)


def other_image(pixels):
    return paired(255 - pixels)


def other_cells(pixels):
    return paired(pixels, seed=1)


def fewer_cells(pixels):
    return paired(pixels, n=20)


@pytest.mark.parametrize(
    ("make", "changes", "field"),
    [
        (other_image, {}, "image_fingerprint"),
        (other_cells, {}, "cells"),
        (fewer_cells, {}, "cells"),
        (paired, {"crop_px": 48}, "crop_px"),
        (paired, {"mpp": 1.0}, "mpp"),
        (paired, {"encoder": nk.models.Encoder("corners", Corners())}, "fingerprint"),
    ],
)
def test_a_store_of_something_else_is_refused(pixels, tmp_path, make, changes, field):
    run = {"encoder": corners(), "crop_px": 32, "store": tmp_path / "f"}
    nk.pp.histology_features(paired(pixels), **run)
    sdata = make(pixels)
    with pytest.raises(ValueError, match=rf"\b{field} is .* in the store and .* now"):
        nk.pp.histology_features(sdata, **(run | changes))
    assert "X_corners" not in sdata["table"].obsm


# killed ------------------------------------------------------------------------------------------------------------

RUN = """
import time, numpy as np, torch, anndata as ad, nichekd as nk

class Slow(torch.nn.Conv2d):
    def forward(self, x):
        time.sleep(pause)
        return super().forward(x).amax(dim=(2, 3))

torch.manual_seed(0)
encoder = nk.models.Encoder("slow", Slow(3, 8, 5))
rng = np.random.default_rng(0)
pixels = rng.integers(0, 256, (3, 400, 400), dtype=np.uint8)
adata = ad.AnnData(np.ones((3000, 1), np.float32), obsm={"spatial": rng.uniform(0, 200, (3000, 2))})
sdata = nk.io.paired(adata, pixels, mpp=0.5)
nk.pp.histology_features(sdata, encoder=encoder, crop_px=16, batch_size=48, store=store, device="cpu")
"""


def run_to_the_end(store):
    names = {"store": store, "pause": 0}
    exec(RUN, names)  # noqa: S102  the very code that the other process runs
    return names["sdata"]["table"].obsm["X_slow"]


def test_killed_and_taken_up_again_ends_with_the_same_bits(tmp_path):
    code = f"store, pause = {str(tmp_path / 'killed')!r}, 0.05\n{RUN}"
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stderr=subprocess.DEVNULL)
    store = FeatureStore(tmp_path / "killed")
    while store.n_done == 0 and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < store.n_done < 3000

    resumed, whole, in_memory = (run_to_the_end(s) for s in (tmp_path / "killed", tmp_path / "whole", None))
    assert store.is_complete
    assert resumed.compute().tobytes() == whole.compute().tobytes() == in_memory.tobytes()


# bad input ---------------------------------------------------------------------------------------------------------


def test_an_anndata_has_no_image(pixels):
    with pytest.raises(TypeError, match=r"nk\.io\.paired"):
        nk.pp.histology_features(paired(pixels)["table"], encoder="color")
    with pytest.raises(TypeError, match="data is a str"):
        nk.pp.histology_features("slide.svs", encoder="color")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"table_key": "cells"}, KeyError, "no table 'cells'"),
        ({"image_key": "dapi"}, KeyError, "no image 'dapi'"),
        ({"encoder": "unheard of"}, ValueError, "no encoder 'unheard of'"),
        ({"encoder": 3}, TypeError, "encoder is a int"),
        ({"encoder": "resnet18", "weights": "absent.pth"}, FileNotFoundError, "absent.pth"),
        ({"crop_px": 0}, ValueError, "crop_px=0"),
        ({"crop_px": "16"}, TypeError, "crop_px= is '16', a str; it has to be a number"),
        ({"mpp": -1.0}, ValueError, "mpp= is"),
        ({"mpp": "0.5"}, TypeError, "mpp= is '0.5', a str; it has to be a number"),
        ({"key_added": "spatial"}, ValueError, "holds the cells' centres, which features would replace"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"batch_size": 2000}, ValueError, "1 to 1,024 crops"),
        ({"num_workers": -1}, ValueError, "num_workers=-1"),
        ({"device": "abacus"}, ValueError, "'abacus'"),
        ({"precision": "16"}, ValueError, "precision='16'"),
        ({"encoder": nk.models.Encoder("e", Corners(), crop_px=224)}, ValueError, "crop_px=224"),
    ],
)
def test_bad_options(pixels, options, error, match):
    sdata = paired(pixels, n=5)
    with pytest.raises(error, match=match):
        nk.pp.histology_features(sdata, **({"encoder": "color", "crop_px": 16} | options))
    assert list(sdata["table"].obsm) == ["spatial"]


def test_no_cells(pixels):
    sdata = paired(pixels)
    del sdata.tables["table"]
    sdata.tables["table"] = ad.AnnData(np.empty((0, 2), np.float32), obsm={"spatial": np.empty((0, 2))})
    with pytest.raises(ValueError, match=r"no cells.*segment_nuclei"):
        nk.pp.histology_features(sdata, encoder="color")


class Scaled(Corners):
    def __init__(self, factor):
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, x):
        return super().forward(x) * self.factor


@pytest.mark.parametrize(
    ("factor", "match"),
    [(float("nan"), "NaN or infinite features for 40 of 40"), (1e6, "float16, which ends at 65,504")],
)
@pytest.mark.parametrize("in_store", [False, True])
def test_features_that_can_not_be_kept(pixels, tmp_path, factor, match, in_store):
    sdata = paired(pixels)
    with pytest.raises(ValueError, match=match):
        nk.pp.histology_features(sdata, encoder=Scaled(factor), crop_px=16, store=tmp_path / "f" if in_store else None)
    assert list(sdata["table"].obsm) == ["spatial"]


# real data ---------------------------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_real_tissue_with_pretrained_weights(shared_data):
    adata = ad.read_h5ad(shared_data / "pancreas" / "crop" / "cells.h5ad")[::200].copy()
    sdata = nk.io.paired(adata, shared_data / "pancreas" / "crop" / "he.ome.tif", mpp=0.274)
    nk.pp.histology_features(sdata, encoder="efficientnet_lite0")
    nk.pp.histology_features(sdata, encoder="efficientnet_lite0", precision="32", key_added="X_32")
    x, full = (sdata["table"].obsm[key].astype(np.float32) for key in ("X_efficientnet_lite0", "X_32"))
    assert x.shape == (adata.n_obs, 1280)
    cosine = (x * full).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(full, axis=1)
    assert cosine.min() > 0.97
    assert x.std(axis=0).mean() > 0.05  # cells differ


# test tissue in training crops


def test_crops_that_reach_across_the_split():
    sdata = nk.datasets.simulate(600, K=2, seed=0, mpp=0.5)
    nk.pp.split(sdata, crop_px=32)
    with pytest.warns(
        UserWarning, match=r"Of each cell 32 µm .* leaves [12][0-9] µm.*nk\.pp\.split\(sdata, crop_px=64\)"
    ):
        nk.pp.histology_features(sdata, encoder="color", crop_px=64)
    with pytest.warns(UserWarning, match="Of each cell 32 µm"):  # resampled
        nk.pp.histology_features(sdata, encoder="color", crop_px=32, mpp=1.0)
    nk.pp.split(sdata, crop_px=64)
    nk.pp.histology_features(sdata, encoder="color", crop_px=32, mpp=1.0)
    nk.pp.histology_features(sdata, encoder="color", crop_px=64)
