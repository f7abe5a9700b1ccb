from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from nichekd.cli import _options as opt

cuca = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Abundances of cell types from H&E: train on sections with expression, predict on slides.",
)


@cuca.command()
def train(
    data: opt.Data,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Folder for model/, the result (.zarr, or .h5ad where there is no image) and, with --split, "
            "agreement.csv.",
            show_default=False,
        ),
    ],
    image: opt.Image = None,
    mpp: opt.Mpp = None,
    abundance_key: Annotated[
        str | None, typer.Option("--abundance-key", help="obsm key of abundances.", show_default=False)
    ] = None,
    cell_type_key: Annotated[
        str | None,
        typer.Option("--cell-type-key", help="obs key of cell types, to count around each cell.", show_default=False),
    ] = None,
    radius: Annotated[
        float | None,
        typer.Option("--radius", help="µm to count in. Default: estimated, or 27.5 for --spots.", show_default=False),
    ] = None,
    spots: Annotated[bool, typer.Option("--spots", help="Train on spots of a hexagonal grid, as Visium's.")] = False,
    use_rep: opt.UseRep = None,
    encoder: opt.Encoder = None,
    weights: opt.Weights = None,
    library_key: Annotated[
        str | None, typer.Option("--library-key", help="obs key that tells sections apart.", show_default=False)
    ] = None,
    align: Annotated[str, typer.Option("--align", help="infonce, rmse (published), cosine or none.")] = "infonce",
    split: Annotated[
        bool, typer.Option("--split", help="Hold a strip of tissue out, and judge the model on it (agreement.csv).")
    ] = False,
    seed: opt.Seed = 0,
    device: opt.Device = None,
    table_key: opt.Table = "table",
    overwrite: opt.Overwrite = False,
) -> None:
    """Teach a model that sees H&E only how much there is of each cell type (`nk.tl.cuca`).

    For example:

        nichekd cuca train cells.h5ad he.ome.tif --cell-type-key cell_type --radius 27.5 --split --out types

        nichekd cuca train visium.zarr --abundance-key q05_cell_abundance --out types
    """
    from anndata import AnnData

    import nichekd as nk
    from nichekd.cli import _data
    from nichekd.cli._split import split_tissue

    _check(abundance_key, cell_type_key, spots=spots, use_rep=use_rep)
    _data.check_features(encoder=encoder, use_rep=use_rep, weights=weights)
    results = [out / name for name in ("model", "result.zarr", "result.h5ad", "agreement.csv")]
    _data.check_free(results, overwrite=overwrite, inputs=[data, image])
    cells = _data.read(data, image, mpp=mpp)
    if split and not spots:
        split_tissue(cells, use_rep=use_rep, library_key=library_key, table_key=table_key)
    if cell_type_key is not None:
        made = nk.pp.neighborhood_composition(
            cells, cell_type_key=cell_type_key, radius=radius, spots=spots, library_key=library_key, table_key=table_key
        )
        cells = made if made is not None else cells
    if split and spots:
        split_tissue(cells, use_rep=use_rep, library_key=library_key, table_key=table_key)
    if encoder is not None:
        nk.pp.histology_features(cells, encoder=encoder, weights=weights, device=device, table_key=table_key)
    truth = abundance_key or "cell_abundance"
    model = nk.tl.cuca(
        cells, abundance_key=truth, use_rep=use_rep, library_key=library_key,
        align=None if align == "none" else align,  # type: ignore[arg-type]  # another word is refused there
        seed=seed, device=device, table_key=table_key,
    )  # fmt: skip
    with _data.replacing(results) as new:
        model.save(new / "model")
        if split:
            _judge(cells, truth, library_key, new, table_key=table_key)
        _data.write(cells, new / ("result.h5ad" if isinstance(cells, AnnData) else "result.zarr"), table_key=table_key)
    typer.echo(f"Model and abundances written to {out}")


@cuca.command()
def predict(
    data: opt.Data,
    model: opt.Model,
    out: opt.Result,
    image: opt.Image = None,
    mpp: opt.Mpp = None,
    use_rep: opt.ModelRep = None,
    device: opt.Device = None,
    table_key: opt.Table = "table",
    overwrite: opt.Overwrite = False,
) -> None:
    """Predict abundances of cell types from H&E alone (`nk.tl.predict_abundance`).

    For example:

        nichekd cuca predict cells.h5ad slide.svs --model types/model --out slide.zarr
    """
    from nichekd import models, tl
    from nichekd.cli import _data

    _data.check_free([out], overwrite=overwrite, inputs=[data, image, model])
    trained = models.AbundanceModel.load(model)
    work = partial(tl.predict_abundance, model=trained, use_rep=use_rep, device=device, table_key=table_key)
    _data.rewrite(work, data, out, image, mpp=mpp, table_key=table_key)
    typer.echo(f"Abundances written to {out}")


def _check(abundance_key: str | None, cell_type_key: str | None, *, spots: bool, use_rep: str | None) -> None:
    if (abundance_key is None) == (cell_type_key is None):
        raise ValueError("Name either --abundance-key, abundances that are there, or --cell-type-key, types to count.")
    if spots and (cell_type_key is None or use_rep is not None):
        raise ValueError("--spots are made of cells with a --cell-type-key, and have no features for --use-rep yet.")


def _judge(cells: object, truth: str, library_key: str | None, out: Path, *, table_key: str) -> None:
    """Write the agreement on test cells, and show its means."""
    import nichekd as nk

    table = nk.tl.abundance_agreement(
        cells, truth=truth, prediction="abundance", library_key=library_key, subset="test", table_key=table_key
    )  # type: ignore[arg-type]  # what was read
    table.to_csv(out / "agreement.csv", index=False)
    means = table.groupby("library", sort=False)[["pearson", "spearman", "RMSE", "JSD"]].mean().reset_index()
    typer.echo(means.to_string(index=False, float_format="%.3f"))
