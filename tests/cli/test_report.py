"""The page's numbers by hand, and what it does with what a user may have written."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata

import nichekd as nk
from nichekd._image import get_image
from nichekd._report import Run, write_report
from nichekd._report._numbers import areas, niche_table

NORMAL = Run(slide="slide.svs", student="student", command="nichekd predict")
EVIL = '<script>alert("x")</script>'


@pytest.fixture
def predicted(finished, clinic):
    sdata = spatialdata.read_zarr(finished.out / "result.zarr")
    return sdata, nk.models.NicheStudent.load(clinic.student)


def report_of(sdata, student, path, run=NORMAL):
    write_report(sdata, student, get_image(sdata, sdata["table"]), path, run=run)
    return path.read_text(encoding="utf-8")


def test_areas_by_hand():
    """Cells on a lattice, 10 µm apart, 30 columns of 40 of one niche, 20 of the other: 100 µm² each, and the margin."""
    x, y = np.meshgrid(np.arange(50), np.arange(40))
    xy = 10.0 * np.column_stack([x.ravel(), y.ravel()])
    code = (xy[:, 0] >= 300).astype(int)  # 30 columns, and 20
    found = areas(xy, code, 3)
    inner = np.array([30, 20, 0]) * 40 * 100 / 1e6
    margin = (2 * 30 + 40, 2 * 20 + 40, 0)  # cells along the rim, each with 25 µm of tissue beyond its own 5
    np.testing.assert_allclose(found, inner + np.array(margin) * 10 * 25 / 1e6, rtol=0.03)
    assert areas(xy[:1], np.zeros(1, dtype=int), 1)[0] == pytest.approx(np.pi * 30**2 / 1e6, rel=0.1)


def test_niche_table_counts_all_cells(predicted):
    adata = predicted[0]["table"].copy()
    unsure = adata.obsm["student_proba"].max(1) < np.median(adata.obsm["student_proba"].max(1))
    adata.obs.loc[unsure, "niche"] = np.nan
    table = niche_table(adata).set_index("niche")
    assert table["n_cells"].sum() == adata.n_obs
    assert table.loc["no niche", "n_cells"] == unsure.sum()
    assert table["share"].sum() == pytest.approx(1)
    zero = adata.obs["niche"] == "0"
    assert table.loc["0", "confidence"] == pytest.approx(adata.obsm["student_proba"].max(1)[zero].mean())
    assert table.loc["0", "ood"] == pytest.approx((adata.obs["niche_ood"][zero] > 1).mean())
    assert table.loc["0", "color"] == adata.uns["niche_colors"][0]


def test_nothing_that_a_user_wrote_is_html(predicted, tmp_path):
    sdata, student = predicted
    names = (EVIL, "a & b", "$slide")
    student.configure(niche_names=names, training={"data": EVIL})
    sdata["table"].obs["niche"] = (
        sdata["table"].obs["niche"].cat.rename_categories(dict(zip("012", names, strict=True)))
    )
    sdata["table"].uns["nichekd"]["segment_nuclei"]["source"] = EVIL
    run = Run(slide=EVIL, student=EVIL, command=EVIL, warnings=(EVIL, EVIL))
    page = report_of(sdata, student, tmp_path / "r.html", run)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;") >= 6
    assert "a &amp; b" in page
    assert "$slide" in page


def test_it_says_that_nothing_is_wrong(predicted, tmp_path, unpictured):
    page = report_of(*predicted, tmp_path / "r.html")
    assert "No warnings" in page
    assert "Read this first" not in page
    assert "Licence" not in page


def test_it_says_what_was_not_checked_and_whose_weights_they_are(predicted, tmp_path, unpictured):
    sdata, student = predicted
    student.training_range = None
    student.configure(features=student.config.features | {"encoder": "uni2"})
    del sdata["table"].obs["niche_ood"]
    page = report_of(sdata, student, tmp_path / "r.html")
    assert "whether the slide is like it was not checked" in page
    assert "CC-BY-NC-ND" in page
    assert "unlike training" not in page


@pytest.mark.parametrize("license_name", ["cc-by-nc-4.0", "CC BY-NC 4.0"])
def test_it_names_the_licence_that_it_is(predicted, tmp_path, unpictured, license_name):
    sdata, student = predicted
    student.configure(features=student.config.features | {"encoder": "vit_mine", "license": license_name})
    page = report_of(sdata, student, tmp_path / "r.html")
    assert f"vit_mine is licensed {license_name}" in page
    assert "UNI2" not in page


def test_it_does_not_say_that_a_stain_was_compared_that_nobody_saw(predicted, tmp_path, unpictured):
    sdata, student = predicted
    del sdata["table"].obs["niche_ood_stain"]
    page = report_of(sdata, student, tmp_path / "r.html")
    assert "Stain and resolution were not compared" in page
