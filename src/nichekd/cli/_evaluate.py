from pathlib import Path
from typing import Annotated

import typer

from nichekd.cli import _options as opt


def evaluate(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Cells: a SpatialData folder (.zarr), or an AnnData file (.h5ad) with centres in µm in "
            "obsm['spatial']; or a folder of these, each .h5ad beside an image of the same name.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Folder for finished runs, tables (.csv) and agreement.png. The same call goes on where one stopped.",
            show_default=False,
        ),
    ],
    image: opt.Image = None,
    mpp: opt.Mpp = None,
    n_niches: Annotated[
        list[int] | None,
        typer.Option(
            "-K", "--n-niches", help="Number of niches; give it once for each. Default: 10 and 20.", show_default=False
        ),
    ] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seed", help="Seed; give it once for each. Default: 0, 1 and 2.", show_default=False),
    ] = None,
    cell_type_key: Annotated[
        str | None,
        typer.Option(
            "--cell-type-key", help="obs column with cell types, for the composition divergence.", show_default=False
        ),
    ] = None,
    annotation_key: Annotated[
        str | None,
        typer.Option(
            "--annotation-key", help="obs column with a pathologist's annotation, for the probe.", show_default=False
        ),
    ] = None,
    encoder: opt.Encoder = None,
    weights: opt.Weights = None,
    use_rep: opt.UseRep = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="Row of the tables; give it once for each. Default: all but the ablations (see nk.tl.evaluate).",
            show_default=False,
        ),
    ] = None,
    gene_aware: Annotated[
        str,
        typer.Option(
            "--gene-aware",
            help="Where the gene-aware encoder starts: small_cnn, efficientnet_lite0, uni2, or a model of timm.",
        ),
    ] = "efficientnet_lite0",
    gene_aware_weights: Annotated[
        Path | None, typer.Option("--gene-aware-weights", help="Weights file of that start.", show_default=False)
    ] = None,
    gene_aware_lora: Annotated[
        bool, typer.Option("--gene-aware-lora", help="Train adapters in a vision transformer instead of all of it.")
    ] = False,
    n_teachers: Annotated[int, typer.Option("--n-teachers", help="Seeds whose consensus each teacher is.")] = 1,
    device: opt.Device = None,
    table_key: opt.Table = "table",
) -> None:
    """Judge student, baselines, floors and ceiling on held-out tissue (`nk.tl.evaluate`).

    Writes evaluation.csv and its parts: agreement.csv, composition.csv, probe.csv, calibration.csv.

    For example:

        nichekd evaluate cells.h5ad he.ome.tif --mpp 0.274 --cell-type-key cell_type -K 10 -K 20 --out evaluation

        nichekd evaluate sections/ --encoder uni2 --out table1
    """
    import matplotlib.pyplot as plt

    import nichekd as nk
    from nichekd.cli import _data

    _data.check_features(encoder=encoder, use_rep=use_rep, weights=weights)
    many = data.is_dir() and data.suffix != _data.ZARR
    if many and (image is not None or mpp is not None):
        raise ValueError(f"{data} is a folder of data sets, which have images of their own. Leave IMAGE and --mpp out.")
    cells = data if many else _data.read(data, image, mpp=mpp)
    table = nk.tl.evaluate(
        cells, K=n_niches or (10, 20), seeds=seeds or (0, 1, 2), cell_type_key=cell_type_key,
        annotation_key=annotation_key, use_rep=use_rep, encoder=encoder, weights=weights, methods=methods,
        gene_aware=gene_aware, gene_aware_weights=gene_aware_weights,
        gene_aware_lora=nk.models.LoraSettings() if gene_aware_lora else None, n_teachers=n_teachers, out=out,
        device=device, table_key=table_key,
    )  # fmt: skip
    shown = [
        name
        for name in ("dataset", "K", "key", "ARI", "ARI_sd", "NMI", "NMI_sd", "JSD", "macro_f1", "n_cells")
        if name in table
    ]
    typer.echo(table[shown].to_string(index=False, float_format="%.3f", na_rep=""))
    mean = table[table["dataset"] == "mean"] if "dataset" in table else table
    plt.close(nk.pl.agreement(mean[mean["ARI"].notna()], save=out / "agreement.png"))
    typer.echo(f"Tables and agreement.png written to {out}")
