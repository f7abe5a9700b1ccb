from __future__ import annotations

import json
import shutil

import geopandas
import numpy as np
import pytest
import shapely
import spatialdata
import zarr

import nichekd as nk


@pytest.fixture(scope="module")
def nuclei(clinic, tmp_path_factory):
    """What ``nk.pp.segment_nuclei`` finds on the slide."""
    sdata = nk.io.slide(clinic.slide)
    nk.pp.segment_nuclei(sdata, n_jobs=1)
    return sdata


@pytest.mark.parametrize("command", ["predict", "segment", "info"])
def test_help_has_an_example(command, nichekd):
    shown = nichekd(command, "--help")
    assert shown.code == 0
    assert f"nichekd {command} slide.svs" in shown.out


# segment


def test_segment_writes_what_the_function_finds(clinic, nuclei, nichekd, tmp_path):
    for name in ("nuclei.parquet", "nuclei.zarr"):
        result = nichekd("segment", clinic.slide, "--jobs", 1, "--out", tmp_path / name)
        assert result.code == 0, result.err
        assert f"{nuclei['table'].n_obs:,} nuclei written to" in result.out
    frame = geopandas.read_parquet(tmp_path / "nuclei.parquet")
    assert frame.columns.tolist() == ["cell_id", "geometry", "x_um", "y_um", "area_um2"]
    assert frame["cell_id"].tolist() == nuclei["table"].obs_names.tolist()
    np.testing.assert_array_equal(frame[["x_um", "y_um"]], nuclei["table"].obsm["spatial"])
    np.testing.assert_allclose(frame.area, frame["area_um2"])
    sdata = spatialdata.read_zarr(tmp_path / "nuclei.zarr")
    assert sdata["table"].obs_names.equals(nuclei["table"].obs_names)
    assert sdata["he"]["scale0"]["image"].shape[1:] == clinic.rgb.shape[:2]


