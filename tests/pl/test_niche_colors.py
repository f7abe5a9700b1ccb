"""Colours and legend of ``nk.pl.niches``."""

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgba_array

import nichekd as nk
from nichekd._record import record


def dots(ax):
    return ax.collections[0]


def test_matched_niches_have_one_color(slide, panels):
    """The baseline's a, b, c, d are the teacher's 3, 2, 1, 0; its e is nobody's."""
    shown = panels(nk.pl.niches(slide))
    obs = slide["table"].obs
    teacher = dots(shown["Teacher (gene expression)"]).get_facecolors()
    baseline = dots(shown["Histology-Leiden"]).get_facecolors()
    alone = (obs["niche_histology_leiden"] == "e").to_numpy()
    assert np.array_equal(teacher[~alone], baseline[~alone])
    assert not (baseline[alone][:1] == np.unique(teacher, axis=0)).all(axis=1).any()


def test_the_students_niches_are_the_teachers_by_name(slide, panels):
    """Even where they overlap so little that a matching would take them for others."""
    obs = slide["table"].obs
    obs["niche"] = obs["niche"].cat.rename_categories(dict(zip("0123", "1230", strict=True)))
    slide["table"].obs["niche"] = obs["niche"].cat.reorder_categories(list("0123"))
    nk.pl.niches(slide)
    assert slide["table"].uns["niche_colors"] == slide["table"].uns["niche_teacher_colors"]


def test_so_are_those_of_another_student(slide):
    obs = slide["table"].obs
    obs["niche_other"] = pd.Categorical(
        obs["niche"].map(dict(zip("0123", "1230", strict=True))), categories=list("0123")
    )
    record(slide["table"], "distill_niche_other", teacher="teacher_logits")
    nk.pl.niches(slide, keys=["niche_teacher", "niche_other"])
    assert slide["table"].uns["niche_other_colors"] == slide["table"].uns["niche_teacher_colors"]


def test_colors_are_written_and_kept(slide, panels):
    adata = slide["table"]
    adata.uns["niche_teacher_colors"] = ["#000001", "#000002", "#000003", "#000004"]
    shown = panels(nk.pl.niches(slide))
    assert adata.uns["niche_colors"] == adata.uns["niche_teacher_colors"]
    assert adata.uns["niche_histology_leiden_colors"][:4] == adata.uns["niche_teacher_colors"][::-1]
    codes = adata.obs["niche_teacher"].cat.codes
    expected = to_rgba_array(adata.uns["niche_teacher_colors"])[codes]
    assert np.allclose(dots(shown["Teacher (gene expression)"]).get_facecolors(), expected)


def test_a_matching_made_before_is_kept_until_labels_change(slide):
    adata = slide["table"]
    by_type = nk.tl.match_niches(slide, key="niche_histology_leiden", cell_type_key="cell_type")
    assert by_type["reference_niche"].isna().any()
    made = list(adata.uns["niche_histology_leiden_colors"])
    nk.pl.niches(slide)
    assert adata.uns["niche_histology_leiden_colors"] == made
    adata.obs["niche_histology_leiden"] = adata.obs["niche_histology_leiden"].cat.rename_categories(
        dict(zip("abcd", "badc", strict=True))
    )
    adata.obs["niche_histology_leiden"] = adata.obs["niche_histology_leiden"].cat.reorder_categories(list("abcde"))
    nk.pl.niches(slide)
    assert adata.uns["niche_histology_leiden_colors"] != made


def test_unmatched_niches_of_two_methods_differ(cells, legend):
    """Also where one of them has its colours of an earlier matching, which knew of no other."""
    alone = np.where(cells.obsm["spatial"][:, 0] > 180, "e", cells.obs["niche_teacher"])
    cells.obs["niche_other"] = pd.Categorical(alone)
    nk.tl.match_niches(cells, key="niche_other")
    colors = legend(nk.pl.niches(cells))
    assert {"Histology-Leiden e", "niche_other e"} <= set(colors)
    assert len(set(colors.values())) == len(colors)


def test_legend_names_each_niche_once(slide, legend):
    fig = nk.pl.niches(slide)
    assert list(legend(fig)) == ["0", "1", "2", "3", "Histology-Leiden e"]
    assert len(set(legend(fig).values())) == 5


def test_legend_has_the_titles_handed_in(slide, legend):
    """Without what is in brackets, unless two panels differ by nothing else."""
    fig = nk.pl.niches(slide, titles={"niche_histology_leiden": "Leiden (H&E)"})
    assert list(legend(fig))[-1] == "Leiden e"
    fig = nk.pl.niches(slide, titles={"niche_histology_leiden": "Leiden (H&E)", "niche": "Leiden (student)"})
    assert list(legend(fig))[-1] == "Leiden (H&E) e"


def test_cells_without_a_label_are_grey_and_in_the_legend(cells, panels, legend):
    cells.obs["niche"] = cells.obs["niche"].where(np.arange(400) > 0)
    fig = nk.pl.niches(cells, keys=["niche_teacher", "niche"])
    assert legend(fig)["no label"] == "#d3d3d3"
    assert np.allclose(dots(panels(fig)["Student (H&E only)"]).get_facecolors()[0], to_rgba_array("#d3d3d3"))


def test_twenty_niches_have_twenty_colors(cells, legend):
    cells.obs["niche"] = (np.arange(400) % 20).astype(str)
    cells.obs["niche"] = cells.obs["niche"].astype("category")
    fig = nk.pl.niches(cells, keys="niche", reference="niche")
    assert list(legend(fig)) == [str(i) for i in range(20)]
    assert len(set(legend(fig).values())) == 20
