from pathlib import Path
from typing import Annotated

import typer


def info(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="Slide, student, SpatialData (.zarr), table (.h5ad), feature store, or folder of nichekd predict.",
            show_default=False,
        ),
    ],
) -> None:
    """Say what a file or folder is, and what nichekd finds in it; nothing is changed.

    For example:

        nichekd info slide.svs

        nichekd info pancreas/student
    """
    from nichekd.cli._describe import describe

    facts = describe(path)
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        typer.echo(f"{name:<{width}}{value}")
