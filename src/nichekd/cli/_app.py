from __future__ import annotations

from typing import Annotated

import typer

from nichekd.cli._cuca import cuca
from nichekd.cli._demo import demo
from nichekd.cli._distill import distill
from nichekd.cli._errors import Commands
from nichekd.cli._evaluate import evaluate
from nichekd.cli._features import features
from nichekd.cli._info import info
from nichekd.cli._predict import predict
from nichekd.cli._rank_by_gene import rank_by_gene
from nichekd.cli._segment import segment

app = typer.Typer(
    name="nichekd",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(version("nichekd"))
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version, and leave.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars; only warnings and results.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Tissue niches from spatial transcriptomics, distilled into plain H&E histology.

    `nichekd demo` shows all of it on a small real section that ships with the package.
    """
    from nichekd._memory import keep_freed_memory

    keep_freed_memory()


for command in (demo, features, distill, predict, segment, evaluate, info):
    app.command()(command)
app.add_typer(cuca, name="cuca")
app.add_typer(rank_by_gene, name="rank-by-gene")
