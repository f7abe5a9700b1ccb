"""How types are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from numpy.typing import ArrayLike
from sphinx.util.typing import restify

if TYPE_CHECKING:
    from sphinx.config import Config


ARRAY_LIKE = ":py:data:`~numpy.typing.ArrayLike`"


def array_like(annotation: Any, config: Config) -> str | None:
    """``ArrayLike`` by its name, not by the types it stands for; ``None`` leaves all others as they are.

    A ``str`` before it is one of those types too, but meant by itself.
    """
    if annotation is ArrayLike:
        return ARRAY_LIKE
    parts, stands_for = list(get_args(annotation)), list(get_args(ArrayLike))
    # from numpy 2.5 on, it is a type of its own rather than a union, and stands for nothing
    if not stands_for or not all(part in parts for part in stands_for):
        return None
    shown = [restify(part) for i, part in enumerate(parts) if part not in stands_for or (i == 0 and part is str)]
    return " | ".join([*shown, ARRAY_LIKE])
