from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

from nichekd._added import check_niche_columns, check_niche_name
from nichekd._keys import Keys
from nichekd._record import notes, record
from nichekd._resolve import get_table
from nichekd._seeds import check_seed

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike
    from spatialdata import SpatialData

    from nichekd.models import NicheStudent
    from nichekd.models._neighborhood_transformer import Preset
    from nichekd.tl._fit_settings import FitSettings


def distill(
    data: AnnData | SpatialData,
    K: int | None = None,
    *,
    use_rep: str | None = None,
    teacher: str | ArrayLike = "teacher_logits",
    split_key: str = Keys.SPLIT,
    temperature: float | Literal["auto"] = "auto",
    student: NicheStudent | None = None,
    embedding: str | None = None,
    seed: int = 0,
    key_added: str = Keys.NICHE,
    preset: Preset = "pooling",
    sizes: dict[str, Any] | None = None,
    fit: FitSettings | None = None,
    device: str | None = None,
    devices: int | list[int] | Literal["auto"] = 1,
    num_nodes: int = 1,
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
    embedding
        ``obsm`` key of what the teacher made its niches of, such as ``"X_scVI"``: the student learns to tell its mean
        over the neighborhood too, of unit variance, by a head that it leaves behind; default the niches alone.
    seed
        Same seed, same CPU, same labels.
    key_added
        ``obs`` key of the labels; with another than ``"niche"``, say ``"niche_old"``, the others are ``old_logits``,
        ``old_proba``, ``niche_old_entropy`` and ``niche_old_ood``. What an earlier student wrote there is replaced.
    preset
        Sizes of the network, see :class:`nichekd.models.NeighborhoodConfig`.
    sizes
        Changes of the preset, e.g. ``{"n_frequencies": 0}`` for a student that is blind to where neighbors lie.
    fit
        Training settings.
    device
        Fabric's accelerator; default ``nk.settings.device``.
    devices, num_nodes
        Devices of each of so many machines, a process each, in a script that ``torchrun`` or ``srun`` runs in all of
        them, or ``python``, which then starts the others on its machine; not in a notebook. Processes take their shares
        of every batch and have the same table in the end; features and teacher have to be there before. See
        :doc:`/scaling`.
    table_key
        Table of a ``SpatialData``.

    Returns
    -------
    The student, in evaluation mode. Writes for all cells

    - ``obsm["student_logits"]`` and ``obsm["student_proba"]``, float32 (n, K);
    - ``obs["niche"]``, categorical with the teacher's names; ``obs["niche_entropy"]``, in [0, 1] (units of log K);
      ``obs["niche_ood"]`` and ``obs["niche_ood_stain"]``, see :func:`nichekd.tl.predict_niches`;
    - ``uns["niche_colors"]``, the teacher's; ``uns["nichekd"]["distill"]``: parameters, temperature, history;
      ``uns["nichekd"]["alignment_qc"]``, see :func:`nichekd.pp.alignment_qc`, where it was not looked at before.

    Raises
    ------
    KeyError
        If the teacher or the features are missing.
    TypeError
        If K, ``devices`` or ``num_nodes`` is no whole number, ``student`` no student, ``sizes`` no network's, ``fit`` no
        settings, or ``key_added`` no string.
    ValueError
        If the features are not of the ``student``'s kind, or the teacher's niches not its own; if K is not the
        teacher's, if the teacher's rows are not the cells, if no training cell has a target, or the temperature is not
        positive; if labels that teach read alike, as 1 and "1", features are beyond 1e18, or the loss is no longer finite;
        if ``devices`` or ``num_nodes`` is below 1, or not what the processes were started for, or features or
        teacher are missing with several; if ``key_added`` is a name that no file can hold, the teacher's, a baseline's, or
        another function's, or if it would replace what is read here, or columns that no student wrote.
    RuntimeError
        If several processes are asked for in a notebook.

    Warns
    -----
    UserWarning
        If the cells sit more than 5 µm beside the nuclei of the image, or fit them turned or mirrored only; if labels that
        teach a new student have a niche that no training cell has.

    Examples
    --------
    >>> import nichekd as nk
    >>> sdata = nk.datasets.pancreas()
    >>> nk.pp.split(sdata)
    >>> nk.pp.histology_features(sdata, encoder="color")
    >>> student = nk.tl.distill(sdata, K=5)  # doctest: +SKIP
    """
    from nichekd.pp._alignment_qc import warn_if_misaligned
    from nichekd.tl._distill_setup import embedding_of, new_student, prepare_lesson, temperature_of
    from nichekd.tl._fine_tune import require_student, taught_again
    from nichekd.tl._fit import fit_student
    from nichekd.tl._fit_settings import FitSettings
    from nichekd.tl._loop import seeded
    from nichekd.tl._out_of_distribution import remember_training
    from nichekd.tl._predict_niches import write_student_niches
    from nichekd.tl._ranks import launched, require_prepared
    from nichekd.tl._slide_colors import SlideColors

    check_seed(seed)
    started = time.perf_counter()
    adata = get_table(data, table_key)
    check_niche_name(key_added, data)
    check_niche_columns(adata, key_added, reads=(teacher, use_rep, embedding, split_key))
    if fit is not None and not isinstance(fit, FitSettings):
        raise TypeError(
            f"fit is a {type(fit).__name__}; it has to be an nk.tl.FitSettings, e.g. FitSettings(max_epochs=8)."
        )
    fabric = launched(device, devices, num_nodes)
    require_prepared(adata, fabric, use_rep=use_rep, teacher=teacher)
    earlier = None if student is None else require_student(student)
    if "alignment_qc" not in notes(adata):
        warn_if_misaligned(data, table_key=table_key)
    lesson = prepare_lesson(
        data, K, use_rep=use_rep, teacher=teacher, earlier=earlier, temperature=temperature, embedding=embedding,
        preset=preset, sizes=sizes or {}, split_key=split_key, seed=seed, device=device, table_key=table_key,
    )  # fmt: skip
    use_rep, index, target, train = lesson.use_rep, lesson.index, lesson.target, lesson.train
    tau = temperature_of(temperature, target, train)
    fit = fit or FitSettings()
    facts = {"n_cells": len(train), "seed": seed, "teacher": teacher if isinstance(teacher, str) else "array"}
    with seeded(seed):
        if earlier is None:
            student = new_student(
                adata, lesson.features, use_rep, target, train, radius=index.radius, temperature=tau, training=facts,
                preset=preset, sizes=sizes or {}, n_components=fit.n_components, seed=seed,
            )  # fmt: skip
        else:
            student = taught_again(earlier, temperature=tau, training=facts)
        components = student.whiten.rows(lesson.features)
        history, held_out = fit_student(
            student, index, components, target.logits, train, all_train=lesson.all_train,
            embedding=embedding_of(adata, embedding, index, train), fit=fit, seed=seed, fabric=fabric,
        )  # fmt: skip
    student.history = history.columns
    colors = SlideColors.of(data, adata, student, use_rep)
    remember_training(
        student, index, components, train=train, groups=target.logits[train].argmax(1),
        held=None if held_out is None else held_out.cells, colors=colors,
    )  # fmt: skip
    write_student_niches(adata, student, index, components, fabric=fabric, colors=colors, key_added=key_added)
    record(
        adata, "distill" if key_added == Keys.NICHE else f"distill_{key_added}", seconds=time.perf_counter() - started,
        K=student.n_niches, use_rep=use_rep, teacher=facts["teacher"], temperature=tau, seed=seed, preset=preset,
        embedding=embedding, n_processes=fabric.world_size, n_train=len(train), history=history.arrays(),
        held_out=held_out and held_out.to_dict(adata.obs_names, student),
    )  # fmt: skip
    return student
