"""What ran, with what: ``uns["nichekd"]``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._keys import Keys

if TYPE_CHECKING:
    from anndata import AnnData


def record(adata: AnnData, function: str, *, seconds: float | None = None, **parameters: Any) -> None:
    """Note under ``uns["nichekd"][function]`` the parameters, the version and the time a function ran with.

    ``None`` is left out, for no reader needs it and some formats can't hold it.
    """
    entry = {name: _storable(value) for name, value in parameters.items() if value is not None}
    entry["version"] = version("nichekd")
    if seconds is not None:
        entry["seconds"] = round(float(seconds), 3)
    notes(adata)[function] = entry


def notes(adata: AnnData) -> dict[str, Any]:
    """``uns["nichekd"]``, made on first use."""
    return adata.uns.setdefault(Keys.UNS, {})


def _storable(value: Any) -> Any:
    """``value`` in a form that h5ad and zarr write and read back."""
    if isinstance(value, Mapping):
        return {str(k): _storable(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple, set)):
        return np.asarray(list(value))
    if isinstance(value, (bool, int, float, str, np.ndarray, np.generic)):
        return value
    return str(value)


def plain(value: Any) -> Any:
    """``value`` in Python's own types, as JSON takes them: what a reload of h5ad turned into numpy's goes back."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return [plain(v) for v in value.tolist()]
    return value.item() if isinstance(value, np.generic) else value
