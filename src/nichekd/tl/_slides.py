"""Slides as bags of cells: which cells are whose, and what is known of a slide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nichekd._resolve import require, split_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray


def value_of_slides(
    adata: AnnData, key: str, slides: dict[str, NDArray[np.intp]], *, run: str = "your reading of clinical data"
) -> dict[str, Any]:
    """The one value of ``obs[key]`` that each slide's cells have; ``None`` where they have none.

    Raises
    ------
    KeyError
        If the column is missing.
    ValueError
        If cells of a slide differ in it.
    """
    column: pd.Series[Any] = require(adata, "obs", key, run=run)
    values, mixed = {}, []
    for name, cells in slides.items():
        there = column.iloc[cells]
        known = there.dropna().unique()
        if len(known) > 1 or (len(known) and there.isna().any()):
            mixed.append(name)
        values[name] = known[0] if len(known) else None
    if mixed:
        raise ValueError(
            f"obs[{key!r}] differs between cells of the slides {mixed[:5]}{' …' if len(mixed) > 5 else ''}; it has to "
            "be a property of the slide, the same in all its cells."
        )
    return values


def training_slides(adata: AnnData, slides: dict[str, NDArray[np.intp]], split_key: str) -> dict[str, NDArray[np.intp]]:
    """The slides whose cells are ``train``.

    Raises
    ------
    ValueError
        If the split goes through a slide.
    """
    split = split_of(adata, split_key)
    cut = [name for name, cells in slides.items() if len(set(split[cells])) > 1]
    if cut:
        raise ValueError(
            f"obs[{split_key!r}] goes through the slides {cut[:5]}; a slide has to be in one part as a whole. Name a "
            "column made for slides by split_key=."
        )
    return {name: cells for name, cells in slides.items() if split[cells[0]] == "train"}
