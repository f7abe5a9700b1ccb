from __future__ import annotations

import json
import sys
from types import ModuleType

import dask.array as da
import geopandas
import numpy as np
import pytest
import shapely
from scipy.spatial import cKDTree

import nichekd as nk
from nichekd.pp._nuclei import NucleusSettings, haematoxylin, label_nuclei
from nichekd.pp._nuclei_blocks import Grid, outline_blocks
from nichekd.pp._tiles import ImageTiles

pytestmark = [
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning"),
    pytest.mark.filterwarnings("ignore:Call to deprecated class Scaler:DeprecationWarning"),
]

MPP = 0.5
NUCLEUS, GROUND, GLASS = (95, 80, 150), (235, 180, 215), (250, 250, 250)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(nk.settings, "progress", False)


def slide(pixels, mpp=MPP, chunks=128, **elements):
    """As nk.io.slide makes it, of an array (3, y, x)."""
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    image = Image2DModel.parse(
        da.from_array(pixels, chunks=(3, chunks, chunks)),
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        transformations={"global": Scale([mpp, mpp], axes=("x", "y"))},
    )
    return SpatialData(images={"he": image}, **elements)


def discs(middles_um, radius_um=3.0, size_um=(150.0, 200.0), mpp=MPP):
    """Round nuclei on pink tissue with a margin of glass, (3, y, x)."""
    height, width = (round(it / mpp) for it in size_um)
    y, x = (np.mgrid[:height, :width] + 0.5) * mpp
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    pixels[:] = GLASS
    tissue = (x > 20) & (x < size_um[1] - 20) & (y > 20) & (y < size_um[0] - 20)
    pixels[tissue] = GROUND
    for mx, my in middles_um:
        pixels[np.hypot(x - mx, y - my) < radius_um] = NUCLEUS
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


@pytest.fixture(scope="module")
def middles():
    """On a jittered grid, at least 12 µm apart, 30 µm or more from the image's edge."""
    rng = np.random.default_rng(0)
    x, y = (it.ravel() for it in np.meshgrid(np.arange(35, 170, 16.0), np.arange(35, 120, 16.0)))
    return np.c_[x, y] + rng.uniform(-2, 2, (len(x), 2))


@pytest.fixture(scope="module")
def drawn():
    return nk.datasets.simulate(500, K=2, seed=3, mpp=MPP)


def test_each_disc_is_found_in_its_place_and_size(middles):
    sdata = slide(discs(middles))
    assert nk.pp.segment_nuclei(sdata, n_jobs=1) is None
    table = sdata["table"]
    assert table.n_obs == len(middles)
    assert cKDTree(table.obsm["spatial"]).query(middles)[0].max() < 0.5
    assert np.sqrt(table.obs["area_um2"] / np.pi).median() == pytest.approx(3, abs=MPP)  # to the pixel
    assert sdata["nuclei"].geometry.area.to_numpy() == pytest.approx(table.obs["area_um2"].to_numpy())
    assert not (sdata["nuclei"].geometry.centroid.y.diff() < -1e-9).any()  # reading order


@pytest.mark.parametrize("mpp", [0.25, 0.8])
def test_sizes_are_in_um(middles, mpp):
    sdata = slide(discs(middles, mpp=mpp), mpp=mpp)
    nk.pp.segment_nuclei(sdata, n_jobs=1)
    table = sdata["table"]
    assert table.n_obs == len(middles)
    assert cKDTree(table.obsm["spatial"]).query(middles)[0].max() < 1
    assert np.sqrt(table.obs["area_um2"] / np.pi).median() == pytest.approx(3, abs=max(mpp, MPP))


def test_touching_nuclei_are_told_apart():
    pairs = np.array([[x + d, y] for x in (40.0, 80.0, 120.0) for y in (50.0, 90.0) for d in (-3.2, 3.2)])
    sdata = slide(discs(pairs, radius_um=3.5))
    nk.pp.segment_nuclei(sdata, n_jobs=1)
    xy = sdata["table"].obsm["spatial"]
    assert len(xy) == len(pairs)
    assert cKDTree(xy).query(pairs)[0].max() < 1


