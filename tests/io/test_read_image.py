"""Image files, read a tile at a time; the oracle is tifffile's own whole read."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr
from xarray import DataArray

from nichekd.io._read_image import as_rgb, read_image
from nichekd.io._tile_readers import OpenSlideReader, TiffReader


@pytest.fixture(scope="module")
def rgb():
    """Noise, (700, 1100, 3), of sizes that are no multiple of any tile."""
    return np.random.default_rng(0).integers(0, 255, (700, 1100, 3), dtype=np.uint8)


def ome(mpp: float, unit: str = "µm", **more):
    sides = {"PhysicalSizeX": mpp, "PhysicalSizeXUnit": unit, "PhysicalSizeY": mpp, "PhysicalSizeYUnit": unit}
    return {"ome": True, "metadata": {**sides, **more}}


WRITE = {
    "tiles": {"tile": (256, 256)},
    "jpeg tiles": {"tile": (256, 128), "compression": "jpeg"},
    "strips": {"rowsperstrip": 16},
    "one strip": {},
    "deflate": {"tile": (256, 256), "compression": "deflate", "predictor": True},
}


@pytest.mark.parametrize("how", WRITE)
def test_same_pixels_as_a_whole_read(tmp_path, rgb, how):
    tifffile.imwrite(tmp_path / "x.tif", rgb, photometric="rgb", **WRITE[how])
    image, mpp = read_image(tmp_path / "x.tif")
    assert image.dtype == np.uint8
    assert mpp is None
    np.testing.assert_array_equal(image, tifffile.imread(tmp_path / "x.tif").transpose(2, 0, 1))


def test_planes_stored_apart(tmp_path, rgb):
    tifffile.imwrite(tmp_path / "planar.tif", rgb.transpose(2, 0, 1), photometric="rgb", tile=(256, 256))
    tifffile.imwrite(
        tmp_path / "pages.ome.tif",
        rgb.transpose(2, 0, 1),
        photometric="minisblack",
        tile=(256, 256),
        **ome(0.25, axes="CYX"),
    )
    for name in ("planar.tif", "pages.ome.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name)[0], rgb.transpose(2, 0, 1))


def test_alpha_is_dropped(tmp_path, rgb):
    rgba = np.concatenate([rgb, np.full((*rgb.shape[:2], 1), 7, dtype=np.uint8)], axis=2)
    tifffile.imwrite(tmp_path / "x.tif", rgba, photometric="rgb", extrasamples=["unassalpha"], tile=(256, 256))
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif")[0], rgb.transpose(2, 0, 1))


def test_transparent_glass_is_white(rgb):
    """As some scanners leave out what they didn't scan; what has a colour keeps it, whatever its alpha."""
    rgba = np.concatenate([rgb, np.full((*rgb.shape[:2], 1), 255, dtype=np.uint8)], axis=2)
    rgba[:50], rgba[50:60, :, 3] = 0, 0
    image = np.asarray(as_rgb(rgba)).transpose(1, 2, 0)
    assert (image[:50] == 255).all()
    np.testing.assert_array_equal(image[50:], rgb[50:])


def test_chunks_are_whole_tiles(tmp_path, rgb):
    tifffile.imwrite(tmp_path / "x.tif", rgb, photometric="rgb", tile=(240, 240))
    image, _ = read_image(tmp_path / "x.tif")
    assert image.chunks == ((3,), (700,), (720, 380))


def test_largest_series_at_full_resolution(tmp_path, rgb):
    with tifffile.TiffWriter(tmp_path / "x.ome.tif") as tiff:
        tiff.write(rgb[:50, :60], photometric="rgb", **{k: v for k, v in ome(9.0).items() if k != "ome"})
        tiff.write(rgb, photometric="rgb", subifds=1, tile=(256, 256), metadata=ome(0.5)["metadata"])
        tiff.write(rgb[::2, ::2], photometric="rgb", subfiletype=1, tile=(256, 256))
    image, mpp = read_image(tmp_path / "x.ome.tif")
    np.testing.assert_array_equal(image, rgb.transpose(2, 0, 1))
    assert mpp == pytest.approx(0.5)


@pytest.mark.parametrize(("value", "unit"), [(0.274, "µm"), (274.0, "nm"), (0.274e-3, "mm")])
def test_mpp_of_ome_metadata(tmp_path, rgb, value, unit):
    tifffile.imwrite(tmp_path / "x.ome.tif", rgb, photometric="rgb", **ome(value, unit))
    assert read_image(tmp_path / "x.ome.tif")[1] == pytest.approx(0.274)


