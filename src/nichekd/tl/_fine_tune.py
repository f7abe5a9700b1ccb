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
    """The teacher with its niches in the student's order and colours.

    Raises
    ------
    ValueError
        If the teacher has other niches.
    """
    names = student.config.niche_names
    if set(names) != set(target.names):
        raise ValueError(
            f"The student knows the niches {list(names)}, the teacher {list(target.names)}. To go on teaching it, they "
            "have to be the same, by the same names; for others, distil a new student: leave student= out."
        )
    order = np.asarray([target.names.index(name) for name in names])
    return replace(target, logits=target.logits[:, order], names=names, colors=student.config.niche_colors)


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
