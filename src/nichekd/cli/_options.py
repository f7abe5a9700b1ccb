"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="Cells: a SpatialData folder (.zarr), or an AnnData file (.h5ad) with centres in µm in obsm['spatial'].",
        show_default=False,
    ),
]
Image = Annotated[
    Path | None,
    typer.Argument(metavar="IMAGE", help="H&E of an .h5ad: OME-TIFF, .svs, .ndpi, TIFF, PNG.", show_default=False),
]
Mpp = Annotated[
    float | None,
    typer.Option("--mpp", help="µm per pixel of IMAGE, where its metadata don't say.", show_default=False),
]
Encoder = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        help="Image encoder: uni2 (the paper's; gated), efficientnet_lite0, color, random, or a model of timm. "
        "Default: `NICHEKD_ENCODER`, else uni2.",
        show_default=False,
    ),
]
Weights = Annotated[Path | None, typer.Option("--weights", help="Weights file of the encoder.", show_default=False)]
Device = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda or mps. Default: `NICHEKD_DEVICE`, else the best.", show_default=False),
]
Table = Annotated[str, typer.Option("--table-key", help="Table of a SpatialData.")]
Seed = Annotated[int, typer.Option("--seed", help="Same seed, same CPU, same result.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run wrote.")]
UseRep = Annotated[
    str | None,
    typer.Option("--use-rep", help="Image features in obsm. Default: those written last.", show_default=False),
]
ModelRep = Annotated[
    str | None,
    typer.Option("--use-rep", help="Image features in obsm. Default: the model's encoder's.", show_default=False),
]
Model = Annotated[Path, typer.Option("--model", "-m", help="Folder of a trained model.", show_default=False)]
Result = Annotated[
    Path, typer.Option("--out", "-o", help="Result: .zarr (a SpatialData) or .h5ad (the table).", show_default=False)
]
