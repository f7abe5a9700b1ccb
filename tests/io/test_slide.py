"""Slides that have nothing but their H&E."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata
import tifffile
import zarr
from spatialdata.transformations import get_transformation
from xarray import DataArray, DataTree

import nichekd as nk

MICRONS = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}
PER_CM = {"resolution": (4e4, 4e4), "resolutionunit": "centimeter"}  # 0.25 µm per px


@pytest.fixture(scope="module")
def rgb():
    return np.random.default_rng(0).integers(0, 255, (300, 410, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def pyramid(rgb, tmp_path_factory):
    """An OME-TIFF of three levels, as bioformats2raw and QuPath write them."""
    path = tmp_path_factory.mktemp("slide") / "slide.ome.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(rgb, photometric="rgb", subifds=2, tile=(128, 128), metadata=MICRONS)
        for step in (2, 4):
            tiff.write(rgb[::step, ::step], photometric="rgb", subfiletype=1, tile=(128, 128))
    return path


def levels(sdata) -> list[DataArray]:
    return [node["image"] for node in sdata["he"].children.values()]


def to_um(element) -> np.ndarray:
    return get_transformation(element, "global").to_affine_matrix(("x", "y"), ("x", "y"))


def test_levels_of_the_file_are_scales_in_um(pyramid, rgb):
    sdata = nk.io.slide(pyramid)
    assert isinstance(sdata["he"], DataTree)
    assert not sdata.tables
    assert sdata.coordinate_systems == ["global"]
    for step, level in zip((1, 2, 4), levels(sdata), strict=True):
        np.testing.assert_array_equal(level, rgb[::step, ::step].transpose(2, 0, 1))
        assert to_um(level)[0, 0] * level.sizes["x"] == pytest.approx(0.5 * 410)
        assert to_um(level)[1, 1] * level.sizes["y"] == pytest.approx(0.5 * 300)
    np.testing.assert_allclose(to_um(sdata["he"]), np.diag([0.5, 0.5, 1]))


def test_survives_a_reload(pyramid, tmp_path):
    sdata = nk.io.slide(pyramid, image_key="slide")
    sdata.write(tmp_path / "x.zarr")
    back = spatialdata.read_zarr(tmp_path / "x.zarr")
    np.testing.assert_allclose(to_um(back["slide"]), np.diag([0.5, 0.5, 1]))
    for one, other in zip(sdata["slide"].children.values(), back["slide"].children.values(), strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
    assert back.attrs["nichekd_images"]["slide"]["mpp"] == 0.5


def test_nothing_is_read_until_asked_for(pyramid, monkeypatch):
    def fail(*_):
        raise AssertionError("a tile was decoded")

    monkeypatch.setattr("nichekd.io._tile_readers.TiffReader.read", fail)
    sdata = nk.io.slide(pyramid)
    with pytest.raises(AssertionError, match="a tile was decoded"):
        sdata["he"]["scale2"]["image"].compute()


def test_a_file_of_one_level_is_one_scale(tmp_path, rgb):
    tifffile.imwrite(tmp_path / "x.tif", rgb, photometric="rgb", tile=(128, 128), **PER_CM)
    sdata = nk.io.slide(tmp_path / "x.tif")
    assert isinstance(sdata["he"], DataArray)
    np.testing.assert_array_equal(sdata["he"], rgb.transpose(2, 0, 1))
    np.testing.assert_allclose(to_um(sdata["he"]), np.diag([0.25, 0.25, 1]))


@pytest.mark.parametrize("name", ["x.ndpi", "x.svslide"])
def test_openslide_reads_scanners_formats(tmp_path, rgb, name):
    """By its content the file is a plain pyramid, which OpenSlide knows; its name sends it there."""
    with tifffile.TiffWriter(tmp_path / name) as tiff:
        tiff.write(rgb, photometric="rgb", tile=(128, 128), metadata=None, **PER_CM)
        tiff.write(rgb[::2, ::2], photometric="rgb", tile=(128, 128), subfiletype=1, metadata=None)
    sdata = nk.io.slide(tmp_path / name)
    full, half = levels(sdata)
    np.testing.assert_array_equal(full, rgb.transpose(2, 0, 1))
    np.testing.assert_array_equal(half, rgb[::2, ::2].transpose(2, 0, 1))
    assert to_um(sdata["he"])[0, 0] == pytest.approx(0.25)


def test_ome_zarr(tmp_path, rgb):
    group = zarr.create_group(tmp_path / "x.zarr", zarr_format=2)
    axes = [{"name": "c"}, *({"name": n, "unit": "micrometer"} for n in "yx")]
    datasets = []
    for i, step in enumerate((1, 2)):
        level = rgb[::step, ::step].transpose(2, 0, 1)
        group.create_array(str(i), shape=level.shape, chunks=(3, 128, 128), dtype=np.uint8)[:] = level
        scale = {"type": "scale", "scale": [1, 0.5 * step, 0.5 * step]}
        datasets.append({"path": str(i), "coordinateTransformations": [scale]})
    group.attrs["multiscales"] = [{"axes": axes, "datasets": datasets}]
    sdata = nk.io.slide(tmp_path / "x.zarr")
    np.testing.assert_array_equal(levels(sdata)[1], rgb[::2, ::2].transpose(2, 0, 1))
    assert to_um(sdata["he"])[0, 0] == pytest.approx(0.5)


def test_levels_of_other_proportions_are_no_scales(tmp_path, rgb):
    """As the macro photograph that some writers put beside the slide."""
    with tifffile.TiffWriter(tmp_path / "x.ome.tif") as tiff:
        tiff.write(rgb, photometric="rgb", subifds=2, tile=(128, 128), metadata=MICRONS)
        tiff.write(rgb[::2, ::2], photometric="rgb", subfiletype=1, tile=(128, 128))
        tiff.write(rgb[:50, :400], photometric="rgb", subfiletype=1, tile=(128, 128))
    assert len(levels(nk.io.slide(tmp_path / "x.ome.tif"))) == 2


def test_mpp_overrules_the_metadata_and_says_so(pyramid):
    with pytest.warns(UserWarning, match=r"0\.5 µm per pixel by its metadata; 0\.25 is taken"):
        sdata = nk.io.slide(pyramid, mpp=0.25)
    assert to_um(sdata["he"])[0, 0] == 0.25
    nk.io.slide(pyramid, mpp=0.505)  # rounding is no contradiction


@pytest.mark.real_data
def test_a_real_slide(shared_data):
    sdata = nk.io.slide(shared_data / "slides" / "CMU-1-Small-Region.svs")
    assert sdata["he"].shape == (3, 2967, 2220)
    assert to_um(sdata["he"])[0, 0] == pytest.approx(0.499)


# what goes wrong


def test_mpp_that_nobody_knows(tmp_path, rgb):
    tifffile.imwrite(tmp_path / "x.tif", rgb, photometric="rgb", tile=(128, 128))
    with pytest.raises(ValueError, match=r"x\.tif does not say its µm per pixel.*nk\.io\.slide\(path, mpp="):
        nk.io.slide(tmp_path / "x.tif")
    assert to_um(nk.io.slide(tmp_path / "x.tif", mpp=0.25)["he"])[0, 0] == 0.25


@pytest.mark.parametrize("unit", ["pixel", "reference frame"])
def test_units_that_are_none_say_nothing(tmp_path, rgb, unit):
    sides = MICRONS | {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    tifffile.imwrite(tmp_path / "x.ome.tif", rgb, photometric="rgb", ome=True, metadata=sides)
    with pytest.raises(ValueError, match="does not say its µm per pixel"):
        nk.io.slide(tmp_path / "x.ome.tif")


def test_absurd_mpp(tmp_path, rgb):
    sides = MICRONS | {"PhysicalSizeX": 353.0, "PhysicalSizeY": 353.0}
    tifffile.imwrite(tmp_path / "x.ome.tif", rgb, photometric="rgb", ome=True, metadata=sides)
    with pytest.raises(ValueError, match=r"By its metadata, .*x\.ome\.tif is 353 µm per pixel.*0\.05 to 5.*mpp="):
        nk.io.slide(tmp_path / "x.ome.tif")
    for mpp in (0.0, -0.5, 40.0, np.nan):
        with pytest.raises(ValueError, match=r"mpp= is .* µm per pixel; a microscope image has"):
            nk.io.slide(tmp_path / "x.ome.tif", mpp=mpp)


@pytest.mark.parametrize("name", ["a b", "", "a/b"])
def test_a_name_that_no_image_can_have(tmp_path, name):
    """Said before the file is looked for."""
    with pytest.raises(ValueError, match=r"image_key=.* can't name an element"):
        nk.io.slide(tmp_path / "x.svs", image_key=name)
    with pytest.raises(TypeError, match="image_key=3 is a int"):
        nk.io.slide(tmp_path / "x.svs", image_key=3)


@pytest.mark.parametrize("name", ["x.svs", "x.ndpi", "x.mrxs", "x.ome.tif"])
def test_not_a_slide(tmp_path, name):
    (tmp_path / name).write_text("Dear colleague, please find attached the slide.")
    with pytest.raises(ValueError, match=r"read.*Convert it to a tiled OME-TIFF"):
        nk.io.slide(tmp_path / name)


def test_no_slide(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image .*x\.svs"):
        nk.io.slide(tmp_path / "x.svs")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("share", [0.001, 0.3, 0.6, 0.9, 0.999])
def test_truncated_pyramid(pyramid, tmp_path, share):
    whole = pyramid.read_bytes()
    (tmp_path / "cut.ome.tif").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"cut\.ome\.tif is (truncated|a TIFF without a page)"):
        nk.io.slide(tmp_path / "cut.ome.tif")


@pytest.mark.real_data
@pytest.mark.parametrize("share", [0.01, 0.5])
def test_truncated_svs(shared_data, tmp_path, share):
    """Its directory of pages is behind the pixels, and goes first."""
    whole = (shared_data / "slides" / "CMU-1-Small-Region.svs").read_bytes()
    (tmp_path / "cut.svs").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"cut\.svs.*(truncated|read)"):
        nk.io.slide(tmp_path / "cut.svs")


def test_truncated_by_openslide(tmp_path, rgb):
    tifffile.imwrite(tmp_path / "x.ndpi", rgb, photometric="rgb", tile=(128, 128), compression="jpeg", metadata=None)
    whole = (tmp_path / "x.ndpi").read_bytes()
    (tmp_path / "x.ndpi").write_bytes(whole[: int(0.6 * len(whole))])
    with pytest.raises(ValueError, match=r"OpenSlide can't read .*x\.ndpi: .*[Ss]hort read"):
        nk.io.slide(tmp_path / "x.ndpi")


def test_damage_that_openslide_finds_late(tmp_path, rgb):
    with tifffile.TiffWriter(tmp_path / "x.tif") as tiff:
        tiff.write(rgb, photometric="rgb", tile=(128, 128), compression="jpeg", metadata=None, **PER_CM)
        tiff.write(rgb[::2, ::2], photometric="rgb", tile=(128, 128), compression="jpeg", subfiletype=1, metadata=None)
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        page = tiff.pages.first
        start, size = page.dataoffsets[-1], page.databytecounts[-1]
    whole = bytearray((tmp_path / "x.tif").read_bytes())
    whole[start : start + size] = bytes(size)
    (tmp_path / "x.ndpi").write_bytes(whole)
    with pytest.raises(ValueError, match=r"x\.ndpi is truncated or damaged.*Copy it again"):
        nk.io.slide(tmp_path / "x.ndpi")
