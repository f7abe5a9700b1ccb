from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from nichekd._keys import Keys, Split
from nichekd._record import notes, plain, record
from nichekd._resolve import get_table, split_of
from nichekd.tl._inputs import check_n_niches, features_of, image_rep, neighborhood_index
from nichekd.tl._teacher import Teacher, resolve_teacher

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray
    from spatialdata import SpatialData

    from nichekd.models import Encoder, NicheStudent
    from nichekd.models._neighborhood_transformer import Preset
    from nichekd.tl._fit import FitSettings

log = logging.getLogger(__name__)

WHITEN_CELLS = 50_000


def distill(
    data: AnnData | SpatialData,
    K: int | None = None,
    *,
    use_rep: str | None = None,
    teacher: str | ArrayLike = "teacher_logits",
    split_key: str = Keys.SPLIT,
    temperature: float | Literal["auto"] = "auto",
    student: NicheStudent | None = None,
    seed: int = 0,
    key_added: str = Keys.NICHE,
    preset: Preset = "pooling",
    sizes: dict[str, Any] | None = None,
    fit: FitSettings | None = None,
    device: str | None = None,
    table_key: str = "table",
) -> NicheStudent:
    r"""Teach a student that sees H&E only the niches of a teacher that saw gene expression.

    The student reads the image features of a cell's neighborhood and their places. It minimises

    .. math:: \tau^2 \cdot \frac{1}{n} \sum_i \mathrm{KL}\left(\mathrm{softmax}(a_i^{ST} / \tau) \,\|\,
              \mathrm{softmax}(a_i^{HIST} / \tau)\right)

    over training cells :cite:`Hizmi2026`; some squares of them are held back to stop by. What is missing is done first,
    with one log line a step: image features, expression features, neighborhoods, and the teacher,
    :func:`nichekd.tl.nolan` with ``K`` niches. A split is not made: without one, all cells train.

    Parameters
    ----------
    data
        Cells with an H&E image.
    K
        Number of niches of the teacher; default 10 where there is none yet, else the teacher's own.
    use_rep
        ``obsm`` key of the image features; default: those written last, or those of ``nk.settings.encoder``.
    teacher
        ``obsm`` key of logits or probabilities, (n, K); or ``obs`` key of labels of any method or of a pathologist;
        or an array of the former kind. Cells with a missing target don't teach.
    split_key
        Column of ``obs`` with ``train`` cells; absent by its default name, all cells train.
    temperature
        :math:`\tau`; ``"auto"``: 1 for probabilities and labels; for logits such that the teacher's mean entropy is
        0.3 log K.
    student
        One to go on teaching, on this section; it is left as it is, and a new one returned. Features and neighborhoods
        are those it needs; the teacher has to have its niches, by its names, as labels of a pathologist do or logits of
        the same model, not of a :func:`nichekd.tl.nolan` of this section alone, whose niches are others. ``preset`` and
        ``sizes`` are the student's.
    seed
        Same seed, same CPU, same labels.
    key_added
        ``obs`` key of the labels; with another than ``"niche"``, say ``"niche_old"``, the others are ``old_logits``,
        ``old_proba``, ``niche_old_entropy`` and ``niche_old_ood``.
    preset
        Sizes of the network, see :class:`nichekd.models.NeighborhoodConfig`.
    sizes
        Changes of the preset, e.g. ``{"n_frequencies": 0}`` for a student that is blind to where neighbors lie.
    fit
        Training settings.
    device
        Fabric's accelerator; default ``nk.settings.device``.
    table_key
        Table of a ``SpatialData``.

    Returns
    -------
    The student, in evaluation mode. Writes for all cells

    - ``obsm["student_logits"]`` and ``obsm["student_proba"]``, float32 (n, K);
    - ``obs["niche"]``, categorical with the teacher's names; ``obs["niche_entropy"]``, in [0, 1] (units of log K);
      ``obs["niche_ood"]``, see :func:`nichekd.tl.predict_niches`;
    - ``uns["niche_colors"]``, the teacher's; ``uns["nichekd"]["distill"]``: parameters, temperature, history.

    Raises
    ------
    KeyError
        If the teacher or the features are missing.
    TypeError
        If K is no whole number, or ``student`` no student.
    ValueError
        If the features are not of the ``student``'s kind, or the teacher's niches not its own; if K is not the teacher's, if the teacher's rows are not the cells, if no training cell has a target, or the
        temperature is not positive.

    Examples
    --------
    >>> import nichekd as nk
    >>> sdata = nk.datasets.pancreas()
    >>> nk.pp.split(sdata)
    >>> nk.pp.histology_features(sdata, encoder="color")
    >>> student = nk.tl.distill(sdata, K=5)  # doctest: +SKIP
    """
    from nichekd.models import NeighborhoodConfig, NicheStudent
    from nichekd.models._student import StudentConfig
    from nichekd.tl._fine_tune import in_its_niches, require_student, require_teacher, taught_again
    from nichekd.tl._fit import FitSettings, fit_student
    from nichekd.tl._loop import seeded
    from nichekd.tl._out_of_distribution import remember_training
    from nichekd.tl._predict_niches import write_student_niches
    from nichekd.tl._student_inputs import check_features, student_neighborhoods, student_rep

    started = time.perf_counter()
    adata = get_table(data, table_key)
    is_train = split_of(adata, split_key) == Split.TRAIN
    earlier = None if student is None else require_student(student)
    if earlier is None:
        use_rep = image_rep(data, use_rep, table_key=table_key)
        index = neighborhood_index(data, split_key=split_key, table_key=table_key)
    else:
        require_teacher(adata, teacher)
        use_rep = student_rep(data, earlier, use_rep, device=device, table_key=table_key)
        index = student_neighborhoods(data, earlier, split_key=split_key, table_key=table_key)
    features = features_of(adata, use_rep, run="nk.pp.histology_features")
    target = _teacher_of(
        data, K, teacher, n_train=int(is_train.sum()), split_key=split_key, seed=seed, table_key=table_key
    )
    if earlier is not None:
        check_features(adata, earlier, use_rep, features.shape[1])
        target = in_its_niches(earlier, target)
    train = np.flatnonzero(is_train & target.teaches)
    if not len(train):
        raise ValueError(
            f"None of the {is_train.sum():,} training cells has a target; {target.teaches.sum():,} other cells have. "
            "Choose another teacher= or another split."
        )
    tau = _temperature(temperature, target, train)
    fit = fit or FitSettings()
    rng = np.random.default_rng(seed)
    facts = {"n_cells": len(train), "seed": seed, "teacher": teacher if isinstance(teacher, str) else "array"}
    with seeded(seed):
        if earlier is None:
            described = plain(notes(adata).get(Keys.FEATURES, {}).get(use_rep, {}))
            n_components = min(fit.n_components, features.shape[1])
            student = NicheStudent(
                StudentConfig(
                    n_features=features.shape[1],
                    network=NeighborhoodConfig.preset(preset, n_components, **(sizes or {})),
                    niche_names=target.names,
                    niche_colors=target.colors,
                    radius=index.radius,
                    temperature=tau,
                    features=described,
                    training=facts,
                ),
                encoder=_own_encoder(described),
            )
            sample = train if len(train) <= WHITEN_CELLS else np.sort(rng.choice(train, WHITEN_CELLS, replace=False))
            student.whiten.fit(np.asarray(features[sample]), seed=seed)
        else:
            student = taught_again(earlier, temperature=tau, training=facts)
        history, held_out = fit_student(
            student, index, features, target.logits, train, fit=fit, seed=seed, device=device
        )
    student.history = history.columns
    remember_training(
        data, adata, student, index, features, train=train, groups=target.logits[train].argmax(1), use_rep=use_rep, seed=seed
    )  # fmt: skip
    write_student_niches(adata, student, index, features, device=device, key_added=key_added)
    record(
        adata, "distill" if key_added == Keys.NICHE else f"distill_{key_added}", seconds=time.perf_counter() - started, K=student.n_niches, use_rep=use_rep,
        teacher=teacher if isinstance(teacher, str) else "array", temperature=tau, seed=seed, preset=preset,
        n_train=len(train), history=history.arrays(), held_out=held_out and held_out.to_dict(),
    )  # fmt: skip
    return student