def test_mpp_of_resolution_tags_if_a_microscope_has_it(tmp_path, rgb):
    tifffile.imwrite(tmp_path / "x.tif", rgb, resolution=(1e4 / 0.25, 1e4 / 0.25), resolutionunit="centimeter")
    tifffile.imwrite(tmp_path / "dpi.tif", rgb, resolution=(72, 72), resolutionunit="inch")
    assert read_image(tmp_path / "x.tif")[1] == pytest.approx(0.25)
    assert read_image(tmp_path / "dpi.tif")[1] is None


def test_mpp_of_an_aperio_header(tmp_path, rgb):
    description = "Aperio Image Library v11\n1100x700 (256x256) JPEG/RGB Q=30|AppMag = 20|MPP = 0.4990|Left = 25.6"
    tifffile.imwrite(
        tmp_path / "x.svs", rgb, photometric="rgb", tile=(256, 256), description=description, metadata=None
    )
    assert read_image(tmp_path / "x.svs")[1] == 0.499


def test_tiles_left_out_of_a_file_are_white(tmp_path):
    def tiles():
        yield np.full((256, 256, 3), 9, dtype=np.uint8)
        yield None

    tifffile.imwrite(
        tmp_path / "x.tif", tiles(), shape=(256, 512, 3), dtype=np.uint8, photometric="rgb", tile=(256, 256)
    )
    image = np.asarray(read_image(tmp_path / "x.tif")[0])
    assert (image[:, :, :256] == 9).all()
    assert (image[:, :, 256:] == 255).all()


def test_openslide_reads_the_same(tmp_path, rgb):
    tifffile.imwrite(
        tmp_path / "x.tif", rgb, photometric="rgb", tile=(256, 256), resolution=(4e4, 4e4), resolutionunit="centimeter"
    )
    reader = OpenSlideReader(tmp_path / "x.tif")
    np.testing.assert_array_equal(reader[:], rgb.transpose(2, 0, 1))
    np.testing.assert_array_equal(reader[:, 5:5], np.empty((3, 0, 1100)))
    assert reader.chunks == (3, 512, 512)
    assert reader.mpp == pytest.approx(0.25)


@pytest.mark.parametrize("reader_of", [TiffReader, OpenSlideReader])
def test_a_reader_indexes_like_numpy_and_travels(tmp_path, rgb, reader_of):
    tifffile.imwrite(tmp_path / "x.tif", rgb, photometric="rgb", tile=(256, 256))
    reader = pickle.loads(pickle.dumps(reader_of(tmp_path / "x.tif")))  # noqa: S301
    want = rgb.transpose(2, 0, 1)
    for key in (
        np.s_[:, 10:300, 200:900],
        np.s_[1, ..., 3:7][:1],
        np.s_[:, 699, -1],
        np.s_[0:2, ::3, 5:50:7],
        np.s_[:, 2000:, :],
    ):
        np.testing.assert_array_equal(reader[key], want[key])
    assert reader.ndim == 3


def test_threads_read_at_once(tmp_path, rgb):
    tifffile.imwrite(tmp_path / "x.tif", rgb, photometric="rgb", tile=(64, 64), compression="deflate")
    reader = TiffReader(tmp_path / "x.tif")
    starts = np.random.default_rng(0).integers(0, 600, (200, 2))
    with ThreadPoolExecutor(8) as pool:
        windows = pool.map(lambda at: reader[:, at[0] : at[0] + 99, at[1] : at[1] + 99], starts)
        for (y, x), window in zip(starts, windows, strict=True):
            np.testing.assert_array_equal(window, rgb.transpose(2, 0, 1)[:, y : y + 99, x : x + 99])


def test_ome_zarr_of_version_4(tmp_path, rgb):
    group = zarr.create_group(tmp_path / "x.zarr", zarr_format=2)
    group.create_array("0", shape=(700, 1100, 3), chunks=(256, 256, 3), dtype=np.uint8)[:] = rgb
    axes = [{"name": "y", "unit": "micrometer"}, {"name": "x", "unit": "micrometer"}, {"name": "c"}]
    scale = {"type": "scale", "scale": [0.5, 0.5, 1]}
    group.attrs["multiscales"] = [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}]
    image, mpp = read_image(tmp_path / "x.zarr")
    np.testing.assert_array_equal(image, rgb.transpose(2, 0, 1))
    assert mpp == pytest.approx(0.5)


def test_ome_zarr(tmp_path, rgb):
    group = zarr.create_group(tmp_path / "x.zarr", zarr_format=3)
    array = group.create_array("0", shape=(1, 3, 700, 1100), chunks=(1, 3, 256, 256), dtype=np.uint8)
    array[0] = rgb.transpose(2, 0, 1)
    axes = [{"name": "z"}, {"name": "c"}, *({"name": n, "unit": "micrometer"} for n in "yx")]
    scale = {"type": "scale", "scale": [1, 1, 0.25, 0.25]}
    group.attrs["ome"] = {
        "multiscales": [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}]
    }
    image, mpp = read_image(tmp_path / "x.zarr")
    np.testing.assert_array_equal(image, rgb.transpose(2, 0, 1))
    assert mpp == pytest.approx(0.25)
    for axis in axes:
        axis.pop("unit", None)
    group.attrs["ome"] = {
        "multiscales": [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}]
    }
    assert read_image(tmp_path / "x.zarr")[1] is None


