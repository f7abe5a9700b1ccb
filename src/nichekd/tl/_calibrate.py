from __future__ import annotations

import logging
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from nichekd._calibration import best_temperature, expected_calibration_error
from nichekd._keys import Keys
from nichekd._labels import REFERENCE, labels_of, subset_mask
from nichekd._record import notes, record
from nichekd._resolve import centres_um, get_table, require

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd.models import NicheStudent

log = logging.getLogger(__name__)

N_BLOCKS = 4
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)  # 0: no factor


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
    It has to prove itself on tissue that it was not found on: the cells are cut into four blocks of tissue, and factors
    found on two of them are judged on the other two, by the likelihood of the labels, for all choices of two. The
    factor of all cells is drawn towards 1, to the power 0, 0.25, 0.5, 0.75 or 1, by as much as does best there: where
    none helps, :math:`c = 1`. Labels stay as they are.

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
    The factor :math:`c`, over 1 if the student was too sure, 1 if none helps. Writes it to
    ``student.config.calibration``, and anew ``obsm["student_proba"]`` and ``obs["niche_entropy"]``.
    ``uns["nichekd"]["calibrate"]`` has the factor; ``gain``, by how much factors so drawn raised the mean
    log-likelihood in nats where they were not found; and the expected calibration error on these cells before and
    after.

    Raises
    ------
    KeyError
        If the reference, the logits or the record of what was held out is missing.
    ValueError
        If the reference has niches that the student does not know, or labels none of these cells; if the table's rows
        were changed since the student was distilled, or the cells held out are another student's; if the logits are not
        of this student's niches, or not finite.
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
    code = np.asarray([*map(names.index, target.categories), -1])  # the last one is that of cells without a label
    truth = code[target.codes]
    cells, logits = _cells_and_logits(adata, student, subset, key_added, split_key)
    if logits.shape[1] != len(names) or not np.isfinite(logits).all():
        raise ValueError(
            f"The logits of these cells have {logits.shape[1]} columns, and {np.count_nonzero(~np.isfinite(logits)):,} values "
            f"that are not finite; the student has {len(names)} niches. Run nk.tl.predict_niches with this student."
        )
    known = truth[cells] >= 0
    if not known.any():
        raise ValueError(
            f"obs[{reference!r}] labels none of the {len(cells):,} cells of subset={subset!r}. Name another subset=, or "
            "a column that labels some by reference=."
        )
    cells, logits = cells[known], logits[known] / student.config.temperature
    truth = truth[cells]
    before = expected_calibration_error(softmax(logits / student.config.calibration, axis=1), truth)
    factor, gain = proven_temperature(logits, truth, centres_um(adata)[cells])
    after = expected_calibration_error(softmax(logits / factor, axis=1), truth)
    student.configure(calibration=factor)
    logits_key, _, _ = Keys.student(key_added)
    if logits_key in adata.obsm:
        write_probabilities(adata, student, np.asarray(adata.obsm[logits_key]), key_added=key_added)
    record(
        adata, "calibrate", seconds=perf_counter() - started, reference=reference, subset=subset or "all",
        factor=factor, gain=gain, ece_before=before, ece_after=after, n_cells=len(truth),
    )  # fmt: skip
    if factor == 1:
        log.info("calibration: no factor helps on tissue that it was not found on; probabilities are the student's own")
    log.info("calibration factor %.3f: expected calibration error %.3f, before %.3f", factor, after, before)
    return factor


def proven_temperature(
    logits: NDArray[np.floating], truth: NDArray[np.integer], xy: NDArray[np.floating]
) -> tuple[float, float]:
    """The temperature that fits all cells best, drawn towards 1 as far as such temperatures fail where they were not found.

    Cells side by side have their errors in common, so that a temperature always does well among the neighbors of those
    it was found on: it is judged on other blocks of tissue.

    Parameters
    ----------
    logits, truth
        (n, K), and labels, (n,), columns of ``logits``.
    xy
        Centres, (n, 2), µm.

    Returns
    -------
    The temperature, and by how much temperatures so drawn raised the mean log-likelihood on the halves of the tissue
    that they were not found on, nats a cell; 1 and 0 where none did, or where there are cells for no four blocks.
    """
    if len(xy) < N_BLOCKS:
        return 1.0, 0.0
    block = _quarters(xy)
    gains = []  # (6, n_powers)
    for partner in (1, 2, 3):
        half = (block == 0) | (block == partner)
        for here in (half, ~half):
            found = best_temperature(logits[here], truth[here])
            own = _log_likelihood(logits[~here], truth[~here], 1.0)
            gains.append([_log_likelihood(logits[~here], truth[~here], found**power) - own for power in POWERS])
    gain = np.mean(gains, axis=0)
    best = int(np.argmax(gain))  # of equals the first, which is nearest to 1
    return best_temperature(logits, truth) ** POWERS[best], float(gain[best])


def _log_likelihood(logits: NDArray[np.floating], truth: NDArray[np.integer], temperature: float) -> float:
    """Mean over cells, nats."""
    from scipy.special import log_softmax

    return float(log_softmax(logits / temperature, axis=1)[np.arange(len(truth)), truth].mean())


def _quarters(xy: NDArray[np.floating]) -> NDArray[np.integer]:
    """Blocks of equally many cells, 0 to 3, (n,): cut in two along x, and each half along y."""
    block = np.empty(len(xy), dtype=np.int64)
    for i, column in enumerate(np.array_split(np.argsort(xy[:, 0], kind="stable"), 2)):
        for j, cells in enumerate(np.array_split(column[np.argsort(xy[column, 1], kind="stable")], 2)):
            block[cells] = 2 * i + j
    return block


def _cells_and_logits(
    adata: AnnData, student: NicheStudent, subset: str | None, key_added: str, split_key: str
) -> tuple[NDArray[np.integer], NDArray[np.floating]]:
    """Cells to calibrate on, (m,), and their logits, (m, K)."""
    if subset == "held_out":
        from nichekd.tl._loop import names_hash, weights_hash

        name = "distill" if key_added == Keys.NICHE else f"distill_{key_added}"
        held_out = notes(adata).get(name, {}).get("held_out")
        if held_out is None:
            raise KeyError(
                f"uns['nichekd'][{name!r}] has no held-out cells: the student was not distilled here, or held nothing "
                "back, because the section is too small to spare squares of tissue, or by FitSettings(validation=0). Name "
                "cells with a reference that it has not seen by subset=; without any, it can't be calibrated."
            )
        cells = np.asarray(held_out["cells"])
        if cells.max() >= adata.n_obs or held_out.get("names") != names_hash(adata.obs_names[cells]):
            raise ValueError(
                "The table's cells are others, or in another order, than when the student was distilled. Distil it again, "
                "or name cells that it has not seen by subset=."
            )
        # tables of before there were hashes of students have none
        if held_out.get("student", own := weights_hash(student)) != own:
            raise ValueError(
                f"The cells in uns['nichekd'][{name!r}] were held out from another student than this one. Hand in the "
                "student that was distilled on this table, distil again, or name cells that this one has not seen, and "
                "that nk.tl.predict_niches labelled by it, by subset=."
            )
        return cells, np.asarray(held_out["logits"])
    logits = require(adata, "obsm", Keys.student(key_added)[0], run="nk.tl.predict_niches")
    cells = np.flatnonzero(subset_mask(adata, subset, split_key=split_key))
    return cells, np.asarray(logits)[cells]
