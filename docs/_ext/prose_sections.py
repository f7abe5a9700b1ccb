"""Our "Returns" sections are prose: what comes back, and the keys that were written. Napoleon expects types there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sphinx.ext.napoleon import NumpyDocstring

if TYPE_CHECKING:
    from typing import Any

    from sphinx.application import Sphinx


def _prose(self: NumpyDocstring, section: str) -> list[str]:
    lines = self._dedent(self._consume_to_next_section())
    while lines and not lines[-1].strip():
        lines.pop()
    return [*self._format_block(f":{section.lower()}: ", lines), ""]


def setup(app: Sphinx) -> dict[str, Any]:
    """Read "Returns" sections as they are."""
    NumpyDocstring._parse_returns_section = _prose
    return {"parallel_read_safe": True, "parallel_write_safe": True}
