"""What ``nichekd predict SLIDE`` says of input that it can't use: one line, exit code 2, and nothing is written."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile

import nichekd as nk

POINTS = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [10.0, 10.0]}, "properties": {}}
SIDE = 40.0  # px, far more than a nucleus has
SQUARE = [[0.0, 0.0], [SIDE * 20, 0.0], [SIDE * 20, SIDE * 20], [0.0, SIDE * 20], [0.0, 0.0]]
REGION = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [SQUARE]}, "properties": {}}


@pytest.fixture(scope="module")
def bad(clinic, slide_writer, tmp_path_factory):
    """A folder of things that are wrong, beside the student and the slide that are not."""
    folder = tmp_path_factory.mktemp("bad")
    small = np.ascontiguousarray(clinic.rgb[:300, :300])
    (folder / "letter.svs").write_text("Dear colleague, please find attached the slide.")
    slide_writer(folder / "whole.ome.tif", small)
    whole = (folder / "whole.ome.tif").read_bytes()
    (folder / "cut.ome.tif").write_bytes(whole[: len(whole) // 2])
    tifffile.imwrite(folder / "unsaid.tif", small, photometric="rgb", tile=(128, 128))
    slide_writer(folder / "absurd.ome.tif", small, 353.0)
    slide_writer(folder / "glass.ome.tif", np.full_like(small, 250))
    slide_writer(folder / "pink.ome.tif", np.full_like(small, (235, 180, 215)))
    (folder / "folder").mkdir()
    (folder / "points.geojson").write_text(json.dumps([POINTS]))
    (folder / "region.geojson").write_text(json.dumps([REGION]))
    (folder / "cut.geojson").write_text('{"type": "FeatureColl')
    cells = nk.datasets.simulate(20, K=2, mpp=0.5)
    cells.write(folder / "cells.zarr")
    cells["table"].write_h5ad(folder / "cells.h5ad")
    student = nk.models.NicheStudent.load(clinic.student)
    for name, changes in (("uni2", {"encoder": "uni2"}), ("other", {"fingerprint": "0" * 16})):
        config = replace(student.config, features=student.config.features | changes)
        other = nk.models.NicheStudent(config)
        other.load_state_dict(student.state_dict())
        other.save(folder / name)
    (folder / "student").symlink_to(clinic.student)
    (folder / "slide.ome.tif").symlink_to(clinic.slide)
    return folder


def one_line(err: str) -> str:
    """What stderr says; more than a line fails."""
    (line,) = [line for line in err.splitlines() if line.strip()]
    return line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.svs"], "There is no nowhere.svs"),
        (["letter.svs"], "letter.svs is no image"),
        (["cut.ome.tif"], "is truncated"),
        (["folder"], "neither an OME-Zarr image nor a SpatialData"),
        (["unsaid.tif"], "does not say its µm per pixel. Hand it in: --mpp."),
        (["absurd.ome.tif"], "353 µm per pixel"),
        (["slide.ome.tif", "--mpp", 40], "--mpp is 40 µm per pixel"),
        (["slide.ome.tif", "--mpp", -1], "--mpp is -1 µm per pixel"),
        (["glass.ome.tif"], "a label of the slide? Nuclei found elsewhere come in by --nuclei."),
        (["pink.ome.tif"], "No nuclei in"),
        (["slide.ome.tif", "slide.ome.tif"], "is a slide itself"),
        (["slide.ome.tif", "--use-rep", "X_color"], "has no cells yet"),
        (["slide.ome.tif", "--nuclei", "points.geojson"], "are no polygons"),
        (["slide.ome.tif", "--nuclei", "cut.geojson"], "not GeoJSON, or cut off"),
        (["slide.ome.tif", "--nuclei", "region.geojson"], "median area"),
        (["slide.ome.tif", "--nuclei", "nowhere.geojson"], "nowhere.geojson"),
        (["cells.zarr", "--nuclei", "points.geojson"], "has cells already"),
        (["cells.h5ad"], "cells.h5ad has none. Name the IMAGE"),
        (["cells.zarr", "--table-key", "none"], "no table 'none'"),
        (["cells.zarr", "--weights", "w.pt", "--use-rep", "X"], "no weights are needed"),
        (["slide.ome.tif", "--device", "abacus"], "abacus"),
    ],
)
def test_slides_and_what_comes_with_them(arguments, says, bad, nichekd, monkeypatch, tmp_path):
    monkeypatch.chdir(bad)
    result = nichekd("--quiet", "predict", *arguments, "--student", "student", "--out", tmp_path / "new" / "out")
    assert (result.code, says in result.err) == (2, True), result.err
    assert one_line(result.err).startswith("Error: ")
    assert not list(tmp_path.glob("new/*"))


@pytest.mark.parametrize(
    ("student", "says"),
    [
        ("nobody", "There is no student nobody"),
        ("folder/nobody", "There is no student folder/nobody"),
        ("folder", "lacks ['config.json', 'student.safetensors']"),
        ("letter.svs", "is a file"),
        ("other", "with other weights"),
        ("uni2", "encoder 'uni2', whose weights are not here"),
    ],
)
def test_students(student, says, bad, nichekd, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(bad)
    result = nichekd("--quiet", "predict", "slide.ome.tif", "--student", student, "--out", tmp_path / "out")
    assert (result.code, says in result.err) == (2, True), result.err
    assert one_line(result.err).startswith("Error: ")
    assert not (tmp_path / "out").exists()


def test_student_of_unknown_features_reads_no_slide(bad, clinic, nichekd, tmp_path):
    nk.models.NicheStudent.load(clinic.student).configure(features={}).save(tmp_path / "student")
    call = ["--quiet", "predict", clinic.slide, "--student", tmp_path / "student", "--out", tmp_path / "out"]
    result = nichekd(*call)
    assert result.code == 2
    assert "carries no encoder" in one_line(result.err)


@pytest.mark.parametrize("confidence", [-0.1, 1.5])
def test_confidence_is_a_probability(confidence, clinic, nichekd, tmp_path):
    call = ["predict", clinic.slide, "--student", clinic.student, "--out", tmp_path / "out"]
    assert nichekd(*call, "--min-confidence", confidence).code == 2


def test_where_results_can_not_go(clinic, nichekd, tmp_path):
    call = ["--quiet", "predict", clinic.slide, "--student", clinic.student, "--out"]
    (tmp_path / "file").write_text("mine")
    assert "is a file; name a folder" in nichekd(*call, tmp_path / "file").err
    assert "file is a file, which can hold no folder" in one_line(nichekd(*call, tmp_path / "file" / "out").err)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("{")
    result = nichekd(*call, tmp_path / "out")
    assert result.code == 2
    assert "run.json is damaged" in one_line(result.err)


def test_brought_nuclei_are_not_written_over(clinic, nichekd, tmp_path):
    mine = tmp_path / "niches.geojson"
    mine.write_text(json.dumps([REGION]))
    call = ["--quiet", "predict", clinic.slide, "--student", clinic.student, "--nuclei", mine, "--overwrite", "--out"]
    result = nichekd(*call, tmp_path)
    assert result.code == 2
    assert "would take the place of the input" in one_line(result.err)
    assert json.loads(mine.read_text()) == [REGION]


@pytest.mark.parametrize("name", ["thesis.tex", "features"])
def test_work_of_somebody_else_is_left_alone(name, clinic, nichekd, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / name).write_text("mine")
    call = ["--quiet", "predict", clinic.slide, "--student", clinic.student, "--overwrite", "--out", tmp_path]
    result = nichekd(*call)
    assert result.code == 2
    assert f"holds {name}, which nichekd did not leave there" in one_line(result.err)
    assert [path.read_text() for path in (tmp_path / "work").iterdir()] == ["mine"]


def test_a_real_process_shows_no_traceback(bad):
    run = [sys.executable, "-c", "from nichekd.cli import app; app()", "info", "letter.svs"]
    result = subprocess.run(run, capture_output=True, text=True, check=False, cwd=bad)
    seen = SimpleNamespace(code=result.returncode, said=result.stderr.strip().splitlines())
    assert seen.code == 2
    assert len(seen.said) == 1
    assert seen.said[0].startswith("Error: letter.svs is no image")
