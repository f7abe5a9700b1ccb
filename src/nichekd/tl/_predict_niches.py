from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._keys import Keys
from nichekd._record import notes, record
from nichekd._resolve import get_table, working_copy
from nichekd.tl._inputs import features_of, neighborhood_index
from nichekd.tl._write_niches import write_labels

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from nichekd.models import NeighborhoodIndex, NicheStudent

log = logging.getLogger(__name__)

MPP_TOLERANCE = 0.02
KIND = ("encoder", "fingerprint", "crop_px", "mode", "stride_px")  # what features of one kind agree in


def predict_niches(
    data: AnnData | SpatialData,
    student: NicheStudent,
    *,
    use_rep: str | None = None,
    split_key: str = Keys.SPLIT,
    key_added: str = Keys.NICHE,
    device: str | None = None,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Map a student's niches from H&E and cell centres alone.

    What is missing is done first with what the student carries: image features by its encoder, at its crop size and
    µm per pixel, and neighborhoods of its radius.

    Parameters
    ----------
    data
        Cells with an H&E image; their expression is not looked at.
    student
        From :func:`nichekd.tl.distill` or :meth:`nichekd.models.NicheStudent.load`.
    use_rep
        ``obsm`` key of the image features; default: those of the student's encoder.
    split_key
        Column of ``obs`` whose parts neighborhoods don't cross; absent by its default name, there are no parts.
    key_added
        ``obs`` key of the labels; with another than ``"niche"``, say ``"niche_old"``, the others are ``old_logits``,
        ``old_proba`` and ``niche_old_entropy``.
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
    - ``obs["niche"]``, categorical, and ``obs["niche_entropy"]``, in [0, 1] (units of log K);
    - ``uns["niche_colors"]`` and ``uns["nichekd"]["predict_niches"]``.

    Raises
    ------
    KeyError
        If ``use_rep`` is missing.
    TypeError
        If ``student`` is none.
    ValueError
        If the features are of another encoder or other weights, of another crop size or another µm per pixel than the
        student's, or of another length.
    """
    from nichekd.models import NicheStudent

    started = time.perf_counter()
    if not isinstance(student, NicheStudent):
        raise TypeError(
            f"student is a {type(student).__name__}; it has to be a NicheStudent: nk.models.NicheStudent.load(folder)."
        )
    data = working_copy(data, copy)
    adata = get_table(data, table_key)
    use_rep = _student_rep(data, student, use_rep, device=device, table_key=table_key)
    features = features_of(adata, use_rep, run="nk.pp.histology_features")
    check_features(adata, student, use_rep, features.shape[1])
    index = _student_neighborhoods(data, student, split_key=split_key, table_key=table_key)
    write_student_niches(adata, student, index, features, device=device, key_added=key_added)
    parameters = {"K": student.n_niches, "use_rep": use_rep, "radius": student.config.radius}
    record(adata, "predict_niches", seconds=time.perf_counter() - started, **parameters)
    return data if copy else None


def write_student_niches(
    adata: AnnData,
    student: NicheStudent,
    index: NeighborhoodIndex,
    features: Any,
    *,
    device: str | None,
    key_added: str = Keys.NICHE,
) -> None:
    """Predict all cells and write the student's keys."""
    import torch

    from nichekd.tl._fit import make_fabric
    from nichekd.tl._prediction import predict_logits

    fabric = make_fabric(device)
    logits = predict_logits(student, index, features, device=fabric.device, progress="predict")
    student.to("cpu")
    proba = student.probabilities(torch.from_numpy(logits)).numpy()
    logits_key, proba_key, entropy_key = Keys.student(key_added)
    adata.obsm[logits_key], adata.obsm[proba_key] = logits, proba
    write_labels(adata, key_added, logits.argmax(1), student.config.niche_names, n_niches=student.n_niches)
    adata.uns[Keys.colors(key_added)] = list(student.config.niche_colors)
    entropy = -(proba * np.log(np.maximum(proba, 1e-12))).sum(1) / np.log(student.n_niches)
    adata.obs[entropy_key] = entropy.astype(np.float32)
    log.info("niches of %d cells, mean entropy %.2f", len(logits), float(entropy.mean()))


def check_features(adata: AnnData, student: NicheStudent, use_rep: str, n_features: int) -> None:
    """Refuse features that are not of the student's kind."""
    expected, found = student.config.features, notes(adata).get(Keys.FEATURES, {}).get(use_rep, {})
    advice = "Leave use_rep out, and they are made as the student needs them."
    for name in KIND:
        if name in expected and name in found and expected[name] != found[name]:
            raise ValueError(
                f"obsm[{use_rep!r}] has {name} {found[name]!r}; the student was trained on {expected[name]!r}. {advice}"
            )
    if "mpp" in expected and "mpp" in found:
        ratio = float(found["mpp"]) / float(expected["mpp"])
        if abs(ratio - 1) > MPP_TOLERANCE:
            raise ValueError(
                f"obsm[{use_rep!r}] was made at {float(found['mpp']):.4g} µm per pixel; the student was trained at "
                f"{float(expected['mpp']):.4g}. {advice}"
            )
    if n_features != student.config.n_features:
        raise ValueError(
            f"obsm[{use_rep!r}] has {n_features} features; the student reads {student.config.n_features}. {advice}"
        )


def _student_rep(
    data: AnnData | SpatialData, student: NicheStudent, use_rep: str | None, *, device: str | None, table_key: str
) -> str:
    """``use_rep``, or the key of features of the student's kind, which are made where there are none."""
    from nichekd import pp

    if use_rep is not None:
        return use_rep
    adata = get_table(data, table_key)
    wanted = student.config.features
    if not wanted:
        last = notes(adata).get(Keys.LAST_REP)
        if last is None:
            raise KeyError(
                "The student carries no encoder, and the table has no image features; name some by use_rep=. "
                f"obsm has {sorted(adata.obsm.keys())}."
            )
        return last
    for key, found in notes(adata).get(Keys.FEATURES, {}).items():
        if key in adata.obsm and _same_kind(found, wanted):
            return key
    encoder = student.encoder if student.encoder is not None else wanted["encoder"]
    log.info("no features of the student's encoder yet: encoding crops with %s", wanted["encoder"])
    pp.histology_features(
        data,
        encoder=encoder,
        weights=wanted.get("weights") if student.encoder is None else None,
        crop_px=int(wanted["crop_px"]),
        mpp=float(wanted["mpp"]),
        mode=wanted.get("mode", "crop"),
        stride_px=wanted.get("stride_px"),
        device=device,
        table_key=table_key,
    )
    return notes(adata)[Keys.LAST_REP]


def _same_kind(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether two records of features tell of the same encoder, crops and resolution."""
    same = all(found.get(name) == wanted.get(name) for name in KIND)
    return same and abs(float(found["mpp"]) / float(wanted["mpp"]) - 1) <= MPP_TOLERANCE


def _student_neighborhoods(
    data: AnnData | SpatialData, student: NicheStudent, *, split_key: str, table_key: str
) -> NeighborhoodIndex:
    """Neighborhoods of the student's radius."""
    from nichekd import pp

    adata = get_table(data, table_key)
    found = notes(adata).get(Keys.RADIUS)
    if found is None or Keys.CONNECTIVITIES not in adata.obsp or not np.isclose(found, student.config.radius):
        log.info("neighborhoods of the student's radius, %.1f µm", student.config.radius)
        library_key = notes(adata).get("neighborhoods", {}).get("library_key")  # those there were kept sections apart
        pp.neighborhoods(
            data, radius=student.config.radius, split_key=split_key, library_key=library_key, table_key=table_key
        )
    return neighborhood_index(data, split_key=split_key, table_key=table_key)
