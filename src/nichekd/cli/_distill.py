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
    use_rep: opt.UseRep = None,
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
    from nichekd.cli._split import split_tissue

    results = [out / name for name in ("student", "result.zarr", "result.h5ad", "niches.png", "agreement.csv")]
    _data.check_features(encoder=encoder, use_rep=use_rep, weights=weights, gene_aware=gene_aware)
    _data.check_free(results, overwrite=overwrite, inputs=[data, image])
    cells = _data.read(data, image, mpp=mpp)
    if split:
        split_tissue(cells, use_rep=use_rep, table_key=table_key)
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
    with _data.replacing(results) as new:
        student.save(new / "student")
        report(cells, new, teacher=teacher, table_key=table_key)
    typer.echo(f"Student and niches written to {out}")
