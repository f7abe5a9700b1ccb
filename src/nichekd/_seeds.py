"""What a seed may be: found before anything is computed."""

from __future__ import annotations

from typing import Any

import numpy as np

LARGEST = 2**32 - 1  # of numpy's old generator, which scikit-learn seeds


def check_seed(seed: Any, name: str = "seed") -> None:
    """See that a seed is one.

    Raises
    ------
    TypeError
        If it is no whole number.
    ValueError
        If it is negative, or has more than 32 bits.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"{name}={seed!r} is a {type(seed).__name__}; it has to be a whole number, e.g. {name}=0.")
    if not 0 <= seed <= LARGEST:
        raise ValueError(f"{name}={seed}; it has to be from 0 to {LARGEST:,}, e.g. {name}=0.")