def test_nuclei_of_a_drawn_tissue(drawn):
    sdata = nk.pp.segment_nuclei(drawn, table_key="nuclei_table", copy=True)
    assert "nuclei_table" not in drawn.tables
    true, found = (sdata[name].obsm["spatial"] for name in ("table", "nuclei_table"))
    hit = cKDTree(found).query(true)[0] < 5
    assert hit.mean() > 0.9
    assert len(found) == pytest.approx(len(true), rel=0.15)


def test_blocks_and_threads_change_nothing(drawn):
    from nichekd._image import get_image

    image = get_image(drawn, drawn["table"])
    found, settings = [], NucleusSettings(mpp=image.mpp)
    for side, n_jobs in ((4096, 1), (400, 1), (256, 3)):
        grid = Grid(ImageTiles(image.pixels), image.mpp, 1.0, block_px=side)
        polygons = outline_blocks(
            grid, grid.blocks(), lambda rgb: label_nuclei(rgb, MPP, 0.6, settings), n_jobs=n_jobs, progress=""
        )
        found.append(shapely.to_wkb(polygons))
    assert len(found[0]) > 300
    for other in found[1:]:
        assert other.tolist() == found[0].tolist()


def test_what_two_blocks_see_differently_is_one_nucleus():
    """A network that draws a nucleus half a pixel further to the right for each block it sees it in."""
    pixels = np.zeros((3, 40, 80), dtype=np.uint8)
    pixels[:, 10:20, 35:45] = 1  # its middle is on the seam at 40
    grid = Grid(ImageTiles(da.from_array(pixels, chunks=-1)), 0.5, 1.0, block_px=40, halo_um=10)
    seen = []

    def label(rgb):
        labels = (rgb[0] > 0).astype(int)
        seen.append(labels)
        if len(seen) == 1:
            labels[10:20, 44] = 0  # the left block sees less of it, and takes it for its own
        return labels

    polygons = outline_blocks(grid, [(0, 0), (0, 40)], label, n_jobs=1, progress="")
    assert len(seen) == 2
    assert len(polygons) == 1
    assert polygons[0].bounds[2] == 45


