"""The arguments of an evaluation, checked before anything is read or made."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._seeds import LARGEST, check_seed
from nichekd._settings import settings
from nichekd.tl._evaluation_methods import OTHER_SEED, OTHER_TEACHER, chosen_methods

if TYPE_CHECKING:
    from nichekd.tl._evaluation_plan import Plan

#: arguments that are names, and of what
NAMES = {
    "cell_type_key": "a column of obs",
    "annotation_key": "a column of obs",
    "split_key": "a column of obs",
    "use_rep": "features in obsm",
    "encoder": "an encoder, e.g. 'uni2'; yours gets a name by nk.models.register_encoder",
    "gene_aware": "an encoder, e.g. 'efficientnet_lite0'; yours gets a name by nk.models.register_encoder",
    "device": "a device, e.g. 'cpu'",
    "table_key": "a table of the SpatialData",
}
NEEDED = ("split_key", "gene_aware", "table_key")  # of these, those that can't be None


def distinct(values: Any, name: str) -> tuple[int, ...]:
    """As a tuple of whole numbers, each once.

    Raises
    ------
    TypeError
        If one is no whole number.
    ValueError
        If there is none, or one twice.
    """
    several = isinstance(values, Iterable) and not isinstance(values, (str, bytes))
    found = tuple(values) if several else (values,)
    if not all(map(_is_whole, found)):
        raise TypeError(f"{name}={values!r}; they have to be whole numbers, e.g. {name}=(0, 1).")
    if not found or len(set(found)) < len(found):
        raise ValueError(f"{name}={list(found)}: name at least one, each once.")
    return tuple(map(int, found))


def check_arguments(plan: Plan) -> None:
    """Refuse what no data set could be evaluated with.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If one is out of range, or contradicts another.
    """
    from nichekd.models._precision import resolve_device
    from nichekd.tl._gene_aware_start import check_start

    _check_names(plan)
    _check_features(plan)
    _check_settings(plan)
    for name in ("n_teachers", "n_permutations"):
        _check_positive(getattr(plan, name), name)
    keys = [method.key for method in chosen_methods(plan.methods, has_image=True)]
    _check_seeds(plan, other_teacher=OTHER_TEACHER in keys)
    check_start(plan.gene_aware, plan.gene_aware_weights, plan.gene_aware_lora)
    resolve_device(settings.device if plan.device is None else plan.device)


def _check_names(plan: Plan) -> None:
    for name, what in NAMES.items():
        value = getattr(plan, name)
        if not isinstance(value, str) and (value is not None or name in NEEDED):
            raise TypeError(f"{name}={value!r} is a {type(value).__name__}; it has to be the name of {what}.")


def _check_features(plan: Plan) -> None:
    """The frozen features are named in one way only."""
    if plan.use_rep is not None and plan.encoder is not None:
        raise ValueError(
            f"use_rep={plan.use_rep!r} and encoder={plan.encoder!r}: encoders make features, use_rep= takes those that "
            "are there. Name one of them."
        )
    for name in ("weights", "gene_aware_weights"):
        value = getattr(plan, name)
        if value is not None and not isinstance(value, (str, Path)):
            raise TypeError(f"{name} is a {type(value).__name__}; it has to be the path of a file.")
    if plan.weights is not None and plan.encoder is None:
        raise ValueError(f"weights={str(plan.weights)!r} without encoder=; name the encoder they belong to.")


def _check_settings(plan: Plan) -> None:
    from nichekd import models, tl

    kinds = {
        "fit": (tl.FitSettings, "nk.tl"),
        "nolan_fit": (models.NolanSettings, "nk.models"),
        "gene_aware_fit": (tl.GeneAwareSettings, "nk.tl"),
        "gene_aware_lora": (models.LoraSettings, "nk.models"),
    }
    for name, (kind, module) in kinds.items():
        value = getattr(plan, name)
        if value is not None and not isinstance(value, kind):
            raise TypeError(
                f"{name}={value!r} is a {type(value).__name__}; it has to be {module}.{kind.__name__}(), or None."
            )


def _check_positive(value: Any, name: str) -> None:
    if not _is_whole(value):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; it has to be a whole number, e.g. {name}=1.")
    if value < 1:
        raise ValueError(f"{name}={value}; it has to be at least 1.")


def _check_seeds(plan: Plan, *, other_teacher: bool) -> None:
    for seed in plan.seeds:
        check_seed(seed, "seeds")
    added = plan.n_teachers - 1 + (OTHER_SEED if other_teacher else 0)  # each teacher of a consensus has its own
    if max(plan.seeds) + added > LARGEST:
        raise ValueError(
            f"seeds={list(plan.seeds)}: teachers are trained with seeds up to {max(plan.seeds) + added:,}, and a seed "
            f"is at most {LARGEST:,}. Choose smaller ones, e.g. seeds=(0, 1, 2)."
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
