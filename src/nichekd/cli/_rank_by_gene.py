from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from nichekd.cli import _options as opt

rank_by_gene = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Image features whose order of similarity follows that of gene expression (`nk.tl.rank_by_gene`).\n\n"
    "For example: `nichekd rank-by-gene train section.zarr --out model`, then "
    "`nichekd rank-by-gene embed slide.zarr --model model --out embedded.zarr`.",
)


@rank_by_gene.command()
def train(
    data: opt.Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the model.", show_default=False)],
    image: opt.Image = None,
    mpp: opt.Mpp = None,
    use_rep: opt.UseRep = None,
    layer: Annotated[
        str | None,
        typer.Option("--layer", help="Layer with the expression. Default: X, smoothed.", show_default=False),
    ] = None,
    fine_tune: Annotated[
        str | None,
        typer.Option("--fine-tune", help="Train this image encoder itself, on crops; slow.", show_default=False),
    ] = None,
    rank_loss: Annotated[
        Literal["hinge", "soft_rank", "published"], typer.Option("--rank-loss", help="Which rank loss.")
    ] = "hinge",
    rank_weight: Annotated[float, typer.Option("--rank-weight", help="Of the rank loss; 0 leaves it out.")] = 5.0,
    library_key: Annotated[
        str | None, typer.Option("--library-key", help="Column of obs that tells slides apart.", show_default=False)
    ] = None,
    seed: opt.Seed = 0,
    device: opt.Device = None,
    table_key: opt.Table = "table",
    overwrite: opt.Overwrite = False,
) -> None:
    """Train on a section with gene expression.

    What is missing is done first: image features, neighborhoods, smoothed expression.

    For example:

        nichekd rank-by-gene train section.zarr --use-rep X_uni2 --out model
    """
    import nichekd as nk
    from nichekd._keys import Keys
    from nichekd._resolve import get_table
    from nichekd.cli import _data

    results = [out / name for name in ("aligned.safetensors", "config.json", "README.md", "encoder")]
    _data.check_free(results, overwrite=overwrite, inputs=[data, image])
    cells = _data.read(data, image, mpp=mpp)
    adata = get_table(cells, table_key)
    if layer is None and Keys.SMOOTHED not in adata.layers:
        if Keys.CONNECTIVITIES not in adata.obsp:
            nk.pp.neighborhoods(cells, library_key=library_key, table_key=table_key)
        nk.pp.smooth_expression(cells, table_key=table_key)
    model = nk.tl.rank_by_gene(
        cells,
        use_rep=use_rep,
        encoder=fine_tune,
        layer=layer,
        rank_loss=rank_loss,
        rank_weight=rank_weight,
        library_key=library_key,
        seed=seed,
        device=device,
        table_key=table_key,
    )
    with _data.replacing(results) as new:
        model.save(new)
    typer.echo(f"Model written to {out}")


@rank_by_gene.command()
def embed(
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
    """Write the features of a slide that has no genes (`nk.tl.embed_histology`).

    For example:

        nichekd rank-by-gene embed cells.h5ad slide.svs --model model --out slide.zarr
    """
    from nichekd import models, tl
    from nichekd.cli import _data

    _data.check_free([out], overwrite=overwrite, inputs=[data, image, model])
    trained = models.AlignedEncoder.load(model)
    work = partial(tl.embed_histology, model=trained, use_rep=use_rep, device=device, table_key=table_key)
    _data.rewrite(work, data, out, image, mpp=mpp, table_key=table_key)
    typer.echo(f"Features written to {out}")
