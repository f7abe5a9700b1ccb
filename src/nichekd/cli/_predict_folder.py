"""A prediction with all its results in one folder."""

from __future__ import annotations

import hashlib
import logging
import shlex
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nichekd.cli import _data
from nichekd.cli._run_folder import CELLS, FEATURES, GEOJSON, MAP, NUCLEI, REPORT, RESULT, RESULTS, RunFolder
from nichekd.cli._slide import find_nuclei, needs_nuclei, read_any
from nichekd.cli._student import add_features, encoder_for, fingerprint_of, load_student

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

    from nichekd.models import Encoder, NicheStudent

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """What the user said; the names are the command's."""

    data: Path
    student: str
    out: Path
    image: Path | None
    mpp: float | None
    nuclei: Path | None
    min_confidence: float | None
    use_rep: str | None
    weights: Path | None
    full_image: bool | None
    device: str | None
    table_key: str
    overwrite: bool

    @property
    def files(self) -> list[Path | None]:
        """Inputs that no result may take the place of."""
        return [self.data, self.image, self.nuclei, self.weights]

    @property
    def command(self) -> str:
        """As it is typed."""
        options = {
            "--student": self.student, "--out": self.out, "--mpp": self.mpp, "--nuclei": self.nuclei,
            "--min-confidence": self.min_confidence, "--use-rep": self.use_rep, "--weights": self.weights,
            "--device": self.device, "--table-key": self.table_key if self.table_key != "table" else None,
        }  # fmt: skip
        words: list[Any] = ["nichekd", "predict", self.data, *([self.image] if self.image else [])]
        for name, value in options.items():
            words += [name, value] if value is not None else []
        flag = {None: [], True: ["--full-image"], False: ["--no-full-image"]}[self.full_image]
        return shlex.join(map(str, [*words, *flag]))


def to_file(asked: Asked) -> int:
    """The result alone, a .zarr or an .h5ad; returns the number of cells."""
    from nichekd._resolve import get_table

    _data.check_free([asked.out], overwrite=asked.overwrite, inputs=asked.files)
    student, cells, encoder = _read(asked)
    _data.check_out(asked.out, cells)
    find_nuclei(cells, asked.nuclei, device=asked.device, table_key=asked.table_key)
    if encoder is not None:
        add_features(cells, student, encoder, store=None, device=asked.device, table_key=asked.table_key)
    _predict(asked, cells, student)
    _data.write(cells, asked.out, table_key=asked.table_key)
    return get_table(cells, asked.table_key).n_obs


def to_folder(asked: Asked) -> int:
    """All results; what a killed run has finished is taken up. Returns the number of cells."""
    from nichekd._resolve import get_table

    folder = RunFolder(asked.out)
    _data.check_free([asked.out / name for name in RESULTS], overwrite=True, inputs=asked.files)
    folder.check_free(overwrite=asked.overwrite)
    with _collected() as said:
        student, cells, encoder = _read(asked)
        if not getattr(cells, "images", None):
            raise ValueError(
                f"--out {asked.out} is a folder with figures of the H&E, and {asked.data} has none. Name the IMAGE; or a "
                "file to write, .h5ad."
            )
        with folder.writing(_made_of(asked, student, cells), overwrite=asked.overwrite):
            _keep_nuclei(asked, cells, folder)
            if encoder is not None:
                store = folder.work / FEATURES
                add_features(cells, student, encoder, store=store, device=asked.device, table_key=asked.table_key)
            _predict(asked, cells, student)
            _write(asked, folder, cells, student, list(dict.fromkeys(said)))  # type: ignore[arg-type]
            folder.finish(command=asked.command)
    return get_table(cells, asked.table_key).n_obs


def _predict(asked: Asked, cells: Any, student: NicheStudent) -> None:
    from nichekd import tl

    tl.predict_niches(
        cells, student, use_rep=asked.use_rep, min_confidence=asked.min_confidence, device=asked.device,
        table_key=asked.table_key,
    )  # fmt: skip


