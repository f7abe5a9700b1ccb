"""What an evaluation is to do on each data set."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from nichekd._keys import Keys

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from nichekd.models import LoraSettings, NolanSettings
    from nichekd.tl._fit_settings import FitSettings
    from nichekd.tl._gene_aware_fit import GeneAwareSettings


@dataclass(frozen=True)
class Plan:
    """The arguments of :func:`nichekd.tl.evaluate`, by their names there."""

    K: tuple[int, ...]
    seeds: tuple[int, ...]
    cell_type_key: str | None = None
    annotation_key: str | None = None
    use_rep: str | None = None
    encoder: str | None = None
    weights: str | Path | None = None
    methods: Sequence[str] | None = None
    gene_aware: str = "efficientnet_lite0"
    gene_aware_weights: str | Path | None = None
    gene_aware_lora: LoraSettings | None = None
    gene_aware_fit: GeneAwareSettings | None = None
    n_teachers: int = 1
    fit: FitSettings | None = None
    nolan_fit: NolanSettings | None = None
    n_permutations: int = 10_000
    split_key: str = Keys.SPLIT
    device: str | None = None
    table_key: str = "table"

    @property
    def fits(self) -> dict[str, str]:
        """Training settings of teachers and students, as a folder notes them."""
        return {
            "n_teachers": str(self.n_teachers),
            "fit": _changes(self.fit),
            "nolan_fit": _changes(self.nolan_fit),
        }

    @property
    def gene_aware_start(self) -> dict[str, str]:
        """Where the gene-aware encoder starts, and how it is trained, as a folder notes it."""
        return {
            "gene_aware": self.gene_aware,
            "gene_aware_weights": _changes(self.gene_aware_weights),
            "gene_aware_lora": "none" if self.gene_aware_lora is None else _changes(self.gene_aware_lora),
            "gene_aware_fit": _changes(self.gene_aware_fit),
        }


def _changes(value: Any) -> str:
    """What of some settings is not by default; of anything else, what it is."""
    if value is None:
        return "default"
    if not is_dataclass(value):
        return str(value)
    default: Any = type(value)()  # type: ignore[misc]  # all settings have defaults
    names = [field.name for field in fields(value) if getattr(value, field.name) != getattr(default, field.name)]
    return ", ".join(f"{name}={getattr(value, name)!r}" for name in names) or "default"
