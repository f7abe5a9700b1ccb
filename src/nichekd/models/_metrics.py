"""How good a model was found to be: rows of a table, as plain values that travel in its folder."""

from __future__ import annotations

import math
import numbers
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ABOUT = ("K", "seed", "n_cells", "n_seeds", "n_datasets", "seconds")  # numbers that are no scores
ADVICE = "Hand in a table of nk.tl.agreement or nk.tl.evaluate, or a list of rows with 'key' and scores."


def metric_rows(table: Any, *, n_niches: int) -> tuple[dict[str, Any], ...]:
    """Rows of a table of scores, without what is missing in them.

    Parameters
    ----------
    table
        A ``DataFrame``, or rows as mappings: ``key``, the method; any scores; ``role`` and ``K``, where there are some.
    n_niches
        K of the model. Rows of another are left out.

    Raises
    ------
    TypeError
        If ``table`` is neither, or a value is neither number nor text.
    ValueError
        If a row names no method or has no score, or none is of this K.
    """
    rows = table.to_dict(orient="records") if hasattr(table, "to_dict") else table
    if isinstance(rows, (str, dict)) or not hasattr(rows, "__iter__"):
        raise TypeError(f"metrics is a {type(table).__name__}. {ADVICE}")
    found = tuple(_row(row, place) for place, row in enumerate(rows))
    kept = tuple(row for row in found if row.get("K", n_niches) == n_niches)
    if found and not kept:
        raise ValueError(
            f"metrics are of K = {sorted({row['K'] for row in found})}, the student has {n_niches} niches. Hand in those "
            "of its own experiment."
        )
    return kept


def are_metric_rows(rows: Any) -> bool:
    """Whether ``rows``, read from a file, are what :func:`metric_rows` made."""
    return isinstance(rows, (list, tuple)) and all(
        isinstance(row, dict) and isinstance(row.get("key"), str) and all(map(_is_plain, row.values())) for row in rows
    )


def _row(row: Mapping[str, Any], place: int) -> dict[str, Any]:
    if not hasattr(row, "items"):
        raise TypeError(f"Row {place} of metrics is a {type(row).__name__}. {ADVICE}")
    found = dict(_plain(row.items(), place))
    scores = [name for name, value in found.items() if not isinstance(value, str) and name not in ABOUT]
    if not isinstance(found.get("key"), str) or not scores:
        raise ValueError(f"Row {place} of metrics is {found}: it names no method by 'key', or has no score. {ADVICE}")
    return found


def _plain(items: Iterable[tuple[Any, Any]], place: int) -> Iterable[tuple[str, Any]]:
    for name, value in items:
        if isinstance(value, str):
            yield str(name), value
        elif isinstance(value, numbers.Integral):  # numpy's, too; of bool, which is one, 0 or 1
            yield str(name), int(value)
        elif isinstance(value, numbers.Real):
            if math.isfinite(value):
                yield str(name), float(value)
        elif value is not None:
            raise TypeError(f"Row {place} of metrics has a {type(value).__name__} as {name!r}. {ADVICE}")


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))
