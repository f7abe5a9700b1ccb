"""From a slide file to a niche map, in the shell."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import spatialdata
from shapely.geometry import shape

import nichekd as nk

RESULTS = ["cells.parquet", "niches.geojson", "niches.png", "report.html", "result.zarr", "run.json"]

# a process that is killed when it has encoded this many batches of 64 crops; 1,024 cells are safe then
KILLED = """
import os, signal
from nichekd.cli import app
from nichekd.models import Encoder
encode, batches = Encoder.encode, []
def killed(self, *crops, **options):
    batches.append(crops)
    if len(batches) > 19:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(self, *crops, **options)
Encoder.encode = killed
app()
"""


class Page(HTMLParser):
    """What a page loads, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data):
        self.text += data


def page_of(out):
    return Page((out / "report.html").read_text(encoding="utf-8"))


# what it leaves


def test_a_row_a_cell(finished):
    cells = pd.read_parquet(finished.out / "cells.parquet")
    adata = spatialdata.read_zarr(finished.out / "result.zarr")["table"]
    assert cells.columns.tolist() == [
        "cell_id", "x_um", "y_um", "niche", "max_probability", "entropy", "ood", "area_um2",
        "probability_0", "probability_1", "probability_2",
    ]  # fmt: skip
    assert cells["cell_id"].tolist() == adata.obs_names.tolist()
    np.testing.assert_array_equal(cells[["x_um", "y_um"]], adata.obsm["spatial"])
    np.testing.assert_array_equal(cells.filter(like="probability_"), adata.obsm["student_proba"][:, :3])
    np.testing.assert_array_equal(cells["max_probability"], cells.filter(regex="^probability_").max(axis=1))
    assert (cells["niche"].astype(str) == cells.filter(regex="^probability_").to_numpy().argmax(1).astype(str)).all()
    assert cells["area_um2"].between(8, 400).all()


def test_results_are_of_one_piece(finished):
    assert sorted(path.name for path in finished.out.iterdir()) == RESULTS
    cells = pd.read_parquet(finished.out / "cells.parquet")
    assert f"{len(cells):,} cells" in finished.said
    assert "report.html" in finished.said
    features = json.loads((finished.out / "niches.geojson").read_text())["features"]
    assert len(features) == len(cells) > 1024
    assert (finished.out / "niches.png").read_bytes().startswith(b"\x89PNG")
    result = spatialdata.read_zarr(finished.out / "result.zarr")
    assert nk.pl.niches(result) is not None, "it goes on in Python"
    about = json.loads((finished.out / "run.json").read_text())
    assert about["made_of"]["mpp"] == ["0.5", "0.5"]
    assert about["finished"]


def test_report_is_one_self_contained_page(finished):
    page = page_of(finished.out)
    assert len(page.loads) == 3
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.loads)
    assert "script" not in page.tags
    assert "http" not in page.text


def test_report_says_what_there_is(finished, clinic):
    page = page_of(finished.out)
    cells = pd.read_parquet(finished.out / "cells.parquet")
    for n in cells["niche"].value_counts():
        assert f"{n:,}" in page.text
    assert f"nichekd predict {clinic.slide} --student {clinic.student} --out {finished.out}" in page.text
    for said in (
        "color (42 features)",
        "32 px at 0.5 µm per pixel",
        "found no factor that helps",
        "by watershed",
        "not for diagnosis",
    ):
        assert said in page.text
    adata = spatialdata.read_zarr(finished.out / "result.zarr")["table"]
    warned = adata.uns["nichekd"]["predict_niches"].get("warnings", [])
    assert all(sentence in page.text for sentence in warned)
    assert ("Read this first" in page.text) == bool(len(warned))


# killed, full, twice


