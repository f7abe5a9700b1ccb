"""What a distillation can find wrong at once, before the image features, which may take hours."""

from __future__ import annotations

from dataclasses import fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nichekd._keys import Keys
from nichekd.tl._inputs import check_n_niches, features_of
from nichekd.tl._teacher import Teacher, resolve_teacher

if TYPE_CHECKING:
    from anndata import AnnData

    from nichekd.models._neighborhood_transformer import Preset

WHOLE_SIZES = ("d_model", "n_layers", "n_heads", "n_frequencies")


def check_lesson(
    adata: AnnData,
    K: int | None,
    teacher: Any,
    *,
    n_train: int,
    temperature: float | Literal["auto"],
    embedding: str | None,
) -> None:
    """Find what is wrong with the teacher, K, the temperature or the embedding.

    Raises
    ------
    KeyError, TypeError, ValueError
        As :func:`nichekd.tl.distill` says.
    """
    if K is not None:
        check_n_niches(K, n_train)
    if temperature != "auto":
        check_temperature(temperature)
    is_to_be_trained = isinstance(teacher, str) and teacher == Keys.logits(Keys.TEACHER) and teacher not in adata.obsm
    # the teacher's training makes the latent, too
    if embedding is not None and not (is_to_be_trained and embedding == Keys.SCVI):
        features_of(adata, embedding, run="nk.pp.expression_features")
    if not is_to_be_trained:
        check_teacher_has(K, resolve_teacher(adata, teacher), teacher)


def check_sizes(preset: Preset, sizes: dict[str, Any]) -> None:
    """Raise ``TypeError`` or ``ValueError`` if there is no such student's network."""
    from nichekd.models import NeighborhoodConfig

    known = [field.name for field in fields(NeighborhoodConfig) if field.name != "n_features"]
    if unknown := sorted(set(sizes) - set(known)):
        raise TypeError(f"sizes= names {unknown}, which a network does not have; it has {known}.")
    for name, value in sizes.items():
        kind, words = (Integral, "a whole number") if name in WHOLE_SIZES else (Real, "a number")
        if name != "architecture" and (isinstance(value, bool) or not isinstance(value, kind)):
            raise TypeError(f"sizes= has {name}={value!r}, which has to be {words}.")
    NeighborhoodConfig.preset(preset, 1, **sizes)


def check_teacher_has(K: int | None, target: Teacher, teacher: Any) -> None:
    """Raise ``ValueError`` if the teacher's niches are not ``K``."""
    if K is not None and len(target.names) != K:
        raise ValueError(
            f"K={K}, but the teacher {teacher if isinstance(teacher, str) else 'array'} has {len(target.names)} niches. "
            f"Leave K out, or train another: nk.tl.nolan(data, K={K})."
        )


def check_temperature(temperature: Any) -> float:
    """A temperature that is not to be matched; raises ``ValueError`` if it is none."""
    is_number = isinstance(temperature, (int, float, np.number)) and not isinstance(temperature, bool)
    if not is_number or not np.isfinite(temperature) or temperature <= 0:
        raise ValueError(f"temperature={temperature!r}; it has to be positive, or 'auto'.")
    return float(temperature)
