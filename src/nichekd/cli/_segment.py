from pathlib import Path
from typing import Annotated, Literal

import typer

from nichekd.cli import _options as opt


def segment(
    slide: Annotated[
        Path,
        typer.Argument(
            metavar="SLIDE",
            help="Slide (.svs, .ndpi, .mrxs, OME-TIFF, tiled TIFF, OME-Zarr), or a SpatialData folder (.zarr) with one.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="What to write, by its ending: .geojson (QuPath; pixels of the slide), .parquet (GeoParquet; µm) or .zarr "
            "(a SpatialData with cells and slide, all its pixels copied).",
            show_default=False,
        ),
    ],
    mpp: Annotated[
        float | None,
        typer.Option("--mpp", help="µm per pixel of the slide, where its metadata don't say.", show_default=False),
    ] = None,
    method: Annotated[
        Literal["watershed", "cellpose", "stardist", "instanseg"],
        typer.Option("--method", help="watershed needs no weights; the others are packages to be installed."),
    ] = "watershed",
    model: Annotated[
        str | None,
        typer.Option("--model", help="Pretrained model of that package, a name or a path.", show_default=False),
    ] = None,
    faint: Annotated[
        float | None,
        typer.Option("--faint", help="watershed: lower (0.2) finds paler nuclei. Default: 0.4.", show_default=False),
    ] = None,
    min_area: Annotated[
        float | None,
        typer.Option("--min-area", help="watershed: smallest nucleus, µm². Default: 8.", show_default=False),
    ] = None,
    max_area: Annotated[
        float | None,
        typer.Option("--max-area", help="watershed: largest nucleus, µm². Default: 400.", show_default=False),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Threads; -1 is one for each processor.")] = -1,
    device: opt.Device = None,
    overwrite: opt.Overwrite = False,
) -> None:
    """Find the nuclei of a slide (`nk.pp.segment_nuclei`).

    For example:

        nichekd segment slide.svs --out nuclei.geojson

        nichekd segment scan.tif --mpp 0.25 --faint 0.2 --out nuclei.parquet
    """
    from nichekd import pp
    from nichekd.cli import _data, _nuclei
    from nichekd.cli._slide import read_slide, words_of_the_shell

    asked = {"faint": faint, "min_area_um2": min_area, "max_area_um2": max_area}
    given = {name: value for name, value in asked.items() if value is not None}
    if given and method != "watershed":
        raise ValueError(f"--faint, --min-area and --max-area go with watershed, not with --method {method}.")
    if model is not None and method == "watershed":
        raise ValueError(f"--model {model} goes with the --method whose model it is.")
    _nuclei.check_ending(out)
    _data.check_free([out], overwrite=overwrite, inputs=[slide])
    sdata = read_slide(slide, mpp=mpp)
    if sdata.tables:
        raise ValueError(f"{slide} has cells already: {', '.join(sdata.tables)}. Name the slide alone.")
    with words_of_the_shell():
        nuclei = pp.NucleusSettings(**given)
        pp.segment_nuclei(sdata, method=method, model=model, nuclei=nuclei, n_jobs=jobs, device=device)
    _nuclei.write(sdata, out)
    typer.echo(f"{sdata['table'].n_obs:,} nuclei written to {out}")