def test_goes_on_where_it_was_killed(clinic, finished, tmp_path, nichekd, monkeypatch, unpictured):
    out = tmp_path / "out"
    call = ["predict", clinic.slide, "--student", clinic.student, "--out", out]
    killed = subprocess.run([sys.executable, "-c", KILLED, *map(str, call)], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert [path.name for path in out.iterdir()] == ["work"]
    assert "unfinished" in nichekd("info", out).out
    assert "1,024 of" in nichekd("info", out / "work" / "features").out

    other = tmp_path / "other"  # which is not gone on with
    student = nk.models.NicheStudent.load(clinic.student)
    student.configure(calibration=2.0).save(other)
    refused = nichekd("--quiet", *call[:-3], other, *call[-2:])
    assert refused.code == 2
    assert "unfinished run of something else: student is" in refused.err
    assert str(other) in refused.err

    monkeypatch.setattr(nk.pp, "segment_nuclei", None)
    result = nichekd(*call)
    assert result.code == 0, result.err
    assert "1024 cells are in" in result.err
    assert sorted(path.name for path in out.iterdir()) == RESULTS
    pd.testing.assert_frame_equal(
        pd.read_parquet(out / "cells.parquet"), pd.read_parquet(finished.out / "cells.parquet")
    )


def test_full_disk_and_a_second_run(clinic, tmp_path, nichekd, monkeypatch, unpictured):
    out = tmp_path / "out"
    call = ["--quiet", "predict", clinic.slide, "--student", clinic.student, "--out", out]
    encode, seen = nk.pp.histology_features, []

    def twice(*cells, **options):
        seen.append(nichekd(*call))
        return encode(*cells, **options)

    def full(_, path, **__):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(nk.pp, "histology_features", twice)
        patch.setattr(nk.io, "write_geojson", full)
        result = nichekd(*call)
    (second,) = seen
    assert second.code == 2
    assert f"Another run is writing to {out}" in second.err
    assert result.code == 1
    (line,) = result.err.strip().splitlines()[-1:]
    assert line.startswith("Error: No space is left on the disk")
    assert line.endswith("once there is room, the same call goes on from there.")
    assert sorted(path.name for path in (out / "work").iterdir()) == ["features", "nuclei.zarr", "run.json", "run.lock"]

    monkeypatch.setattr(nk.pp, "segment_nuclei", None)
    monkeypatch.setattr(nk.models.Encoder, "encode", None)
    monkeypatch.setattr(nk.models.Encoder, "check", lambda *_: 42)  # it is tried on a white crop
    again = nichekd(*call)
    assert again.code == 0, again.err
    assert sorted(path.name for path in out.iterdir()) == RESULTS


def test_finished_is_not_done_again_unasked(finished, clinic, nichekd):
    before = {path.name: path.stat().st_mtime_ns for path in finished.out.iterdir()}
    result = nichekd("--quiet", "predict", clinic.slide, "--student", clinic.student, "--out", finished.out)
    assert result.code == 2
    assert "holds a finished run" in result.err
    assert "--overwrite" in result.err
    assert before == {path.name: path.stat().st_mtime_ns for path in finished.out.iterdir()}


# other ways


def test_brought_nuclei_and_cells_of_no_niche(clinic, tmp_path, nichekd):
    found = nichekd("segment", clinic.slide, "--out", tmp_path / "nuclei.geojson")
    assert found.code == 0, found.err
    out = tmp_path / "out"
    out.mkdir()
    (out / "niches.png").write_text("mine")
    (out / "notes.txt").write_text("mine, too")
    call = ["predict", clinic.slide, "--student", clinic.student, "--nuclei", tmp_path / "nuclei.geojson"]
    call += ["--min-confidence", 0.5, "--no-full-image", "--out", out]
    assert "niches.png" in nichekd("--quiet", *call).err
    result = nichekd(*call, "--overwrite")
    assert result.code == 0, result.err
    assert (out / "notes.txt").read_text() == "mine, too"

    cells = pd.read_parquet(out / "cells.parquet")
    assert f"{len(cells):,} nuclei" in found.out
    assert cells["niche"].isna().equals(cells["max_probability"] < 0.5)
    assert cells["niche"].isna().any()
    page = page_of(out)
    assert "no niche" in page.text
    assert "by shapes" in page.text

    sdata = spatialdata.read_zarr(out / "result.zarr")
    assert nk.pl.niches(sdata) is not None
    assert list(sdata.images) == ["he_overview"]
    overview = np.asarray(sdata["he_overview"]).astype(float)
    assert overview.shape[1:] == tuple(-(-side // 4) for side in clinic.rgb.shape[:2])  # 2 µm/px, all of the slide
    mean = clinic.rgb[:8, :8:2].astype(float).mean(axis=(0, 1))
    np.testing.assert_allclose(overview[:, :2, :2].mean(axis=(1, 2)), mean, atol=30)
    assert spatialdata.transformations.get_transformation(sdata["he_overview"]).to_affine_matrix(
        ("x", "y"), ("x", "y")
    )[0, 0] == pytest.approx(2.0)
    nk.io.write_geojson(sdata, tmp_path / "again.geojson")  # in pixels of the slide, not of its overview
    first, again = (
        json.loads(path.read_text())["features"][0] for path in (out / "niches.geojson", tmp_path / "again.geojson")
    )
    np.testing.assert_allclose(shape(again["geometry"]).bounds, shape(first["geometry"]).bounds, atol=0.02)


def test_cells_that_there_are_and_a_student_of_a_hub(clinic, tmp_path, nichekd, monkeypatch, unpictured):
    snapshot = tmp_path / "hub" / "models--somebody--niches" / "snapshots" / "0"
    shutil.copytree(clinic.student, snapshot)
    (tmp_path / "hub" / "models--somebody--niches" / "refs").mkdir()
    (tmp_path / "hub" / "models--somebody--niches" / "refs" / "main").write_text("0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    sdata = nk.datasets.simulate(300, K=3, seed=1, mpp=0.5)
    sdata.write(tmp_path / "cells.zarr")
    out = tmp_path / "out"
    result = nichekd("predict", tmp_path / "cells.zarr", "--student", "somebody/niches", "--out", out)
    assert result.code == 0, result.err
    cells = pd.read_parquet(out / "cells.parquet")
    assert cells["cell_id"].tolist() == sdata["table"].obs_names.tolist()
    assert "area_um2" not in cells
    assert "brought along" in page_of(out).text
    absent = nichekd(
        "--quiet", "predict", tmp_path / "cells.zarr", "--student", "nobody/niches", "--out", tmp_path / "o"
    )
    assert absent.code == 2
    assert "no student of this name was found on the hub" in absent.err


def test_slide_to_a_table_alone(clinic, finished, tmp_path, nichekd):
    import anndata

    result = nichekd("predict", clinic.slide, "-s", clinic.student, "--out", tmp_path / "cells.h5ad")
    assert result.code == 0, result.err
    cells = pd.read_parquet(finished.out / "cells.parquet")
    assert anndata.read_h5ad(tmp_path / "cells.h5ad").obs["niche"].tolist() == cells["niche"].tolist()
