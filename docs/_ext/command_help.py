"""The directive ``command-help``: what ``nichekd COMMAND --help`` prints."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from typing import Any

    from sphinx.application import Sphinx

WIDTH = "92"


class CommandHelp(SphinxDirective):
    """Its arguments are the command, and its subcommand where it has some."""

    required_arguments = 1
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Run it."""
        call = "from nichekd.cli import app; app(prog_name='nichekd')"
        plain = os.environ | {"COLUMNS": WIDTH, "TERMINAL_WIDTH": WIDTH, "NO_COLOR": "1", "TERM": "dumb"}
        text = subprocess.run(
            [sys.executable, "-c", call, *self.arguments, "--help"],
            env=plain,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        lines = [line.rstrip() for line in text.strip("\n").split("\n")]
        block = nodes.literal_block("", "\n".join(lines))
        block["language"] = "none"
        return [block]


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive."""
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
