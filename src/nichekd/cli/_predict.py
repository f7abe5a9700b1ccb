from pathlib import Path
from typing import Annotated

import typer

from nichekd.cli import _options as opt


def predict(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="A slide (.svs, .ndpi, .mrxs, OME-TIFF, tiled TIFF, OME-Zarr). Or cells: a SpatialData folder (.zarr), "
            "or an AnnData file (.h5ad) with centres in µm in obsm['spatial'].",
            show_default=False,
        ),
    ],
    student: Annotated[
        str,
        typer.Option(
            "--student", "-s", help="Folder of a student, or its name on a hub: OWNER/NAME.", show_default=False
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Folder for all results. Or a name that ends in .zarr (a SpatialData) or .h5ad (the table), for that alone.",
            show_default=False,
        ),
    ],
    image: opt.Image = None,
    mpp: Annotated[
        float | None,
        typer.Option("--mpp", help="µm per pixel of the slide, where its metadata don't say.", show_default=False),
    ] = None,
    nuclei: Annotated[
        Path | None,
        typer.Option("--nuclei", help="GeoJSON (QuPath's) of the slide's nuclei. Default: found.", show_default=False),
    ] = None,
    min_confidence: Annotated[
        float | None,
        typer.Option(
            "--min-confidence", min=0, max=1, help="Probability below which a cell gets no niche.", show_default=False
        ),
    ] = None,
    use_rep: Annotated[
        str | None,
        typer.Option("--use-rep", help="Image features in obsm. Default: the student's encoder's.", show_default=False),
    ] = None,
    weights: opt.Weights = None,
    full_image: Annotated[
        bool | None,
        typer.Option(
            "--full-image/--no-full-image",
            help="Copy all of the slide's pixels into result.zarr, or an overview. Default: all, up to 100 megapixels.",
            show_default=False,
        ),
    ] = None,
    device: opt.Device = None,
    table_key: opt.Table = "table",
    overwrite: opt.Overwrite = False,
) -> None:
    """Map a student's niches on a slide, from H&E alone (`nk.tl.predict_niches`).

    What is missing is done first: nuclei, and image features as the student was trained on. The folder gets
    **report.html** (open this first), **niches.png**, **cells.parquet** (a row a cell), **niches.geojson** (for QuPath)
    and **result.zarr** (a SpatialData). The same call goes on where a killed one stopped.

    For example:

        nichekd predict slide.svs --student pancreas/student --out slide

        nichekd predict scan.tif --mpp 0.25 --nuclei nuclei.geojson -s OWNER/NAME --min-confidence 0.5 -o scan

        nichekd predict cells.h5ad slide.svs --student pancreas/student --out slide.zarr
    """
    from nichekd.cli import _data, _predict_folder

    asked = _predict_folder.Asked(
        data=data, student=student, out=out, image=image, mpp=mpp, nuclei=nuclei, min_confidence=min_confidence,
        use_rep=use_rep, weights=weights, full_image=full_image, device=device, table_key=table_key,
        overwrite=overwrite,
    )  # fmt: skip
    if out.suffix in (_data.ZARR, _data.H5AD):
        n_cells = _predict_folder.to_file(asked)
        typer.echo(f"Niches of {n_cells:,} cells written to {out}")
        return
    n_cells = _predict_folder.to_folder(asked)
    typer.echo(f"Niches of {n_cells:,} cells written to {out}; open {out / 'report.html'}")
