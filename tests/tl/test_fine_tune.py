"""``nk.tl.distill(student=...)``: a student that goes on learning on another section."""

import numpy as np
import pandas as pd
import pytest
from torch import nn

import nichekd as nk
from nichekd.tl import FitSettings
from nichekd.tl._fine_tune import in_its_niches
from nichekd.tl._teacher import LABEL_CONFIDENCE, Teacher

BARELY = FitSettings(max_epochs=1, min_steps=0, batch_size=2000, validation=0, learning_rate=1e-9)
EPOCH = FitSettings(max_epochs=1, min_steps=0, batch_size=96, validation=0)


def test_starts_where_the_student_is(taught, taught_cells):
    again = nk.tl.distill(taught_cells, use_rep="X_image", student=taught[1], fit=BARELY)
    proba = taught_cells.obsm["student_proba"]
    np.testing.assert_allclose(proba, taught[0].obsm["student_proba"], atol=1e-4)
    assert again.whiten.components.equal(taught[1].whiten.components)


def test_learns_and_leaves_the_student_as_it_is(taught, taught_cells):
    before = {name: value.clone() for name, value in taught[1].state_dict().items()}
    config = taught[1].config
    again = nk.tl.distill(taught_cells, use_rep="X_image", student=taught[1], fit=EPOCH)
    assert again is not taught[1]
    assert taught[1].config == config
    assert all(value.equal(before[name]) for name, value in taught[1].state_dict().items())
    assert not again.head.weight.equal(taught[1].head.weight)
    assert not again.training
    assert again.config.training["before"] == config.training
    assert again.config.calibration == 1


def test_a_few_steps_do_more_from_a_student_than_from_nothing(taught, taught_cells):
    fresh = taught_cells.copy()
    nk.tl.distill(fresh, use_rep="X_image", fit=FitSettings(max_epochs=1, min_steps=0, batch_size=96, validation=0))
    nk.tl.distill(taught_cells, use_rep="X_image", student=taught[1], fit=EPOCH)
    loss = [c.uns["nichekd"]["distill"]["history"]["train_loss"][0] for c in (taught_cells, fresh)]
    assert loss[0] < 0.7 * loss[1]


def test_the_teachers_niches_are_matched_by_name(taught, taught_cells):
    """Columns in another order are the same teacher."""
    columns = pd.DataFrame(taught_cells.obsm["teacher_logits"], columns=["0", "1", "2"], index=taught_cells.obs_names)
    taught_cells.obsm["mine"] = columns[["2", "0", "1"]]
    other = taught_cells.copy()
    again = nk.tl.distill(taught_cells, use_rep="X_image", teacher="mine", student=taught[1], fit=EPOCH)
    nk.tl.distill(other, use_rep="X_image", student=taught[1], fit=EPOCH)
    assert again.config.niche_names == ("0", "1", "2")
    np.testing.assert_allclose(taught_cells.obsm["student_logits"], other.obsm["student_logits"], atol=1e-5)


def test_both_sections_are_in_range_afterwards(taught, taught_cells):
    spread = taught_cells.obsm["X_image"].std(0)
    taught_cells.obsm["X_image"] = taught_cells.obsm["X_image"] + 2 * spread
    again = nk.tl.distill(taught_cells, use_rep="X_image", student=taught[1], fit=EPOCH)
    assert (taught_cells.obs["niche_ood"] > 1).mean() < 0.1
    first = taught[0].copy()
    nk.tl.predict_niches(first, again, use_rep="X_image")
    assert (first.obs["niche_ood"] > 1).mean() < 0.1
    assert again.config.training_range["n_groups"] == 2 * taught[1].config.training_range["n_groups"]


def test_neighborhoods_are_those_of_the_student(taught, taught_cells):
    nk.pp.neighborhoods(taught_cells, radius=15)
    nk.tl.distill(taught_cells, use_rep="X_image", student=taught[1], fit=BARELY)
    assert taught_cells.uns["nichekd"]["radius"] == taught[1].config.radius