@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
def test_photographs(tmp_path, rgb, name):
    import imagecodecs

    flat = np.full_like(rgb, 200)
    imagecodecs.imwrite(tmp_path / name, flat)
    image, mpp = read_image(str(tmp_path / name))
    assert np.abs(np.asarray(image).astype(int) - 200).max() <= 2
    assert mpp is None


@pytest.mark.real_data
def test_a_real_slide_by_both_readers(shared_data):
    path = shared_data / "slides" / "CMU-1-Small-Region.svs"
    image, mpp = read_image(path)
    assert image.shape == (3, 2967, 2220)
    assert mpp == 0.499
    by_openslide = OpenSlideReader(path)
    assert by_openslide.mpp == 0.499
    box = np.s_[:, 1000:1500, 1000:1500]
    # two JPEG decoders round differently
    assert np.abs(np.asarray(image[box]).astype(int) - by_openslide[box]).max() <= 3


# what goes wrong


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image .*nothing\.tif \(looked in"):
        read_image(tmp_path / "nothing.tif")


@pytest.mark.parametrize("name", ["x.tif", "x.ndpi"])
def test_no_image_at_all(tmp_path, name):
    (tmp_path / name).write_text("no image")
    with pytest.raises(ValueError, match=r"read.*Convert it to a tiled OME-TIFF"):
        read_image(tmp_path / name)


def test_folder_that_is_no_ome_zarr(tmp_path):
    with pytest.raises(ValueError, match="no OME-Zarr image"):
        read_image(tmp_path)
    group = zarr.create_group(tmp_path / "x.zarr")
    group.attrs["title"] = "x"
    with pytest.raises(ValueError, match=r"attributes \['title'\], but no 'multiscales'"):
        read_image(tmp_path / "x.zarr")
    group.attrs["spatialdata_attrs"] = {"version": "0.2"}
    with pytest.raises(ValueError, match=r"is a SpatialData.*read_zarr"):
        read_image(tmp_path / "x.zarr")


def test_grey_deep_and_stacked_files(tmp_path, rgb):
    tifffile.imwrite(tmp_path / "grey.tif", rgb[..., 0], tile=(256, 256))
    tifffile.imwrite(tmp_path / "deep.tif", rgb.astype(np.uint16), photometric="rgb")
    tifffile.imwrite(tmp_path / "stack.ome.tif", np.stack([rgb, rgb]), photometric="rgb", **ome(0.5, axes="ZYXS"))
    with pytest.raises(ValueError, match=r"grey\.tif has shape \(700, 1100\).*three colours"):
        read_image(tmp_path / "grey.tif")
    with pytest.raises(TypeError, match=r"deep\.tif is of uint16.*// 256"):
        read_image(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match=r"axes 'ZYXS'.*Save one plane"):
        read_image(tmp_path / "stack.ome.tif")


# arrays


def test_arrays_of_any_layout(rgb):
    want = rgb.transpose(2, 0, 1)
    rgba = np.concatenate([rgb, rgb[..., :1]], axis=2)
    layouts = (rgb, want, rgba, rgba.transpose(2, 0, 1), da.from_array(rgb, chunks=(100, 100, 1)))
    for layout in (*layouts, DataArray(rgb.transpose(1, 2, 0), dims=("x", "c", "y"))):
        image = as_rgb(layout)
        assert image.numblocks[0] == 1
        np.testing.assert_array_equal(image, want)


def test_arrays_that_are_no_rgb(rgb):
    with pytest.raises(TypeError, match=r"is a list; hand in a path, or a numpy"):
        as_rgb([[1]])
    with pytest.raises(TypeError, match=r"of float64.*\(image \* 255\)"):
        as_rgb(rgb / 255)
    with pytest.raises(ValueError, match=r"shape \(700, 1100\).*grey"):
        as_rgb(rgb[..., 0])
    with pytest.raises(ValueError, match=r"shape \(700, 1100, 2\)"):
        as_rgb(rgb[..., :2])
    with pytest.raises(ValueError, match=r"first or the last axis may be colour.*DataArray"):
        as_rgb(rgb[:3])
    with pytest.raises(ValueError, match=r"dimensions \('row', 'column', 'c'\).*rename"):
        as_rgb(DataArray(rgb, dims=("row", "column", "c")))
