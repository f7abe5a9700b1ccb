"""A student that is taught again, on a section that it has not seen."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd.models import NicheStudent

if TYPE_CHECKING:
    from anndata import AnnData

    from nichekd.tl._teacher import Teacher


def require_student(student: Any) -> NicheStudent:
    """``student`` itself.

    Raises
    ------
    TypeError
        If it is none.
    """
    if not isinstance(student, NicheStudent):
        raise TypeError(
            f"student is a {type(student).__name__}; it has to be a NicheStudent: nk.models.NicheStudent.load(folder)."
        )
    return student


def require_teacher(adata: AnnData, teacher: Any) -> None:
    """Refuse to train a teacher for a student that has niches already: its niches would be others.

    Raises
    ------
    KeyError
        If ``teacher`` is not there.
    """
    if isinstance(teacher, str) and teacher not in adata.obsm and teacher not in adata.obs:
        raise KeyError(
            f"There is no teacher {teacher!r}, and one trained here would have other niches than the student. Name "
            "labels of the student's niches, or logits, by teacher=."
        )


def in_its_niches(student: NicheStudent, target: Teacher) -> Teacher:
    """The teacher with its niches in the student's order and colours; those that this section has none of are unlikely.

    Raises
    ------
    ValueError
        If the teacher has niches that the student does not know.
    """
    from scipy.special import logsumexp

    from nichekd.tl._teacher import LABEL_CONFIDENCE

    names = student.config.niche_names
    if unknown := sorted(set(target.names) - set(names)):
        raise ValueError(
            f"The teacher has niches {unknown} that the student does not know; it knows {list(names)}. To go on teaching "
            "it, they have to be among these, by the same names; for others, distil a new student: leave student= out."
        )
    there = np.asarray([names.index(name) for name in target.names])
    logits = np.full((len(target.logits), len(names)), np.nan, dtype=np.float32)
    logits[:, there] = target.logits
    if len(there) < len(names):  # as unlikely as a label's alternatives are
        absent = np.setdiff1d(np.arange(len(names)), there)
        tau = target.temperature or 1.0
        total = tau * logsumexp(target.logits / tau, axis=1, keepdims=True)
        logits[:, absent] = total + tau * np.log((1 - LABEL_CONFIDENCE) / len(names))
    return replace(target, logits=logits, names=names, colors=student.config.niche_colors)


def taught_again(student: NicheStudent, *, temperature: float, training: dict[str, Any]) -> NicheStudent:
    """A student that starts as a copy of this one.

    Its components stay: they are what its network reads. Its calibration does not: it was for another section.

    Parameters
    ----------
    student
        Left as it is.
    temperature
        Of the teacher's logits. The student's are in its units, so that its probabilities stay as they are.
    training
        Facts about the new section; those of the earlier ones are kept under ``before``.
    """
    config = replace(
        student.config,
        temperature=temperature,
        calibration=1.0,
        training=training | {"before": student.config.training},
    )
    again = NicheStudent(config, encoder=student.encoder)
    again.load_state_dict(student.state_dict())
    return again
