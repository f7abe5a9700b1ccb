from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from nichekd.cli import _options as opt


def features(
    data: opt.Data,
    out: opt.Result,
    image: opt.Image = None,
    mpp: opt.Mpp = None,
    encoder: opt.Encoder = None,
    weights: opt.Weights = None,
    crop_px: Annotated[int, typer.Option("--crop-px", help="Side of a crop, in pixels.")] = 224,
    crop_mpp: Annotated[
        float | None,
        typer.Option(
            "--crop-mpp", help="Resample crops to this µm per pixel. Default: the image's.", show_default=False
        ),
    ] = None,
    mode: Annotated[
        Literal["crop", "dense"],
        typer.Option("--mode", help="A crop a cell, or tiles encoded once and read off around each cell."),
    ] = "crop",
    store: Annotated[
        Path | None,
        typer.Option(
            "--store",
            help="Folder to stream the features to: memory stays small, and an interrupted run goes on where it was.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Crops encoded at once.")] = 64,
    device: opt.Device = None,
    table_key: opt.Table = "table",
    overwrite: opt.Overwrite = False,
) -> None:
    """Describe each cell by an encoder's features of the H&E around it (`nk.pp.histology_features`).

    For example:

        nichekd features cells.h5ad he.ome.tif --mpp 0.274 --encoder efficientnet_lite0 --out section.zarr

        nichekd features section.zarr --encoder uni2 --store features/ --out section-uni2.zarr
    """
    from nichekd import pp
    from nichekd.cli import _data

    _data.check_free([out], overwrite=overwrite, inputs=[data, image])
    work = partial(
        pp.histology_features, encoder=encoder, weights=weights, crop_px=crop_px, mpp=crop_mpp, mode=mode, store=store,
        batch_size=batch_size, device=device, table_key=table_key,
    )  # fmt: skip
    _data.rewrite(work, data, out, image, mpp=mpp, table_key=table_key)
    typer.echo(f"Features written to {out}")