def test_memory_does_not_grow_with_the_slide():
    """A slide of 40,000 × 40,000 px with tissue in a corner: only that is read at full resolution."""
    read = []

    def block(block_info=None):
        where = block_info[None]["array-location"]
        read.append(where[1:])
        pixels = np.full([stop - start for start, stop in where], 250, dtype=np.uint8)
        if where[1][0] == where[2][0] == 0:
            pixels[:] = discs([(60.0, 60.0), (80.0, 70.0)], size_um=(512.0, 512.0))[:, :1024, :1024]
        return pixels

    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    sizes = ((3,), (1024,) * 40, (1024,) * 40)
    full = da.map_blocks(block, chunks=sizes, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    coarse = np.full((3, 40 * 64, 40 * 64), 250, dtype=np.uint8)
    coarse[:, :64, :64] = discs([], size_um=(512.0, 512.0), mpp=8.0)
    from xarray import DataArray, Dataset, DataTree

    tree = DataTree.from_dict(
        {
            f"scale{i}": Dataset({"image": DataArray(level, dims=("c", "y", "x"), coords={"c": ["r", "g", "b"]})})
            for i, level in enumerate((full, da.from_array(coarse)))
        }
    )
    from spatialdata.transformations import set_transformation

    set_transformation(tree, {"global": Scale([MPP, MPP], axes=("x", "y"))}, set_all=True)
    Image2DModel().validate(tree)
    sdata = SpatialData(images={"he": tree})
    read.clear()
    nk.pp.segment_nuclei(sdata, n_jobs=1)
    assert sdata["table"].n_obs == 2
    assert len({str(it) for it in read}) <= 9


def test_table_and_shapes_survive_a_reload(middles, tmp_path):
    import spatialdata

    sdata = slide(discs(middles))
    nk.pp.segment_nuclei(sdata, n_jobs=1)
    sdata.write(tmp_path / "a.zarr")
    back = spatialdata.read_zarr(tmp_path / "a.zarr")
    assert np.array_equal(back["table"].obsm["spatial"], sdata["table"].obsm["spatial"])
    assert back["table"].uns["nichekd"]["segment_nuclei"]["method"] == "watershed"
    assert len(spatialdata.get_element_instances(back["nuclei"])) == back["table"].n_obs
    sdata["table"].write_h5ad(tmp_path / "a.h5ad")


def test_what_follows_finds_its_way(middles):
    sdata = slide(discs(middles))
    nk.pp.segment_nuclei(sdata, n_jobs=1)
    nk.pp.histology_features(sdata, encoder="color", crop_px=16, device="cpu")
    assert sdata["table"].obsm["X_color"].shape[0] == len(middles)


def test_a_slide_in_pixels_with_mpp(middles):
    sdata = slide(discs(middles), mpp=1.0)
    with pytest.raises(ValueError, match="µm per pixel.*mpp="):
        nk.pp.segment_nuclei(sdata)
    nk.pp.segment_nuclei(sdata, mpp=MPP, n_jobs=1)
    assert cKDTree(sdata["table"].obsm["spatial"]).query(middles)[0].max() < 0.5
    nk.pp.histology_features(sdata, encoder="color", crop_px=16, device="cpu")
    about = sdata["table"].uns["nichekd"]["features"]["X_color"]
    assert about["mpp"] == pytest.approx(MPP)


@pytest.mark.parametrize("mpp", [1e-4, 40.0])
def test_absurd_mpp(middles, mpp):
    with pytest.raises(ValueError, match="µm per pixel"):
        nk.pp.segment_nuclei(slide(discs(middles), mpp=1.0), mpp=mpp)


def test_too_coarse_for_nuclei(middles):
    with pytest.raises(ValueError, match="finer level"):
        nk.pp.segment_nuclei(slide(discs(middles), mpp=2.0))


def test_contradicting_mpp(middles):
    sdata = slide(discs(middles))
    from nichekd._image_notes import note_image

    note_image(sdata, "he", mpp=MPP, source="here")
    with pytest.raises(ValueError, match="0.5 µm per pixel"):
        nk.pp.segment_nuclei(sdata, mpp=0.25)


def test_blank_slide():
    with pytest.raises(ValueError, match="no tissue"):
        nk.pp.segment_nuclei(slide(np.full((3, 300, 300), 247, dtype=np.uint8)))


def test_tissue_without_nuclei():
    with pytest.raises(ValueError, match="No nuclei in 0.*NucleusSettings"):
        nk.pp.segment_nuclei(slide(discs([])), n_jobs=1)


def test_no_image(drawn):
    from spatialdata import SpatialData

    with pytest.raises(ValueError, match="no image"):
        nk.pp.segment_nuclei(SpatialData())
    with pytest.raises(TypeError, match="AnnData has no image"):
        nk.pp.segment_nuclei(drawn["table"])


def test_a_table_is_not_overwritten_by_accident(drawn):
    with pytest.raises(ValueError, match="'table'.*overwrite=True"):
        nk.pp.segment_nuclei(drawn)
    from nichekd._resolve import working_copy

    other = working_copy(drawn, True)
    nk.pp.segment_nuclei(other, overwrite=True)
    assert "nucleus_0" in other["table"].obs_names
    assert "nucleus_0" not in drawn["table"].obs_names
    nk.pp.segment_nuclei(other, shapes="nuclei", overwrite=True)  # of what it replaces
    assert other["table"].uns["nichekd"]["segment_nuclei"]["method"] == "shapes"


@pytest.mark.parametrize(("wrong", "match"), [({"method": "magic"}, "watershed"), ({"n_jobs": 0}, "n_jobs=0")])
def test_wrong_arguments(middles, wrong, match):
    with pytest.raises(ValueError, match=match):
        nk.pp.segment_nuclei(slide(discs(middles)), **wrong)


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="window_um"):
        nk.pp.NucleusSettings(window_um=0)


def test_own_function(middles):
    """Labels of a function are taken as they are."""
    shapes = []

    def dark(rgb):
        from scipy.ndimage import label

        shapes.append(rgb.shape)
        return label(rgb[..., 0] < 150)[0]

    sdata = slide(discs(middles))
    nk.pp.segment_nuclei(sdata, method=dark)
    assert shapes == [(300, 400, 3)]
    assert sdata["table"].n_obs == len(middles)
    assert sdata["table"].uns["nichekd"]["segment_nuclei"]["method"] == "dark"


