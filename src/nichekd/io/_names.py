"""Names of elements: what ``SpatialData`` takes, found before anything is read."""

from __future__ import annotations

import re
from typing import Any, Final

#: letters of any script, digits, ``_``, ``.``, ``-``; no folder's own name, no leading ``__``
VALID: Final = re.compile(r"(?!__|\.{1,2}$)[\w.-]+")


def check_names(**names: Any) -> None:
    """See that names can be those of elements of one ``SpatialData``.

    Parameters
    ----------
    names
        Names, by the argument they were handed in by, or by what has them.

    Raises
    ------
    TypeError
        If one is no text.
    ValueError
        If one is empty or has other signs than letters, digits, ``_``, ``.`` and ``-``; or if two are the same but for
        upper and lower case, which some file systems don't tell apart.
    """
    for what, name in names.items():
        if not isinstance(name, str):
            raise TypeError(f"{what}={name!r} is a {type(name).__name__}; it has to be a text, e.g. 'he'.")
        if not VALID.fullmatch(name):
            raise ValueError(
                f"{what}={name!r} can't name an element of a SpatialData. Choose one of letters, digits, '_', '.' and "
                "'-' that is not empty and does not begin with '__', e.g. 'he'."
            )
    if len({name.lower() for name in names.values()}) < len(names):
        said = ", ".join(f"{what}={name!r}" for what, name in names.items())
        raise ValueError(f"{said}: names have to differ, and by more than upper and lower case. Choose others.")
