"""How types are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from numpy.typing import ArrayLike
from sphinx_autodoc_typehints import format_annotation

if TYPE_CHECKING:
    from sphinx.config import Config


def array_like(annotation: Any, config: Config) -> str | None:
    """``ArrayLike`` by its name, not by the types it stands for; ``None`` leaves all others as they are.

    A ``str`` before it is one of those types too, but meant by itself.
    """
    parts, stands_for = list(get_args(annotation)), list(get_args(ArrayLike))
    if not all(part in parts for part in stands_for):
        return None
    shown = [
        format_annotation(part, config)
        for i, part in enumerate(parts)
        if part not in stands_for or (i == 0 and part is str)
    ]
    return " | ".join([*shown, ":py:data:`~numpy.typing.ArrayLike`"])