def _read(asked: Asked) -> tuple[NicheStudent, AnnData | SpatialData, Encoder | None]:
    """All that can be wrong with what was named is found here, before hours of work and before anything is written."""
    from nichekd._resolve import get_table
    from nichekd._settings import settings
    from nichekd.models._precision import resolve_device

    resolve_device(asked.device or settings.device)
    student = load_student(asked.student)
    cells = read_any(asked.data, asked.image, mpp=asked.mpp)
    if needs_nuclei(cells):
        if asked.use_rep is not None:
            raise ValueError(f"--use-rep {asked.use_rep}: {asked.data} has no cells yet. Leave it out.")
    else:
        get_table(cells, asked.table_key)
        if asked.nuclei is not None:
            raise ValueError(f"--nuclei {asked.nuclei}: {asked.data} has cells already. Leave it out.")
    if asked.nuclei is not None:
        from nichekd.io._geojson import read_polygons

        read_polygons(asked.nuclei)
    encoder = encoder_for(student, cells, use_rep=asked.use_rep, weights=asked.weights, table_key=asked.table_key)
    return student, cells, encoder


def _made_of(asked: Asked, student: NicheStudent, cells: Any) -> dict[str, tuple[str, str]]:
    """What tells this run from others."""
    import numpy as np

    from nichekd._image import get_image, image_fingerprint
    from nichekd._resolve import centres_um, get_table
    from nichekd.pp._bare_image import bare_image

    made_of = {"student": (fingerprint_of(student), asked.student)}
    if needs_nuclei(cells):
        image = bare_image(cells).image
        if asked.nuclei is not None:
            digest = hashlib.sha256(asked.nuclei.read_bytes()).hexdigest()[:16]
            made_of["nuclei"] = (digest, str(asked.nuclei))
    else:
        adata = get_table(cells, asked.table_key)
        image = get_image(cells, adata)
        centres = np.ascontiguousarray(centres_um(adata), dtype="<f8").tobytes()
        made_of["cells"] = (hashlib.sha256(centres).hexdigest()[:16], f"{adata.n_obs:,} cells of {asked.data}")
    mpp = f"{image.mpp:.5g}"
    made_of["mpp"] = (mpp, mpp)
    made_of["slide"] = (image_fingerprint(image), str(asked.image or asked.data))
    return made_of


def _keep_nuclei(asked: Asked, cells: Any, folder: RunFolder) -> None:
    """Nuclei of the slide, or those that an earlier run has found."""
    from spatialdata import SpatialData, read_zarr

    kept = folder.work / NUCLEI
    if needs_nuclei(cells) and kept.exists():
        found = read_zarr(kept)
        for name, shapes in found.shapes.items():
            cells.shapes[name] = shapes
        (table,) = found.tables.values()
        cells.tables[asked.table_key] = table
        log.info("%d nuclei are in %s; going on from there", table.n_obs, kept)
    elif find_nuclei(cells, asked.nuclei, device=asked.device, table_key=asked.table_key):
        with folder.keeping(NUCLEI) as path:
            SpatialData(shapes=dict(cells.shapes), tables=dict(cells.tables)).write(path)


def _write(asked: Asked, folder: RunFolder, cells: SpatialData, student: NicheStudent, said: list[str]) -> None:
    """The results, the slowest and largest first."""
    import matplotlib.pyplot as plt

    from nichekd import io, pl
    from nichekd._image import get_image
    from nichekd._keys import Keys
    from nichekd._report import Run, write_report
    from nichekd._resolve import get_table
    from nichekd.cli._results import cell_frame, result_object

    table_key = asked.table_key
    image = get_image(cells, get_table(cells, table_key))
    with folder.result(RESULT) as path:
        result_object(cells, image, full_image=asked.full_image).write(path)
    with folder.result(CELLS) as path:
        cell_frame(get_table(cells, table_key)).to_parquet(path, index=False)
    io.write_geojson(cells, folder.path / GEOJSON, table_key=table_key)  # whole or not at all, too
    with folder.result(MAP) as path:
        plt.close(pl.niches(cells, keys=[Keys.NICHE], table_key=table_key, save=path))
    run = Run(slide=str(asked.image or asked.data), student=asked.student, command=asked.command, warnings=tuple(said))
    with folder.result(REPORT) as path:
        write_report(cells, student, image, path, run=run, table_key=table_key)


@contextmanager
def _collected() -> Iterator[list[str]]:
    """Warnings, shown as they come, and kept for the report."""
    said: list[str] = []
    with warnings.catch_warnings():
        show = warnings.showwarning

        def keep(message: Warning | str, *where: Any, **more: Any) -> None:
            said.append(str(message))
            show(message, *where, **more)

        warnings.showwarning = keep
        yield said
