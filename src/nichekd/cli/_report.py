"""What ``nichekd distill`` writes beside the student."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData


def report(cells: AnnData | SpatialData, out: Path, *, teacher: str, table_key: str) -> None:
    """Write the result, its figure and, on test cells, the agreement with the teacher."""
    from anndata import AnnData

    import nichekd as nk
    from nichekd._keys import Keys, Split
    from nichekd._resolve import get_table
    from nichekd.cli import _data

    adata = get_table(cells, table_key)
    reference = teacher if teacher in adata.obs else Keys.niche(teacher.removesuffix("_logits"))
    if reference in adata.obs and Split.TEST in set(adata.obs.get(Keys.SPLIT, ())):
        table = nk.tl.agreement(cells, keys=[Keys.NICHE], reference=reference, table_key=table_key)
        table.to_csv(out / "agreement.csv", index=False)
        typer.echo(table.to_string(index=False, float_format="%.3f"))
    shown = [key for key in (reference, Keys.NICHE) if key in adata.obs]
    nk.pl.niches(cells, keys=shown, reference=reference, table_key=table_key, save=out / "niches.png")
    _data.write(cells, out / ("result.h5ad" if isinstance(cells, AnnData) else "result.zarr"), table_key=table_key)
