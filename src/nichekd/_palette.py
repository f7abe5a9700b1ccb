"""Colours of niches: the same for matched niches of all methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._keys import Keys
from nichekd._labels import labels_of
from nichekd._matching import contingency, fingerprint, match_by_overlap

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd
    from anndata import AnnData

#: Cells with no label.
MISSING = "#d3d3d3"


def palette(n: int, *, taken: Iterable[str] = ()) -> list[str]:
    """``n`` distinct colours, none of them ``taken``.

    scanpy's palette of 20, adjusted for color-blind readers, then its palettes of 28 and of 102, and around again.
    """
    from scanpy.plotting.palettes import default_20, default_28, default_102

    used = {color.lower() for color in taken}
    free = [
        c for c in dict.fromkeys(color.lower() for color in (*default_20, *default_28, *default_102)) if c not in used
    ]
    return [free[i % len(free)] for i in range(n)]


def colors_of(adata: AnnData, key: str) -> dict[str, str]:
    """Colour of each category of ``obs[key]``; those of ``uns["<key>_colors"]``, which is written where it is missing."""
    names = list(labels_of(adata, key).categories)
    stored = _stored(adata, key, len(names))
    if stored is None:
        stored = palette(len(names))
        adata.uns[Keys.colors(key)] = stored
    return dict(zip(names, stored, strict=True))


def shared_colors(adata: AnnData, keys: Sequence[str], *, reference: str | None) -> dict[str, dict[str, str]]:
    """Colours per column, matched niches alike; written to ``uns["<key>_colors"]``.

    ``reference`` keeps the colours it has. A column that :func:`nichekd.tl.match_niches` matched to it, and that has
    not changed since, keeps its own, but for an unmatched niche in a colour of another column. The student's niches are
    the reference's by name, for it was distilled from it. Any other column is matched here, by the overlap of cells.
    """
    if reference is None or reference not in adata.obs:
        return {key: colors_of(adata, key) for key in keys}
    colors = {reference: colors_of(adata, reference)}
    target = labels_of(adata, reference)
    for key in keys:
        if key == reference:
            continue
        labels = labels_of(adata, key)
        kept = _stored(adata, key, len(labels.categories))
        taken = [color for other in colors.values() for color in other.values()]
        if kept is None or not is_matched(adata, key, labels, reference, target):
            matched = match(adata, key, labels, reference, target)
            kept = matched_colors(labels.categories, matched, colors[reference], taken=taken)
        else:  # the matching knew of no third column
            kept = _unlike(kept, colors[reference].values(), taken)
        adata.uns[Keys.colors(key)] = kept
        colors[key] = dict(zip(labels.categories, kept, strict=True))
    return colors


def matched_colors(
    names: Iterable[str], matched: Mapping[str, str], reference: Mapping[str, str], *, taken: Iterable[str] = ()
) -> list[str]:
    """Colour of each niche: its partner's or, for want of one, a colour that is neither the reference's nor taken."""
    names = list(names)
    alone = [name for name in names if name not in matched]
    own = dict(zip(alone, palette(len(alone), taken=[*reference.values(), *taken]), strict=True))
    return [reference[matched[name]] if name in matched else own[name] for name in names]


def _unlike(colors: list[str], shared: Iterable[str], taken: list[str]) -> list[str]:
    """``colors``, with new ones for those that are ``taken`` and not ``shared`` with the reference."""
    clashing = sorted(set(colors) & set(taken) - set(shared))
    new = dict(zip(clashing, palette(len(clashing), taken=[*taken, *colors]), strict=True))
    return [new.get(color, color) for color in colors]


def match(adata: AnnData, key: str, labels: pd.Categorical, reference: str, target: pd.Categorical) -> dict[str, str]:
    """Niche of ``reference`` that each matched niche of ``key`` stands for in a plot."""
    if _distilled(adata, key, reference) and set(labels.categories) <= set(target.categories):
        return {name: name for name in labels.categories}
    rows, columns = match_by_overlap(contingency(target, labels))
    return {labels.categories[j]: target.categories[i] for i, j in zip(rows, columns, strict=True)}


def is_matched(adata: AnnData, key: str, labels: pd.Categorical, reference: str, target: pd.Categorical) -> bool:
    """Whether ``tl.match_niches`` matched ``key`` to ``reference`` as they are now."""
    entry = _mapping(_note(adata, "match_niches").get(key))
    return entry.get("reference") == reference and entry.get("fingerprint") == fingerprint(labels, target)


def _distilled(adata: AnnData, key: str, reference: str) -> bool:
    """Whether ``key`` is the student of ``reference``: column k of its logits then is column k of the reference's."""
    note = _note(adata, "distill" if key == Keys.NICHE else f"distill_{key}")
    if key != Keys.NICHE and not note:
        return False
    teacher = str(note.get("teacher", Keys.logits(Keys.TEACHER)))
    name = reference.removeprefix(f"{Keys.NICHE}_")
    return teacher in (reference, name, Keys.logits(name))


def _stored(adata: AnnData, key: str, n: int) -> list[str] | None:
    from matplotlib.colors import to_hex

    stored = adata.uns.get(Keys.colors(key))
    return None if stored is None or len(stored) < n else [to_hex(color) for color in np.asarray(stored)[:n]]


def _note(adata: AnnData, function: str) -> Mapping[str, Any]:
    return _mapping(_mapping(adata.uns.get(Keys.UNS)).get(function))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if hasattr(value, "get") else {}
