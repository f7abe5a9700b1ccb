"""How a method's logits and labels are written, once for all methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray


def write_labels(
    adata: AnnData, key: str, codes: NDArray[np.integer], names: Sequence[str] | None = None, *, n_niches: int
) -> None:
    """``obs[key]``, categorical; all K names are categories, also those no cell has; code -1 is missing."""
    categories = [str(k) for k in range(n_niches)] if names is None else list(names)
    adata.obs[key] = pd.Categorical.from_codes(np.asarray(codes), categories=categories)
    adata.uns.pop(f"{key}_colors", None)
