"""Reading what the user names, and writing what came of it."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nichekd._files import remove, written
from nichekd.cli._words import words_of_the_shell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

ZARR, H5AD = ".zarr", ".h5ad"
NEW = ".new"  # in the folder of results
GROUP = ("zarr.json", ".zgroup", ".zmetadata")  # what a zarr of format 3, or 2, has at its top


def read(path: Path, image: Path | None = None, *, mpp: float | None = None) -> AnnData | SpatialData:
    """A ``SpatialData`` folder, or a table, joined with its image where there is one.

    Raises
    ------
    FileNotFoundError
        If a path does not exist.
    ValueError
        If ``path`` is neither .zarr nor .h5ad, or not what its name says, or image and kind of data don't go together.
    """
    if not path.exists():
        raise FileNotFoundError(f"There is no {path} (looked in {Path.cwd()}).")
    if path.suffix == ZARR:
        if image is not None or mpp is not None:
            raise ValueError(f"{path} is a SpatialData, which has its own image. Leave IMAGE and --mpp out.")
        from spatialdata import read_zarr

        if not any((path / name).is_file() for name in GROUP):
            raise ValueError(f"{path} is no SpatialData folder: it has none of {', '.join(GROUP)}.")
        return read_zarr(path)
    if path.suffix != H5AD:
        raise ValueError(f"{path} is neither a SpatialData folder (.zarr) nor an AnnData file (.h5ad).")
    if image is None and mpp is not None:
        raise ValueError("--mpp without an IMAGE; name the image after the cells.")
    import anndata

    try:
        adata = anndata.read_h5ad(path)
    except OSError as err:
        raise ValueError(f"{path} is no AnnData file, or a damaged one ({err}).") from err
    if image is None:
        return adata
    from nichekd import io

    with words_of_the_shell():
        return io.paired(adata, image, mpp=mpp)


def check_out(path: Path, data: AnnData | SpatialData) -> None:
    """That ``path`` can hold ``data``.

    Raises
    ------
    ValueError
        If it ends neither in .zarr nor in .h5ad, or in .zarr and ``data`` is a table.
    """
    from anndata import AnnData

    if path.suffix not in (ZARR, H5AD):
        raise ValueError(f"--out {path} ends neither in .zarr (a SpatialData) nor in .h5ad (the table alone).")
    if path.suffix == ZARR and isinstance(data, AnnData):
        raise ValueError(f"--out {path} is a SpatialData, which has an image. Name the IMAGE, or an .h5ad to write.")


def check_features(
    *, encoder: str | None, use_rep: str | None, weights: Path | None, gene_aware: str | None = None
) -> None:
    """That the image features are named in one way only.

    Raises
    ------
    ValueError
        If they are named in several ways, or weights belong to nothing.
    """
    named = {"--encoder": encoder, "--gene-aware": gene_aware, "--use-rep": use_rep}
    if len(given := [option for option, value in named.items() if value is not None]) > 1:
        raise ValueError(
            f"{' and '.join(given)}: encoders make features, --use-rep takes those that are there. Name one of them."
        )
    if weights is not None and encoder is None and gene_aware is None:
        raise ValueError("--weights without an --encoder; name the encoder they belong to.")


def rewrite(
    work: Callable[[Any], object],
    data: Path,
    out: Path,
    image: Path | None = None,
    *,
    mpp: float | None = None,
    table_key: str = "table",
) -> None:
    """Read ``data``, have ``work`` write into it, and write the result to ``out``, which has to be free.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`read` and :func:`check_out` do.
    """
    cells = read(data, image, mpp=mpp)
    check_out(out, cells)
    work(cells)
    write(cells, out, table_key=table_key)


def check_free(paths: Sequence[Path], *, overwrite: bool, inputs: Sequence[Path | None] = ()) -> None:
    """That results may be written to ``paths``; asked before the work begins.

    Raises
    ------
    FileExistsError
        If one of them exists and may not be overwritten.
    ValueError
        If one of them is, holds, or lies in an input.
    """
    for path in paths:
        for given in filter(None, inputs):
            out, source = path.resolve(), given.resolve()
            if out == source or out in source.parents or source in out.parents:
                raise ValueError(f"The result {path} would take the place of the input {given}. Name another --out.")
    there = [str(path) for path in paths if path.exists()]
    if there and not overwrite:
        raise FileExistsError(f"There already: {', '.join(there)}. Name another --out, or add --overwrite.")


def write(data: AnnData | SpatialData, path: Path, *, table_key: str = "table") -> None:
    """Write a ``SpatialData`` to a .zarr folder, or a table alone to an .h5ad file, in place of what is there.

    What is there goes when the new one is complete: a full disk costs the new one only.
    """
    from nichekd._resolve import get_table

    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as new:
        if path.suffix == H5AD:
            get_table(data, table_key).write_h5ad(new)
        else:
            data.write(new)


@contextmanager
def replacing(paths: Sequence[Path]) -> Iterator[Path]:
    """A new folder to write results to; they take the place of ``paths``, all in one folder, when all are written.

    Of ``paths`` those that were not written anew go: they would be of an earlier run.
    """
    out = paths[0].parent
    new, made = out / NEW, [folder for folder in (out, *out.parents) if not folder.exists()]
    remove(new)  # of a run that was killed
    new.mkdir(parents=True)
    try:
        yield new
    except BaseException:
        remove(new)
        for folder in made:
            if not any(folder.iterdir()):
                folder.rmdir()
        raise
    for path in paths:
        remove(path)
        if (new / path.name).exists():
            (new / path.name).rename(path)
    remove(new)
