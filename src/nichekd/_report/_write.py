from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import datetime
from html import escape
from importlib.metadata import version
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._keys import Keys
from nichekd._record import notes, plain
from nichekd._report._html import facts_table, notices, number, percent, picture, shares_table, tiles
from nichekd._report._numbers import NO_NICHE, niche_table
from nichekd._report._student_facts import license_notice, student_facts
from nichekd._resolve import get_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

    from nichekd._image import CellImage
    from nichekd.models import NicheStudent

STEPS = ("segment_nuclei", "histology_features", "neighborhoods", "predict_niches")
PACKAGES = ("nichekd", "torch", "spatialdata", "anndata", "zarr")
MAP_DPI, CROPS_DPI = 150, 130
N_CROPS = 6  # a niche
FIELD_UM = 60.0  # shown around a cell at least, for a reader needs more than a small crop of the student's
LARGEST_CROP_PX = 1024  # read for a picture of some 150 px


@dataclass(frozen=True)
class Run:
    """What a report says of the run that it is of."""

    slide: str
    student: str
    command: str
    warnings: tuple[str, ...] = ()


def write_report(
    sdata: SpatialData,
    student: NicheStudent,
    image: CellImage,
    path: Path,
    *,
    run: Run,
    key: str = Keys.NICHE,
    table_key: str = "table",
) -> Path:
    """Write what a student found on a slide as one page of HTML that needs nothing else.

    Parameters
    ----------
    sdata
        The slide, after :func:`nichekd.tl.predict_niches`.
    student
        That predicted.
    image
        The H&E.
    path
        File to write.
    run
        What to say of the run.
    key
        Column of ``obs`` with the niches.
    table_key
        Table of ``sdata``.

    Returns
    -------
    The path. Pictures are inside the file; nothing is fetched when it is opened, and nothing runs.
    """
    adata = get_table(sdata, table_key)
    licence = license_notice(student)
    table = niche_table(adata, key)
    fields = {
        "slide": escape(_name(run.slide)),
        "about": escape(
            f"Student {run.student} · {datetime.now().astimezone():%Y-%m-%d %H:%M %Z} · nichekd {version('nichekd')}"
        ),
        "warnings": _warnings(student, run.warnings, saw_stain=Keys.ood_stain(key) in adata.obs),
        "tiles": tiles(_summary(adata, table, student, key)),
        "shares": shares_table(table),
        **_pictures(sdata, adata, student, image, key, table_key),
        "student": facts_table({"student": run.student} | student_facts(student)),
        "licence": "" if licence is None else notices([licence], kind="warn", title="Licence"),
        "run": facts_table(_run_facts(adata, image, run)),
        "steps": _steps(adata),
    }
    page = Template(files("nichekd._report").joinpath("report.html").read_text(encoding="utf-8"))
    path.write_text(page.substitute(fields), encoding="utf-8")
    return path


def _warnings(student: NicheStudent, said: Sequence[str], *, saw_stain: bool) -> str:
    """What is to be read first: what was found, or what was looked at and is fine."""
    if said:
        return notices(said, kind="warn", title="Read this first")
    if student.training_range is None:
        unknown = "This student does not remember its training tissue: whether the slide is like it was not checked."
        return notices([unknown], kind="warn", title="Read this first")
    seen, unseen = (
        ("Look of the tissue, stain, resolution and cell density", "")
        if saw_stain
        else ("Look of the tissue and cell density", " Stain and resolution were not compared: nobody noted the image.")
    )
    fine = f"{seen} are within what the student was trained on.{unseen}"
    return notices([fine], kind="fine", title="No warnings")


def _summary(adata: AnnData, table: pd.DataFrame, student: NicheStudent, key: str) -> dict[str, str]:
    """The page's large numbers."""
    proba = np.asarray(adata.obsm[Keys.student(key)[1]]).max(axis=1)
    seen = int((table.loc[table["niche"] != NO_NICHE, "n_cells"] > 0).sum())
    numbers = {
        "cells": f"{adata.n_obs:,}",
        "mm² of tissue": f"{table['mm2'].sum():,.2f}",
        "niches seen": f"{seen} of {student.n_niches}",
        "mean confidence": number(float(proba.mean())),
    }
    if Keys.ood(key) in adata.obs:
        numbers["of the cells unlike training"] = percent(float((adata.obs[Keys.ood(key)] > 1).mean()))
    if NO_NICHE in set(table["niche"]):
        numbers["of the cells without a niche"] = percent(float(table["share"].iloc[-1]))
    return numbers


def _pictures(
    sdata: SpatialData, adata: AnnData, student: NicheStudent, image: CellImage, key: str, table_key: str
) -> dict[str, str]:
    from nichekd import pl

    ood = [Keys.ood(key)] if Keys.ood(key) in adata.obs else []
    features = student.config.features
    seen = float(features["crop_px"]) * float(features["mpp"]) if "crop_px" in features else 0.0
    crop_px = int(np.clip(round(max(seen, FIELD_UM) / image.mpp), 16, LARGEST_CROP_PX))
    where: dict[str, Any] = {"image_key": image.key, "table_key": table_key}
    figures = {
        "map": (
            pl.niches(sdata, keys=[key], **where),
            "The slide, and its cells in the colours of their niches",
            MAP_DPI,
        ),
        "uncertainty": (
            pl.uncertainty(sdata, keys=[Keys.student(key)[2], *ood], table_key=table_key),
            "Maps of the entropy and of the out-of-distribution score",
            MAP_DPI,
        ),
    }
    if adata.obs[key].notna().any():
        crops = pl.crops(sdata, key=key, n_crops=N_CROPS, crop_px=crop_px, reference=key, **where)
        figures["crops"] = (crops, "Crops of the slide, a row per niche", CROPS_DPI)
    shown = {name: picture(figure, alt, dpi=dpi) for name, (figure, alt, dpi) in figures.items()}
    return {"crops": "<p>No cell has a niche.</p>"} | shown | {"field": f"{crop_px * image.mpp:.0f}"}


def _run_facts(adata: AnnData, image: CellImage, run: Run) -> dict[str, str]:
    width, height = image.size_px
    about = notes(adata).get("segment_nuclei")
    facts = {
        "slide": run.slide,
        "size": f"{width:,} × {height:,} px, {width * image.mpp / 1000:.2f} × {height * image.mpp / 1000:.2f} mm",
        "µm per pixel": f"{image.mpp:.4g}",
        "cells": f"{adata.n_obs:,}, brought along" if about is None else f"{adata.n_obs:,}, by {about['method']}",
        "command": run.command,
        "versions": ", ".join([f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in PACKAGES)]),
    }
    return facts


def _steps(adata: AnnData) -> str:
    """Parameters that each step recorded."""
    parts = []
    for step in STEPS:
        if step in notes(adata):
            known = plain(notes(adata)[step])
            shown = {k: v for k, v in _flat(known).items() if k not in ("warnings", "version")}
            parts.append(f"<h3>{escape(step)}</h3>{facts_table(shown)}")
    return "".join(parts)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _name(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
