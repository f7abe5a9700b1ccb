from __future__ import annotations

import logging
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from nichekd._calibration import best_temperature, expected_calibration_error
from nichekd._keys import Keys
from nichekd._labels import REFERENCE, labels_of, subset_mask
from nichekd._record import notes, record
from nichekd._resolve import get_table, require

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd.models import NicheStudent

log = logging.getLogger(__name__)


def calibrate(
    data: AnnData | SpatialData,
    student: NicheStudent,
    *,
    reference: str = REFERENCE,
    subset: str | None = "held_out",
    key_added: str = Keys.NICHE,
    split_key: str = Keys.SPLIT,
    table_key: str = "table",
) -> float:
    r"""Make a student's probabilities mean what they say: of cells it is 80 % sure of, 80 % are right.

    Temperature scaling :cite:`Guo2017`: probabilities become :math:`\mathrm{softmax}(a / (\tau c))`, where
    :math:`\tau` is the distillation's temperature, and the factor :math:`c` makes the reference's labels most likely.
    Labels stay as they are.

    Parameters
    ----------
    data
        Cells on which the student was distilled, or others with its ``obsm["student_logits"]`` and with the reference.
    student
        The student; it keeps the factor.
    reference
        Column of ``obs`` with the right niches, named as the student's.
    subset
        ``"held_out"``: the squares of training tissue that :func:`nichekd.tl.distill` held back, with the logits of a
        student that had not seen them. Or a part of the split, or ``None`` for all cells, with ``student_logits``:
        cells that trained the student make it look surer than it is, and cells that calibrated it can't judge it.
    key_added
        ``obs`` key of the student's labels, as in :func:`nichekd.tl.distill`.
    split_key
        Column of ``obs`` with the split.
    table_key
        Table of a ``SpatialData``.

    Returns
    -------
    The factor :math:`c`, over 1 if the student was too sure. Writes it to ``student.config.calibration``, and anew
    ``obsm["student_proba"]`` and ``obs["niche_entropy"]``. ``uns["nichekd"]["calibrate"]`` has the expected calibration
    error on these cells before and after.

    Raises
    ------
    KeyError
        If the reference, the logits or the record of what was held out is missing.
    ValueError
        If the reference has niches that the student does not know, or labels none of these cells; if the table's rows
        were changed since the student was distilled.
    """
    from scipy.special import softmax

    from nichekd.models import NicheStudent
    from nichekd.tl._predict_niches import write_probabilities

    started = perf_counter()
    if not isinstance(student, NicheStudent):
        raise TypeError(
            f"student is a {type(student).__name__}; it has to be a NicheStudent: nk.models.NicheStudent.load(folder)."
        )
    adata = get_table(data, table_key)
    names = student.config.niche_names
    target = labels_of(adata, reference).remove_unused_categories()
    if unknown := sorted(set(target.categories) - set(names)):
        raise ValueError(
            f"obs[{reference!r}] has niches {unknown} that the student does not know; it knows {list(names)}. "
            "Name the labels it was taught by reference=."
        )
    code = np.asarray([names.index(name) for name in target.categories])
    truth = np.where(target.codes >= 0, code[target.codes], -1)
    cells, logits = _cells_and_logits(adata, subset, key_added, split_key)
    known = truth[cells] >= 0
    if not known.any():
        raise ValueError(
            f"obs[{reference!r}] labels none of the {len(cells):,} cells of subset={subset!r}. Choose another."
        )
    logits, truth = logits[known] / student.config.temperature, truth[cells][known]
    before = expected_calibration_error(softmax(logits / student.config.calibration, axis=1), truth)
    factor = best_temperature(logits, truth)
    after = expected_calibration_error(softmax(logits / factor, axis=1), truth)
    student.configure(calibration=factor)
    logits_key, _, _ = Keys.student(key_added)
    if logits_key in adata.obsm:
        write_probabilities(adata, student, np.asarray(adata.obsm[logits_key]), key_added=key_added)
    record(
        adata, "calibrate", seconds=perf_counter() - started, reference=reference, subset=subset or "all",
        factor=factor, ece_before=before, ece_after=after, n_cells=len(truth),
    )  # fmt: skip
    log.info("calibration factor %.3f: expected calibration error %.3f, before %.3f", factor, after, before)
    return factor


def _cells_and_logits(
    adata: AnnData, subset: str | None, key_added: str, split_key: str
) -> tuple[NDArray[np.integer], NDArray[np.floating]]:
    """Cells to calibrate on, (m,), and their logits, (m, K)."""
    if subset == "held_out":
        from nichekd.tl._loop import names_hash

        name = "distill" if key_added == Keys.NICHE else f"distill_{key_added}"
        held_out = notes(adata).get(name, {}).get("held_out")
        if held_out is None:
            raise KeyError(
                f"uns['nichekd'][{name!r}] has no held-out cells: the student was not distilled here, or held nothing "
                "back. Name cells it has not seen by subset=, or distil it with FitSettings(validation=0.1)."
            )
        cells = np.asarray(held_out["cells"])
        if cells.max() >= adata.n_obs or held_out.get("names") != names_hash(adata.obs_names[cells]):
            raise ValueError(
                "The table's cells are others, or in another order, than when the student was distilled. Distil it again, "
                "or name cells that it has not seen by subset=."
            )
        return cells, np.asarray(held_out["logits"])
    logits = require(adata, "obsm", Keys.student(key_added)[0], run="nk.tl.predict_niches")
    cells = np.flatnonzero(subset_mask(adata, subset, split_key=split_key))
    return cells, np.asarray(logits)[cells]
