from pathlib import Path
from typing import Annotated

import typer

from nichekd.cli import _options as opt


def predict(
    data: opt.Data,
    student: Annotated[
        Path, typer.Option("--student", "-s", help="Folder of a student, or its name on a hub.", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Result: .zarr (a SpatialData) or .h5ad (the table).", show_default=False),
    ],
    image: opt.Image = None,
    mpp: opt.Mpp = None,
    use_rep: Annotated[
        str | None,
        typer.Option("--use-rep", help="Image features in obsm. Default: the student's encoder's.", show_default=False),
    ] = None,
    device: opt.Device = None,
    table_key: opt.Table = "table",
    overwrite: opt.Overwrite = False,
) -> None:
    """Map a student's niches from H&E and cell centres alone (`nk.tl.predict_niches`).

    For example:

        nichekd predict cells.h5ad slide.svs --student pancreas/student --out slide.zarr
    """
    from nichekd import models, tl
    from nichekd.cli import _data

    _data.check_free([out], overwrite=overwrite, inputs=[data, image])
    trained = models.NicheStudent.load(student)
    cells = _data.read(data, image, mpp=mpp)
    _data.check_out(out, cells)
    tl.predict_niches(cells, trained, use_rep=use_rep, device=device, table_key=table_key)
    _data.write(cells, out, table_key=table_key)
    typer.echo(f"Niches written to {out}")