def test_haematoxylin_is_skimages():
    from skimage.color import rgb2hed

    rgb = np.random.default_rng(0).integers(1, 256, (3, 8, 8)).astype(np.uint8)
    theirs = rgb2hed(np.moveaxis(rgb, 0, -1))[..., 0]
    ours = np.maximum(haematoxylin(rgb), 0) / -np.log(1e-6)  # it divides by that
    assert ours == pytest.approx(theirs, abs=1e-5)


# nuclei that there are already


def squares(middles, side):
    return geopandas.GeoDataFrame(geometry=[shapely.box(x - side, y - side, x + side, y + side) for x, y in middles])


def test_brought_polygons_in_pixels(middles):
    sdata = slide(discs(middles))
    nk.pp.segment_nuclei(sdata, shapes=squares(middles / MPP, 6.0))
    assert sdata["table"].obsm["spatial"] == pytest.approx(middles)
    assert sdata["table"].obs["area_um2"].to_numpy() == pytest.approx(np.full(len(middles), 36.0))


def test_brought_geojson(middles, tmp_path):
    path = tmp_path / "detections.geojson"
    path.write_text(squares(middles / MPP, 6.0).to_json())
    sdata = slide(discs(middles))
    nk.pp.segment_nuclei(sdata, shapes=str(path))
    assert sdata["table"].obsm["spatial"] == pytest.approx(middles)
    assert sdata["table"].uns["nichekd"]["segment_nuclei"]["source"] == str(path)


def test_geojson_of_points(tmp_path):
    path = tmp_path / "points.geojson"
    point = {"type": "Feature", "properties": {}, "geometry": {"type": "Point", "coordinates": [10, 10]}}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [point]}))
    with pytest.raises(ValueError, match="polygons"):
        nk.pp.segment_nuclei(slide(discs([])), shapes=path)
    with pytest.raises(FileNotFoundError, match="absent"):
        nk.pp.segment_nuclei(slide(discs([])), shapes=tmp_path / "absent.geojson")


def test_brought_shapes_element_in_another_frame(middles):
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Translation

    moved = ShapesModel.parse(
        squares(middles - 7, 3.0), transformations={"global": Translation([7, 7], axes=("x", "y"))}
    )
    sdata = slide(discs(middles), shapes={"qupath": moved})
    nk.pp.segment_nuclei(sdata, shapes="qupath")
    assert sdata["table"].obsm["spatial"] == pytest.approx(middles)


def test_brought_labels(middles):
    from scipy.ndimage import label
    from spatialdata.models import Labels2DModel
    from spatialdata.transformations import Scale

    pixels = discs(middles)
    labels, n = label(pixels[0] < 150)
    element = Labels2DModel.parse(
        da.from_array(labels.astype(np.int32), chunks=100),
        dims=("y", "x"),
        transformations={"global": Scale([MPP, MPP], axes=("x", "y"))},
    )
    sdata = slide(pixels, labels={"mask": element})
    nk.pp.segment_nuclei(sdata, shapes="mask")
    xy = sdata["table"].obsm["spatial"]
    assert len(xy) == n == len(middles)
    assert cKDTree(xy).query(middles)[0].max() < 0.3


def test_brought_shapes_that_are_none(middles):
    sdata = slide(discs(middles))
    with pytest.raises(KeyError, match="'absent'"):
        nk.pp.segment_nuclei(sdata, shapes="absent")
    with pytest.raises(TypeError, match="list"):
        nk.pp.segment_nuclei(sdata, shapes=[1, 2])
    with pytest.raises(ValueError, match=r"no polygons.*Point"):
        nk.pp.segment_nuclei(sdata, shapes=geopandas.GeoDataFrame(geometry=shapely.points(middles)))
    with pytest.raises(ValueError, match="outside image"):
        nk.pp.segment_nuclei(sdata, shapes=squares(middles * 100, 6.0))
    with pytest.raises(ValueError, match="median area of 1 µm².*in µm"):
        nk.pp.segment_nuclei(sdata, shapes=squares(middles, 1.0))


# networks of other packages, as far as they can be told by their calls


class Call(dict):
    """What a stand-in was called with."""


@pytest.fixture
def fake(monkeypatch):
    """Puts a package with these modules where it would be imported from."""

    def install(**modules):
        for name, members in modules.items():
            module = ModuleType(name.replace("__", "."))
            module.__dict__.update(members)
            monkeypatch.setitem(sys.modules, module.__name__, module)

    return install


