from pathlib import Path
from typing import Annotated

import typer

from nichekd.cli import _options as opt


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("nichekd-demo"),
    n_niches: Annotated[
        list[int] | None,
        typer.Option(
            "-K",
            "--n-niches",
            help="Number of niches; may be given several times, the last is shown.",
            show_default="5, 10",
        ),
    ] = None,
    encoder: Annotated[
        str, typer.Option("--encoder", help="Image encoder: efficientnet_lite0, color, random, uni2, a model of timm.")
    ] = "efficientnet_lite0",
    seed: opt.Seed = 0,
    overwrite: opt.Overwrite = False,
) -> None:
    """Learn niches from gene expression and find them again in H&E, on a real section that ships with the package.

    Eight minutes of one processor core. Writes **result.zarr** (a SpatialData), **student/** (weights, config, model
    card), **niches.png** (H&E, teacher, student, two baselines) and **agreement.csv** (ARI and NMI against the teacher
    on the test strip, by method and K), and prints that table.

    For example:

        nichekd demo

        nichekd demo --out tour -K 8 --seed 1
    """
    from nichekd import _demo
    from nichekd.cli import _data

    _data.check_free(_demo.results(out), overwrite=overwrite)
    table = _demo.run(out, n_niches=tuple(n_niches or _demo.N_NICHES), encoder=encoder, seed=seed)
    typer.echo(table.to_string(index=False, float_format="%.3f"))
    typer.echo(f"Written to {out}: {', '.join(path.name for path in _demo.results(out))}")