def test_a_student_without_a_range_gets_one(taught, taught_cells):
    from dataclasses import replace

    from nichekd.models import NicheStudent

    old = NicheStudent(replace(taught[1].config, training_range={}))
    state = taught[1].state_dict()
    old.load_state_dict({name: value for name, value in state.items() if not name.startswith("training_range.")})
    again = nk.tl.distill(taught_cells, use_rep="X_image", student=old, fit=BARELY)
    assert again.config.training_range["n_groups"] == 3


# bad input


def test_not_a_student(taught_cells):
    with pytest.raises(TypeError, match=r"student is a Identity.*NicheStudent\.load"):
        nk.tl.distill(taught_cells, use_rep="X_image", student=nn.Identity())


def test_a_teacher_of_other_niches(taught, taught_cells):
    taught_cells.obs["annotation"] = pd.Categorical(np.where(np.arange(1500) % 2, "duct", "fat"))
    with pytest.raises(
        ValueError, match=r"niches \['duct', 'fat'\] that the student does not know; it knows \['0', '1', '2'\]"
    ):
        nk.tl.distill(taught_cells, use_rep="X_image", teacher="annotation", student=taught[1])


def test_another_number_of_niches(taught, taught_cells):
    logits = np.repeat(taught_cells.obsm["teacher_logits"], 2, axis=1)
    with pytest.raises(ValueError, match=r"niches \['3', '4', '5'\] that the student does not know"):
        nk.tl.distill(taught_cells, use_rep="X_image", teacher=logits, student=taught[1])
    with pytest.raises(ValueError, match="K=5, but the teacher"):
        nk.tl.distill(taught_cells, 5, use_rep="X_image", student=taught[1])


def test_a_section_without_one_of_the_niches(taught, taught_cells):
    """Its cells teach the others, and that the missing one is none of theirs."""
    labels = taught_cells.obs["niche_teacher"].astype(str)
    taught_cells.obs["annotation"] = pd.Categorical(labels.where(labels != "1"))
    again = nk.tl.distill(
        taught_cells,
        use_rep="X_image",
        teacher="annotation",
        student=taught[1],
        fit=FitSettings(max_epochs=2, min_steps=5),
    )
    assert again.config.niche_names == ("0", "1", "2")
    known = taught_cells.obs["annotation"].notna()
    proba = taught_cells.obsm["student_proba"][known]
    assert proba[:, 1].mean() < 0.1
    assert np.isfinite(proba).all()


def test_no_teacher_is_trained_for_it(taught, cells):
    with pytest.raises(KeyError, match=r"no teacher 'teacher_logits', and one trained here would have other niches"):
        nk.tl.distill(cells, use_rep="X_image", student=taught[1])


def test_features_of_another_kind(taught, taught_cells):
    taught_cells.obsm["X_short"] = taught_cells.obsm["X_image"][:, :5]
    with pytest.raises(ValueError, match="has 5 features; the student reads 16"):
        nk.tl.distill(taught_cells, use_rep="X_short", student=taught[1])
    own = taught[1].config.features | {"encoder": "uni2", "fingerprint": "abc"}
    other = type(taught[1])(taught[1].config).configure(features=own)
    other.load_state_dict(taught[1].state_dict())
    taught_cells.uns["nichekd"]["features"] = {"X_image": {"encoder": "color", "fingerprint": "abc"}}
    with pytest.raises(ValueError, match=r"has encoder 'color'; the student was trained on 'uni2'"):
        nk.tl.distill(taught_cells, use_rep="X_image", student=other)


def test_logits_of_hundreds_do_not_overflow(taught):
    teacher = Teacher(np.array([[200.0, 0.0]], dtype=np.float32), ("2", "0"), ("#000000", "#ffffff"), None)
    logits = in_its_niches(taught[1], teacher).logits
    assert logits == pytest.approx(np.array([[0.0, 200 + np.log((1 - LABEL_CONFIDENCE) / 3), 200.0]]))
