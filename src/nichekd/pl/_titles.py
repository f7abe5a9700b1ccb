"""What a reader calls the columns that figures show."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from nichekd._keys import Keys
from nichekd._labels import REFERENCE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

TITLES: Final = {
    REFERENCE: "Teacher (gene expression)",
    Keys.NICHE: "Student (H&E only)",
    Keys.niche(Keys.HISTOLOGY_NOLAN): "Histology-NOLAN",
    Keys.niche(Keys.HISTOLOGY_LEIDEN): "Histology-Leiden",
    Keys.NICHE_TRUE: "Planted niches",
    # rows of nk.tl.evaluate
    "niche_gene_aware": "Student, gene-aware encoder (H&E only)",
    "niche_gene_aware_nolan": "NOLAN, gene-aware encoder",
    "niche_gene_aware_leiden": "Leiden, gene-aware encoder",
    "niche_color": "Student on colour statistics",
    "niche_random_encoder": "Student on a random encoder",
    "niche_shuffled": "Student on shuffled images",
    "niche_expression": "Student on expression",
    "niche_teacher_other_seed": "Teacher, another seed",
    "niche_own_crop": "Student without neighbors",
    "niche_no_position": "Student without positions",
    "niche_hard_labels": "Student of hard labels",
    "niche_transformer": "Student, transformer",
}


def title_of(key: str) -> str:
    """What a reader calls the column ``key``."""
    return TITLES.get(key, key)


def short_title_of(key: str) -> str:
    """The same without the explanation in brackets."""
    return title_of(key).split(" (")[0]


def short_titles(titles: Mapping[str, str]) -> dict[str, str]:
    """``titles`` without the explanation in brackets, unless only that tells two of them apart."""
    short = {key: title.split(" (")[0] for key, title in titles.items()}
    count = Counter(short.values())
    return {key: title if count[title] == 1 else titles[key] for key, title in short.items()}


def image_title(adata: AnnData) -> str:
    """``H&E``, marked where the data say that it was never photographed."""
    return "H&E (virtual)" if "virtual" in str(adata.uns.get("image_note", "")) else "H&E"
