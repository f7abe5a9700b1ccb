from __future__ import annotations

import logging
import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._added import check_niche_columns, check_niche_name
from nichekd._keys import Keys
from nichekd._record import record
from nichekd._resolve import get_table, working_copy
from nichekd.tl._inputs import features_of
from nichekd.tl._out_of_distribution import score_cells, slide_warnings
from nichekd.tl._slide_colors import SlideColors
from nichekd.tl._student_inputs import check_features, find_cells, student_neighborhoods, student_rep
from nichekd.tl._write_niches import write_labels

if TYPE_CHECKING:
    from anndata import AnnData
    from lightning.fabric import Fabric
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd.models import NeighborhoodIndex, NicheStudent

log = logging.getLogger(__name__)


def predict_niches(
    data: AnnData | SpatialData,
    student: NicheStudent,
    *,
    use_rep: str | None = None,
    min_confidence: float | None = None,
    split_key: str = Keys.SPLIT,
    key_added: str = Keys.NICHE,
    device: str | None = None,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Map a student's niches from H&E and cell centres alone, and say where not to trust them.

    What is missing is done first with what the student carries: image features by its encoder, at its crop size and
    µm per pixel, and neighborhoods of its radius; and on a slide without any cells, :func:`nichekd.pp.segment_nuclei`.

    A cell is out of distribution where its neighborhood's features are further from those of training than 95 % of
    training tissue are from the rest of it, see :class:`nichekd.models.TrainingRange`, or its stain is: the logarithms
    of the mean optical densities of red, green and blue over the neighborhood's crops. The score is the larger of the
    two. Its probabilities can be high nevertheless: they say which of the niches it is, granted that it is one of them.

    Parameters
    ----------
    data
        Cells with an H&E image; their expression is not looked at.
    student
        From :func:`nichekd.tl.distill` or :meth:`nichekd.models.NicheStudent.load`.
    use_rep
        ``obsm`` key of the image features; default: those of the student's encoder.
    min_confidence
        Highest probability below which a cell gets no niche, in [0, 1]; ``None`` gives all cells one. A calibrated
        student (:func:`nichekd.tl.calibrate`) is right as often as it says.
    split_key
        Column of ``obs`` whose parts neighborhoods don't cross. By its default name, there are no parts where it is
        absent or holds other words than those of :func:`nichekd.pp.split`, which is logged.
    key_added
        ``obs`` key of the labels; with another than ``"niche"``, say ``"niche_old"``, the others are ``old_logits``,
        ``old_proba``, ``niche_old_entropy`` and ``niche_old_ood``. What an earlier student wrote there is replaced.
    device
        Fabric's accelerator; default ``nk.settings.device``.
    table_key
        Table of a ``SpatialData``.
    copy
        Return a new object and leave ``data`` as it is.

    Returns
    -------
    ``None``, or the new object. Writes

    - ``obsm["student_logits"]`` and ``obsm["student_proba"]``, float32 (n, K);
    - ``obs["niche"]``, categorical, missing below ``min_confidence``; ``obs["niche_entropy"]``, in [0, 1] (units of
      log K); ``obs["niche_ood"]``, over 1 out of distribution, unless the student is of an older version, and
      ``obs["niche_ood_stain"]``, the part of it that is the stain's, where there is an image;
      Cells of a split's buffer have no neighbors, and are judged by their own crop alone;
    - ``uns["niche_colors"]`` and ``uns["nichekd"]["predict_niches"]``, with ``warnings``, if there are some.

    Raises
    ------
    KeyError
        If ``use_rep`` is missing.
    TypeError
        If ``student`` is none, ``min_confidence`` no number, or ``key_added`` no string.
    ValueError
        If there are no cells; if the features are of another encoder or other weights, of another crop size or µm per
        pixel than the student's, or of another length; if ``min_confidence`` is not in [0, 1]; if ``key_added`` is a name
        that no file can hold, the teacher's, a baseline's, or another function's, or if it would replace what is read
        here, or columns that no student wrote.

    Warns
    -----
    UserWarning
        If the slide is another than those of training: more than 10 % of its cells are out of distribution; they have
        1.5 times as many neighbors, or as few; its µm per pixel differ by more than 10 %; or the colour of its median
        crop is beyond those of 90 % of the training crops.
    """
    from nichekd.models import NicheStudent
    from nichekd.tl._loop import make_fabric

    started = time.perf_counter()
    if not isinstance(student, NicheStudent):
        raise TypeError(
            f"student is a {type(student).__name__}; it has to be a NicheStudent: nk.models.NicheStudent.load(folder)."
        )
    _check_confidence(min_confidence)
    check_niche_name(key_added, data)
    data = working_copy(data, copy)
    wanted = student.config.features
    encoder = find_cells(data, wanted, use_rep=use_rep, encoder=student.encoder, table_key=table_key)
    adata = get_table(data, table_key)
    if adata.n_obs == 0:
        raise ValueError(
            "The table has no cells; there is nothing to predict for. Run nk.pp.segment_nuclei, or check it."
        )
    check_niche_columns(adata, key_added, reads=(use_rep, split_key))
    use_rep = student_rep(data, student, use_rep, encoder=encoder, device=device, table_key=table_key)
    features = features_of(adata, use_rep, run="nk.pp.histology_features")
    check_features(adata, student, use_rep, features.shape[1])
    index = student_neighborhoods(data, student, split_key=split_key, table_key=table_key)
    colors = SlideColors.of(data, adata, student, use_rep)
    write_student_niches(
        adata,
        student,
        index,
        student.whiten.rows(features),
        colors=colors,
        fabric=make_fabric(device),
        key_added=key_added,
        min_confidence=min_confidence,
    )
    parameters = {"K": student.n_niches, "use_rep": use_rep, "radius": student.config.radius}
    parameters |= {"key_added": key_added, "min_confidence": min_confidence, "warnings": None}
    if student.training_range is not None:
        ood = adata.obs[Keys.ood(key_added)].to_numpy()
        found = slide_warnings(student, index, colors, ood=ood)
        for sentence in found:
            warnings.warn(sentence, UserWarning, stacklevel=2)
        parameters["warnings"] = found or None
    record(adata, "predict_niches", seconds=time.perf_counter() - started, **parameters)
    return data if copy else None


def _check_confidence(least: Any) -> None:
    if least is None:
        return
    if isinstance(least, bool) or not isinstance(least, (int, float, np.integer, np.floating)):
        raise TypeError(f"min_confidence={least!r}; it has to be a number from 0 to 1, or None.")
    if not 0 <= least <= 1:
        raise ValueError(f"min_confidence={least}; it is a probability, from 0 to 1.")


def write_student_niches(
    adata: AnnData,
    student: NicheStudent,
    index: NeighborhoodIndex,
    components: NDArray[np.float32],
    *,
    fabric: Fabric,
    colors: SlideColors | None = None,
    key_added: str = Keys.NICHE,
    min_confidence: float | None = None,
) -> None:
    """Predict all cells and write the student's keys; of several processes, all write the same."""
    from nichekd.tl._ranks import predict_together

    progress = "predict" if fabric.is_global_zero else None
    logits = predict_together(fabric, student, index, components, forward=student.read, progress=progress)
    student.to("cpu")
    adata.obsm[Keys.student(key_added)[0]] = logits
    entropy = write_probabilities(adata, student, logits, key_added=key_added)
    codes = logits.argmax(1)
    if min_confidence is not None:
        unsure = adata.obsm[Keys.student(key_added)[1]].max(axis=1) < min_confidence
        codes[unsure] = -1
        log.info("%d of %d cells get no niche: none has a probability of %g", unsure.sum(), len(codes), min_confidence)
    write_labels(adata, key_added, codes, student.config.niche_names, n_niches=student.n_niches)
    adata.uns[Keys.colors(key_added)] = list(student.config.niche_colors)
    write_scores(adata, score_cells(student, index, components, colors), key_added=key_added)
    log.info("niches of %d cells, mean entropy %.2f", len(logits), float(entropy.mean()))


def write_scores(
    adata: AnnData, scores: tuple[NDArray[np.float32] | None, NDArray[np.float32] | None], *, key_added: str
) -> None:
    """Write the larger of the scores of tissue and stain, and the stain's; another student's are taken away."""
    known = [score for score in scores if score is not None]
    for key, score in (
        (Keys.ood(key_added), np.max(known, axis=0) if known else None),
        (Keys.ood_stain(key_added), scores[1]),
    ):
        if score is not None:
            adata.obs[key] = score
        elif key in adata.obs:
            del adata.obs[key]


def write_probabilities(
    adata: AnnData, student: NicheStudent, logits: NDArray[np.floating], *, key_added: str
) -> NDArray[np.float32]:
    """Write probabilities and entropy of ``logits`` (n, K); returns the entropy (n,), in units of log K."""
    import torch

    proba = student.probabilities(torch.from_numpy(logits)).numpy()
    _, proba_key, entropy_key = Keys.student(key_added)
    entropy = -(proba * np.log(np.maximum(proba, 1e-12))).sum(1) / np.log(student.n_niches)
    adata.obsm[proba_key], adata.obs[entropy_key] = proba, entropy.astype(np.float32)
    return entropy.astype(np.float32)