def _teacher_of(
    data: AnnData | SpatialData,
    K: int | None,
    teacher: Any,
    *,
    n_train: int,
    split_key: str,
    seed: int,
    table_key: str,
) -> Teacher:
    """The teacher, trained here where it is the default one and missing; K checked against it."""
    adata = get_table(data, table_key)
    if K is not None:
        K = check_n_niches(K, n_train)
    if isinstance(teacher, str) and teacher == Keys.logits(Keys.TEACHER) and teacher not in adata.obsm:
        from nichekd.tl._nolan import nolan

        log.info("no teacher yet: training NOLAN")
        nolan(data, 10 if K is None else K, split_key=split_key, seed=seed, table_key=table_key)
    target = resolve_teacher(adata, teacher)
    if K is not None and len(target.names) != K:
        raise ValueError(
            f"K={K}, but the teacher {teacher if isinstance(teacher, str) else 'array'} has {len(target.names)} niches. "
            f"Leave K out, or train another: nk.tl.nolan(data, K={K})."
        )
    return target


def _temperature(temperature: float | Literal["auto"], target: Teacher, train: NDArray[np.integer]) -> float:
    if temperature == "auto":
        if target.temperature is not None:
            return target.temperature
        from nichekd.models._distillation import matched_temperature

        return matched_temperature(torch.from_numpy(target.logits[train]))
    if isinstance(temperature, str) or not np.isfinite(temperature) or temperature <= 0:
        raise ValueError(f"temperature={temperature!r}; it has to be positive, or 'auto'.")
    return float(temperature)


def _own_encoder(described: dict[str, Any]) -> Encoder | None:
    """The encoder of these features if it was trained here, so that no registry has it and it has to travel along."""
    from nichekd.models import get_encoder
    from nichekd.tl._gene_aware_encoder import NAME

    if described.get("encoder") != NAME:
        return None
    try:
        encoder = get_encoder(NAME)
    except ValueError:
        encoder = None
    if encoder is None or encoder.fingerprint != described.get("fingerprint"):
        log.warning("the gene-aware encoder of these features is not in this session: the student goes without it")
        return None
    return encoder
