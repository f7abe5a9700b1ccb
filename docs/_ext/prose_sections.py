"""Our "Returns" sections are prose: what comes back, and the keys that were written. Napoleon expects types there.

"Attributes" may name several at once, which it takes for a name and a type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sphinx.ext.napoleon import NumpyDocstring

if TYPE_CHECKING:
    from typing import Any

    from sphinx.application import Sphinx


def _prose(self: NumpyDocstring, section: str) -> list[str]:
    lines = self._dedent(self._consume_to_next_section())
    if lines and lines[0].strip() == ":":  # sphinx_autodoc_typehints' way of saying that no type follows
        del lines[0]
    while lines and not lines[-1].strip():
        lines.pop()
    return [*self._format_block(f":{section.lower()}: ", lines), ""]


def _definitions(self: NumpyDocstring, section: str) -> list[str]:
    lines = [".. rubric:: Attributes", ""]
    for names, _, description in self._consume_fields(parse_type=False):
        lines.append(", ".join(f"``{name.strip()}``" for name in names.split(",")))
        lines.extend([*self._indent(description, 4), ""])
    return lines


def setup(app: Sphinx) -> dict[str, Any]:
    """Read these sections our way."""
    NumpyDocstring._parse_returns_section = _prose
    NumpyDocstring._parse_attributes_section = _definitions
    return {"parallel_read_safe": True, "parallel_write_safe": True}
