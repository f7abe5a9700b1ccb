from pathlib import Path
from typing import Annotated

import typer

from nichekd.cli import _options as opt


def distill(
    data: opt.Data,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Folder for student/, the result (.zarr, or .h5ad where there is no image) and niches.png.",
            show_default=False,
        ),
    ],
    image: opt.Image = None,
    mpp: opt.Mpp = None,
    n_niches: Annotated[
        int | None,
        typer.Option("-K", "--n-niches", help="Number of niches. Default: the teacher's, or 10.", show_default=False),
    ] = None,
    use_rep: Annotated[
        str | None,
        typer.Option("--use-rep", help="Image features in obsm. Default: those written last.", show_default=False),
    ] = None,
    encoder: opt.Encoder = None,
    gene_aware: Annotated[
        str | None,
        typer.Option(
            "--gene-aware",
            help="Train an image encoder to tell expression first (`nk.tl.gene_aware_encoder`), from this start: "
            "efficientnet_lite0, small_cnn, uni2, or a model of timm. Tells niches best.",
            show_default=False,
        ),
    ] = None,
    weights: opt.Weights = None,
    teacher: Annotated[
        str, typer.Option("--teacher", help="obsm key of K logits, or obs key of anybody's labels.")
    ] = "teacher_logits",
    split: Annotated[
        bool,
        typer.Option("--split", help="Hold a strip of tissue out, and judge the student on it (agreement.csv)."),
    ] = False,
    seed: opt.Seed = 0,
    device: opt.Device = None,
    table_key: opt.Table = "table",
    overwrite: opt.Overwrite = False,
) -> None:
    """Teach a student that sees H&E only the niches of a teacher that saw gene expression (`nk.tl.distill`).

    What is missing is done first: image features, expression features, neighborhoods, the teacher.

    For example:

        nichekd distill cells.h5ad he.ome.tif --mpp 0.274 -K 10 --split --out pancreas

        nichekd distill cells.h5ad he.ome.tif --mpp 0.274 -K 10 --gene-aware efficientnet_lite0 --out pancreas

        nichekd distill section-uni2.zarr --teacher pathologist_region --out regions
    """
    import nichekd as nk
    from nichekd.cli import _data
    from nichekd.cli._report import report

    results = [out / name for name in ("student", "result.zarr", "result.h5ad", "niches.png", "agreement.csv")]
    named = {"--encoder": encoder, "--gene-aware": gene_aware, "--use-rep": use_rep}
    if len(given := [option for option, value in named.items() if value is not None]) > 1:
        raise ValueError(
            f"{' and '.join(given)}: --encoder and --gene-aware make features, --use-rep takes those that are there. "
            "Name one of them."
        )
    if weights is not None and encoder is None and gene_aware is None:
        raise ValueError("--weights without an --encoder or --gene-aware; name the encoder they belong to.")
    _data.check_free(results, overwrite=overwrite, inputs=[data, image])
    cells = _data.read(data, image, mpp=mpp)
    if split:
        nk.pp.split(cells, table_key=table_key)
    if gene_aware is not None:
        trained = nk.tl.gene_aware_encoder(
            cells, encoder=gene_aware, weights=weights, seed=seed, device=device, table_key=table_key
        )
        nk.pp.histology_features(cells, encoder=trained, device=device, table_key=table_key)
    elif encoder is not None:
        nk.pp.histology_features(cells, encoder=encoder, weights=weights, device=device, table_key=table_key)
    student = nk.tl.distill(
        cells, n_niches, use_rep=use_rep, teacher=teacher, seed=seed, device=device, table_key=table_key
    )
    for path in results:
        _data.remove(path)
    student.save(out / "student")
    report(cells, out, teacher=teacher, table_key=table_key)
    typer.echo(f"Student and niches written to {out}")