def test_segment_for_qupath(clinic, nuclei, nichekd, tmp_path):
    out = tmp_path / "nuclei.geojson"
    assert nichekd("segment", clinic.slide, "--min-area", 30, "--out", out).code == 0
    features = json.loads(out.read_text())["features"]
    assert 0 < len(features) < nuclei["table"].n_obs
    areas = shapely.area(shapely.from_geojson([json.dumps(feature["geometry"]) for feature in features]))
    assert areas.min() * 0.5**2 > 0.9 * 30, "in pixels of the slide, outlines smoothed"
    assert features[0]["properties"]["classification"]["name"] == "Nucleus"
    refused = nichekd("--quiet", "segment", clinic.slide, "--out", out)
    assert refused.code == 2
    assert "--overwrite" in refused.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["slide.ome.tif", "--out", "nuclei.csv"], "none of .geojson, .parquet, .zarr"),
        (["slide.ome.tif", "--method", "stardist", "--faint", 0.2, "--out", "n.parquet"], "go with watershed"),
        (["slide.ome.tif", "--model", "mine", "--out", "n.parquet"], "--model mine"),
        (["slide.ome.tif", "--faint", -1, "--out", "n.parquet"], "out of range"),
        (["slide.ome.tif", "--jobs", 0, "--out", "n.parquet"], "n_jobs=0"),
        (["slide.ome.tif", "--out", "slide.ome.tif"], "none of"),
        (["cells.h5ad", "--out", "n.parquet"], "is a table"),
        (["letter.svs", "--out", "n.parquet"], "is no image"),
    ],
)
def test_segment_says_what_is_wrong(arguments, says, clinic, nichekd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slide.ome.tif").symlink_to(clinic.slide)
    (tmp_path / "letter.svs").write_text("Dear colleague")
    (tmp_path / "cells.h5ad").write_text("nothing")
    before = sorted(tmp_path.iterdir())
    result = nichekd("--quiet", "segment", *arguments)
    assert (result.code, says in result.err) == (2, True), result.err
    assert sorted(tmp_path.iterdir()) == before


# info


def facts(result) -> dict[str, str]:
    assert result.code == 0, result.err
    rows = [line.split("  ", 1) for line in result.out.splitlines() if not line.startswith(" ")]
    return {name: value.strip() for name, value in rows}


def test_info_on_a_slide(clinic, nichekd, slide_writer, tmp_path):
    height, width, _ = clinic.rgb.shape
    found = facts(nichekd("info", clinic.slide))
    assert found["what"] == "slide, OME-TIFF, tiles of 256 × 256 px, uncompressed"
    assert found["size"].startswith(f"{width:,} × {height:,} px, {width / 2000:.2f} × {height / 2000:.2f} mm")
    assert found["µm per pixel"] == "0.5"
    assert found["levels"].startswith("2; ")
    slide_writer(tmp_path / "unsaid.ome.tif", clinic.rgb[:200, :200], None)
    assert "--mpp" in facts(nichekd("info", tmp_path / "unsaid.ome.tif"))["µm per pixel"]
    slide_writer(tmp_path / "absurd.ome.tif", clinic.rgb[:200, :200], 353.0)
    assert "as no microscope has" in facts(nichekd("info", tmp_path / "absurd.ome.tif"))["µm per pixel"]
    image = zarr.create_group(tmp_path / "x.zarr")
    image.create_array("0", data=np.moveaxis(clinic.rgb[:64, :64], -1, 0))
    scale = {"type": "scale", "scale": [1, 0.5, 0.5]}
    axes = [{"name": "c"}, *({"name": name, "unit": "micrometer"} for name in "yx")]
    datasets = [{"path": "0", "coordinateTransformations": [scale]}]
    image.attrs["ome"] = {"multiscales": [{"axes": axes, "datasets": datasets}]}
    assert facts(nichekd("info", tmp_path / "x.zarr"))["what"] == "slide, OME-Zarr"


@pytest.mark.real_data
def test_info_on_a_scanners_slide(shared_data, nichekd):
    found = facts(nichekd("info", shared_data / "slides" / "CMU-1-Small-Region.svs"))
    assert found["what"].startswith("slide, Aperio TIFF")
    assert found["size"] == "2,220 × 2,967 px, 1.11 × 1.48 mm"


def test_info_on_a_student(clinic, nichekd):
    found = facts(nichekd("info", clinic.student))
    student = nk.models.NicheStudent.load(clinic.student)
    assert found["what"].startswith("student")
    assert found["niches"] == "3: 0, 1, 2"
    assert found["image encoder"] == "color (42 features)"
    assert found["crop"] == "32 px at 0.5 µm per pixel, 16 µm wide"
    assert found["neighborhood radius"] == f"{student.config.radius:.2f} µm"
    assert "calibrate has not run, or found no factor" in found["probabilities"]


def test_info_names_a_licence_that_binds(clinic, nichekd, tmp_path):
    student = nk.models.NicheStudent.load(clinic.student)
    features = student.config.features | {"encoder": "uni2", "license": "CC-BY-NC-ND-4.0"}
    student.configure(features=features).save(tmp_path / "student")
    assert "non-commercial" in facts(nichekd("info", tmp_path / "student"))["note"]


def test_info_on_results(finished, nichekd, tmp_path):
    found = facts(nichekd("info", finished.out))
    assert found["what"].startswith("folder of nichekd predict, finished")
    assert "report.html" in found["results"]
    said = nichekd("info", finished.out / "result.zarr").out
    for word in (
        "image he",
        "0.5 µm per pixel",
        "shapes nuclei",
        "features X_color",
        "logits student_logits",
        "niches niche",
    ):
        assert word in said
    adata = spatialdata.read_zarr(finished.out / "result.zarr")["table"]
    adata.uns["nichekd"]["predict_niches"]["warnings"] = ["Another stain.", "Another tissue."]  # an array, once read
    adata.write_h5ad(tmp_path / "cells.h5ad")
    table = facts(nichekd("info", tmp_path / "cells.h5ad"))
    assert table["warnings"] == "Another stain. Another tissue."
    assert table["what"] == "AnnData table"
    assert table["niches niche"].startswith("3: 0 ")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere", "There is no"),
        ("letter.txt", "no image that tifffile or OpenSlide can read"),
        ("letter.h5ad", "no AnnData file, or a damaged one"),
        ("empty", "holds nothing"),
        ("cut", "no SpatialData, or a damaged one"),
        ("torn", "zarr.json is damaged"),
        ("student", "truncated or was changed"),
    ],
)
def test_info_on_anything_else(name, says, clinic, finished, nichekd, tmp_path):
    for letter in ("letter.txt", "letter.h5ad"):
        (tmp_path / letter).write_text("Dear colleague")
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "zarr.json").write_text("{")
    if name == "cut":
        shutil.copytree(finished.out / "result.zarr", tmp_path / "cut")
        for lost in (tmp_path / "cut" / "tables").rglob("zarr.json"):
            lost.write_text("{}")
    if name == "student":
        shutil.copytree(clinic.student, tmp_path / "student")
        weights = (tmp_path / "student" / "student.safetensors").read_bytes()
        (tmp_path / "student" / "student.safetensors").write_bytes(weights[:-9])
    result = nichekd("--quiet", "info", tmp_path / name)
    assert (result.code, says in result.err) == (2, True), result.err
    assert "Traceback" not in result.err
