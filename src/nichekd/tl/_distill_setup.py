"""What a distillation starts from: the teacher, its temperature and embedding, and a student that knows nothing yet."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from nichekd._keys import Keys, Split
from nichekd._resolve import get_table, split_of
from nichekd.tl._inputs import check_n_niches, features_of, image_rep, neighborhood_index
from nichekd.tl._lesson_checks import check_lesson, check_sizes, check_teacher_has, check_temperature
from nichekd.tl._neighborhood_means import neighborhood_means
from nichekd.tl._recorded_features import record_of
from nichekd.tl._teacher import Teacher, resolve_teacher

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd.models import Encoder, NeighborhoodIndex, NicheStudent
    from nichekd.models._neighborhood_transformer import Preset

log = logging.getLogger(__name__)

WHITEN_CELLS = 50_000


@dataclass(frozen=True)
class Lesson:
    """What a student is taught, and on which cells.

    Attributes
    ----------
    use_rep, features
        Key of the image features, and their rows, (n, F), in memory or lazy.
    index
        Neighborhoods.
    target
        The teacher.
    train, all_train
        Training cells that have a target, (m,), and all of them.
    """

    use_rep: str
    features: Any
    index: NeighborhoodIndex
    target: Teacher
    train: NDArray[np.integer]
    all_train: NDArray[np.integer]


def prepare_lesson(
    data: AnnData | SpatialData,
    K: int | None,
    *,
    use_rep: str | None,
    teacher: Any,
    earlier: NicheStudent | None,
    temperature: float | Literal["auto"],
    embedding: str | None,
    preset: Preset,
    sizes: dict[str, Any],
    split_key: str,
    seed: int,
    device: str | None,
    table_key: str,
) -> Lesson:
    """Do what is missing: image features, neighborhoods, the teacher; as ``earlier``, a student to go on with, needs them.

    Raises
    ------
    KeyError, ValueError
        As :func:`nichekd.tl.distill` says.
    """
    from nichekd.tl._fine_tune import in_its_niches, require_teacher
    from nichekd.tl._student_inputs import check_features, student_neighborhoods, student_rep

    adata = get_table(data, table_key)
    is_train = split_of(adata, split_key) == Split.TRAIN
    n_train = int(is_train.sum())
    check_lesson(adata, K, teacher, n_train=n_train, temperature=temperature, embedding=embedding)
    if earlier is None:
        check_sizes(preset, sizes)
        use_rep = image_rep(data, use_rep, device=device, table_key=table_key)
        index = neighborhood_index(data, split_key=split_key, table_key=table_key)
    else:
        require_teacher(adata, teacher)
        use_rep = student_rep(data, earlier, use_rep, encoder=earlier.encoder, device=device, table_key=table_key)
        index = student_neighborhoods(data, earlier, split_key=split_key, table_key=table_key)
    features = features_of(adata, use_rep, run="nk.pp.histology_features")
    target = teacher_of(
        data, K, teacher, n_train=n_train, split_key=split_key, seed=seed, device=device, table_key=table_key
    )
    if earlier is not None:
        check_features(adata, earlier, use_rep, features.shape[1])
        target = in_its_niches(earlier, target)
    train = np.flatnonzero(is_train & target.teaches)
    if not len(train):
        raise ValueError(
            f"None of the {n_train:,} training cells has a target; {target.teaches.sum():,} other cells have. "
            "Choose another teacher= or another split."
        )
    if earlier is None and isinstance(teacher, str) and teacher not in adata.obsm:
        warn_of_untaught(target, train)
    return Lesson(use_rep, features, index, target, train, np.flatnonzero(is_train))


def warn_of_untaught(target: Teacher, train: NDArray[np.integer]) -> None:
    """Warn of labels that no training cell has: the student has them among its niches, and finds them nowhere."""
    n_cells = np.bincount(target.logits[train].argmax(1), minlength=len(target.names))
    if lacking := [name for name, n in zip(target.names, n_cells, strict=True) if n == 0]:
        warnings.warn(
            f"No training cell has the label {' or '.join(map(repr, lacking))}: the student will not find "
            f"{'it' if len(lacking) == 1 else 'them'}. Choose another split (test_strip= of nk.pp.split), or set these "
            "cells' labels to missing.",
            UserWarning,
            stacklevel=4,
        )


def new_student(
    adata: AnnData,
    features: Any,
    use_rep: str,
    target: Teacher,
    train: NDArray[np.integer],
    *,
    radius: float,
    temperature: float,
    training: dict[str, Any],
    preset: Preset,
    sizes: dict[str, Any],
    n_components: int,
    seed: int,
) -> NicheStudent:
    """A student that has seen nothing but how the training cells' features vary.

    Parameters
    ----------
    features, use_rep
        Feature rows (n, F), and their key.
    target, train
        The teacher, and the cells that it teaches.
    radius, temperature, training
        For the student's config.
    preset, sizes, n_components
        Of its network, and how many components of the features it reads.
    seed
        Of the sample that the components are found on.
    """
    from nichekd.models import NeighborhoodConfig, NicheStudent
    from nichekd.models._student import StudentConfig

    described = record_of(adata, use_rep)
    config = StudentConfig(
        n_features=features.shape[1],
        network=NeighborhoodConfig.preset(preset, min(n_components, features.shape[1]), **sizes),
        niche_names=target.names,
        niche_colors=target.colors,
        radius=radius,
        temperature=temperature,
        features=described,
        training=training,
    )
    student = NicheStudent(config, encoder=_own_encoder(described))
    rng = np.random.default_rng(seed)
    sample = train if len(train) <= WHITEN_CELLS else np.sort(rng.choice(train, WHITEN_CELLS, replace=False))
    student.whiten.fit(np.asarray(features[sample]), seed=seed)
    return student


def teacher_of(
    data: AnnData | SpatialData,
    K: int | None,
    teacher: Any,
    *,
    n_train: int,
    split_key: str,
    seed: int,
    device: str | None,
    table_key: str,
) -> Teacher:
    """The teacher, trained here where it is the default one and missing; K checked against it."""
    adata = get_table(data, table_key)
    if K is not None:
        K = check_n_niches(K, n_train)
    if isinstance(teacher, str) and teacher == Keys.logits(Keys.TEACHER) and teacher not in adata.obsm:
        from nichekd.tl._nolan import nolan

        log.info("no teacher yet: training NOLAN")
        nolan(data, 10 if K is None else K, split_key=split_key, seed=seed, device=device, table_key=table_key)
    target = resolve_teacher(adata, teacher)
    check_teacher_has(K, target, teacher)
    return target


def embedding_of(
    adata: AnnData, key: str | None, index: NeighborhoodIndex, train: NDArray[np.integer]
) -> NDArray[np.float32] | None:
    """Neighborhood means of ``obsm[key]``, of mean 0 and variance 1 on the training cells, (n, E)."""
    if key is None:
        return None
    means = neighborhood_means(index, features_of(adata, key, run="nk.pp.expression_features"))
    here = means[train]
    return (means - here.mean(0)) / np.maximum(here.std(0), 1e-6)


def temperature_of(temperature: float | Literal["auto"], target: Teacher, train: NDArray[np.integer]) -> float:
    if temperature == "auto":
        if target.temperature is not None:
            return target.temperature
        from nichekd.models._distillation import matched_temperature

        return matched_temperature(torch.from_numpy(target.logits[train]))
    return check_temperature(temperature)


def _own_encoder(described: dict[str, Any]) -> Encoder | None:
    """The encoder of these features if it was trained here, so that no registry has it and it has to travel along."""
    from nichekd.models import get_encoder
    from nichekd.tl._gene_aware_start import NAME

    if described.get("encoder") != NAME:
        return None
    try:
        encoder = get_encoder(NAME)
    except ValueError:
        encoder = None
    if encoder is None or encoder.fingerprint != described.get("fingerprint"):
        warnings.warn(
            "The gene-aware encoder of these features is not in this session: the student goes without it, and can't "
            "read other slides. Before distilling, hand it to nk.pp.histology_features, or: "
            "nk.models.register_encoder('gene_aware', lambda weights: nk.models.Encoder.load(folder), overwrite=True).",
            UserWarning,
            stacklevel=4,
        )
        return None
    return encoder