def dark_labels(gray):
    from scipy.ndimage import label

    return label(gray < 0.6)[0]


@pytest.mark.parametrize("method", ["cellpose", "stardist", "instanseg"])
def test_absent_package_says_what_to_install(middles, method, monkeypatch):
    for name in ("cellpose", "cellpose.models", "stardist", "stardist.models", "instanseg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f"pip install {method}.*watershed"):
        nk.pp.segment_nuclei(slide(discs(middles)), method=method)


def test_cellpose_4_gets_colours(middles, fake):
    calls = Call()

    class CellposeModel:
        def __init__(self, gpu=False, pretrained_model="cpsam"):
            calls.update(gpu=gpu, model=pretrained_model)

        def eval(self, x):
            calls.update(shape=x.shape, dtype=x.dtype)
            return dark_labels(x[..., 0] / 255), [], []

    fake(cellpose={}, cellpose__models={"CellposeModel": CellposeModel})
    sdata = slide(discs(middles))
    nk.pp.segment_nuclei(sdata, method="cellpose", device="cpu", model="mine")
    assert sdata["table"].n_obs == len(middles)
    assert calls == {"gpu": False, "model": "mine", "shape": (300, 400, 3), "dtype": np.uint8}
    assert sdata["table"].uns["nichekd"]["segment_nuclei"]["model"] == "cellpose mine"


def test_cellpose_3_gets_bright_nuclei(middles, fake):
    class CellposeModel:
        def __init__(self, gpu=False, pretrained_model=False, model_type=None):
            self.model_type = model_type

        def eval(self, x, channels):
            if self.model_type != "nuclei" or x.ndim != 2 or channels != [0, 0]:
                raise AssertionError
            return dark_labels(1 - x), [], []

    fake(cellpose={}, cellpose__models={"CellposeModel": CellposeModel, "Cellpose": object})
    sdata = slide(discs(middles))
    nk.pp.segment_nuclei(sdata, method="cellpose", device="cpu")
    assert sdata["table"].n_obs == len(middles)


def test_stardist_gets_its_own_resolution(middles, fake):
    calls = Call()

    class StarDist2D:
        @classmethod
        def from_pretrained(cls, name):
            calls.update(name=name)
            return cls()

        def predict_instances(self, x):
            calls.update(shape=x.shape, largest=float(x.max()))
            return dark_labels(x[..., 0]), {}

    fake(stardist={}, stardist__models={"StarDist2D": StarDist2D})
    sdata = slide(discs(middles))
    nk.pp.segment_nuclei(sdata, method="stardist")
    assert calls["name"] == "2D_versatile_he"
    assert calls["shape"] == (600, 800, 3)  # 0.25 µm per pixel
    assert calls["largest"] <= 1
    assert cKDTree(sdata["table"].obsm["spatial"]).query(middles)[0].max() < 0.5


def test_instanseg_gets_tensors_back(middles, fake):
    import torch

    class InstanSeg:
        def __init__(self, name, device, verbosity):
            self.name = name

        def eval_small_image(self, x, pixel_size, return_image_tensor, target):
            if (self.name, pixel_size, return_image_tensor, target) != ("brightfield_nuclei", 0.5, False, "nuclei"):
                raise AssertionError
            return torch.from_numpy(dark_labels(x[0] / 255))[None, None].float()

    fake(instanseg={"InstanSeg": InstanSeg})
    sdata = slide(discs(middles))
    nk.pp.segment_nuclei(sdata, method="instanseg", device="cpu")
    assert sdata["table"].n_obs == len(middles)


@pytest.mark.real_data
@pytest.mark.slow
def test_pancreas_crop(shared_data):
    """Against the assay's cells, whose settings were chosen elsewhere on the section."""
    sdata = nk.datasets.pancreas()
    nk.pp.segment_nuclei(sdata, table_key="nuclei_table")
    true, found = (sdata[name].obsm["spatial"] for name in ("table", "nuclei_table"))
    assert len(found) == pytest.approx(len(true), rel=0.15)
    assert np.mean(cKDTree(found).query(true)[0] < 5) > 0.75
