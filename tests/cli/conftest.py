"""A slide, a student, and what the one finds on the other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

import nichekd as nk
from nichekd._report import _write
from nichekd.cli import app

if TYPE_CHECKING:
    from pathlib import Path

MPP = 0.5
N_CELLS = 1150  # more than a feature store commits at once, 1,024


def nichekd(*arguments: object) -> SimpleNamespace:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr, exception=result.exception)


def write_slide(path: Path, rgb: np.ndarray, mpp: float | None = MPP) -> None:
    """A tiled OME-TIFF of two levels, as scanners' software exports them."""
    sides = {}
    if mpp is not None:
        sides = {"PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": mpp, "PhysicalSizeYUnit": "µm"}
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(rgb, photometric="rgb", subifds=1, tile=(256, 256), metadata=sides)
        tiff.write(rgb[::2, ::2], photometric="rgb", subfiletype=1, tile=(256, 256))


@pytest.fixture(name="nichekd")
def run_nichekd():
    """:func:`nichekd`; test modules can't import from here."""
    return nichekd


@pytest.fixture(scope="session")
def slide_writer():
    return write_slide


@pytest.fixture(scope="session")
def clinic(tmp_path_factory):
    """Paths of a slide (0.5 µm/px), of a student that was taught on its tissue, and its pixels."""
    folder = tmp_path_factory.mktemp("clinic")
    sdata = nk.datasets.simulate(N_CELLS, K=3, seed=0, mpp=MPP)
    rgb = np.moveaxis(np.asarray(sdata["he"].data), 0, -1)
    write_slide(folder / "slide.ome.tif", rgb)
    nk.pp.histology_features(sdata, encoder="color", crop_px=32)
    few = nk.tl.FitSettings(max_epochs=2, min_steps=0, batch_size=512, validation=0, n_components=6)
    nk.tl.distill(sdata, teacher="niche_true", fit=few).save(folder / "student")
    return SimpleNamespace(folder=folder, slide=folder / "slide.ome.tif", student=folder / "student", rgb=rgb)


@pytest.fixture(scope="session")
def finished(clinic, tmp_path_factory):
    """``nichekd predict SLIDE``, from beginning to end: the folder, and what was said."""
    out = tmp_path_factory.mktemp("finished") / "out"
    result = nichekd("predict", clinic.slide, "--student", clinic.student, "--out", out)
    assert result.code == 0, result.err
    return SimpleNamespace(out=out, said=result.out, err=result.err)


@pytest.fixture
def unpictured(monkeypatch):
    """Reports without their figures, which take most of the time."""
    monkeypatch.setattr(_write, "_pictures", lambda *_: dict.fromkeys(("map", "uncertainty", "crops", "field"), ""))
