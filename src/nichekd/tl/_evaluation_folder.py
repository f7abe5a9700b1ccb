"""The folder of an evaluation: what is finished stays finished."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._files import held, written
from nichekd._record import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from nichekd.tl._evaluation_methods import Outcome

FORMAT = 2  # settings by what is not default in them
MANIFEST, LOCK, RUNS, TEACHER = "manifest.json", "writer.lock", "runs", "teacher"
OF_STUDENTS = ("proba", "calibrated")  # (0, 0) of other methods
FOLDERS = (RUNS, "features", "encoder")
Shape = tuple[int | None, ...]
ONE, MANY = "one data set", "many data sets"
#: tables; the command line draws the figure
TABLES = (
    "evaluation.csv", "agreement.csv", "composition.csv", "probe.csv", "calibration.csv", "runs.csv", "teachers.csv",
    "agreement.png",
)  # fmt: skip
OURS = (*FOLDERS, *TABLES)


RUN = re.compile(r"K(?P<K>\d+)_seed(?P<seed>\d+)")


def run_name(n_niches: int, seed: int) -> str:
    """By what a folder knows a K and a seed."""
    return f"K{n_niches}_seed{seed}"


class EvaluationFolder:
    """Finished runs, ``runs/K<K>_seed<seed>/<method>.npz``, and what they were made of, ``manifest.json``.

    Parameters
    ----------
    path
        The folder; ``None`` keeps everything in memory.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self._memory: dict[tuple[str, str], dict[str, NDArray[Any]]] = {}

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder.

        Raises
        ------
        NotADirectoryError
            If the path is a file.
        ValueError
            If what it holds is not of an evaluation.
        RuntimeError
            If another process holds it.
        """
        if self.path is None:
            yield
            return
        _read_manifest(self.path / MANIFEST, refused=OURS)  # no lock is left in a folder of others
        _make(self.path)
        busy = RuntimeError(f"Another process writes to out={str(self.path)!r}. Wait for it, or name another folder.")
        with held(self.path / LOCK, busy):
            yield

    def check(self, made_of: Mapping[str, Any]) -> None:
        """Note what the results are made of.

        Raises
        ------
        ValueError
            If the folder's results are of other data or settings, its manifest is lost or damaged, or what it holds is
            not of an evaluation.
        """
        if self.path is None:
            return
        manifest = self.path / MANIFEST
        wanted = {"format": FORMAT, "of": ONE} | plain(made_of)
        found = _read_manifest(manifest, refused=OURS)
        if differ := [key for key in wanted if key in found and found[key] != wanted[key]]:
            what = "; ".join(f"{key} {found[key]!r}, now {wanted[key]!r}" for key in differ)
            raise ValueError(
                f"out={str(self.path)!r} holds results of something else: {what}. Name another folder, or remove it."
            )
        _replace(manifest, json.dumps(found | wanted, indent=1).encode())

    def finished(self) -> dict[tuple[int, int], list[str]]:
        """Methods that are finished, for each K and seed that has a teacher, in their order; none in memory."""
        found = {}
        for run in [] if self.path is None else self.path.glob(f"{RUNS}/K*_seed*/{TEACHER}.npz"):
            if match := RUN.fullmatch(run.parent.name):
                methods = sorted(file.stem for file in run.parent.glob("*.npz") if file != run)
                found[int(match["K"]), int(match["seed"])] = methods
        return dict(sorted(found.items()))

    def has(self, run: str, name: str) -> bool:
        """Whether this part of the run is finished."""
        return (run, name) in self._memory if self.path is None else self._file(run, name).is_file()

    def keep(self, run: str, name: str, **arrays: Any) -> None:
        """Keep arrays, all or nothing."""
        arrays = {key: np.asarray(value) for key, value in arrays.items()}
        if self.path is None:
            self._memory[run, name] = arrays
            return
        import io

        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        _replace(self._file(run, name), buffer.getvalue())

    def arrays(self, run: str, name: str, shapes: Mapping[str, Shape] | None = None) -> dict[str, NDArray[Any]]:
        """What was kept; with ``shapes`` it has to be these arrays, ``None`` being any length.

        Raises
        ------
        ValueError
            If the file is damaged.
        """
        if self.path is None:
            return self._memory[run, name]
        import zipfile

        file = self._file(run, name)
        try:
            with file.open("rb") as handle, np.load(handle, allow_pickle=False) as kept:
                found = {key: kept[key] for key in kept.files}
            _check_shapes(found, shapes or {})
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as err:
            raise ValueError(f"{file} is damaged ({err}). Remove it: the same call makes it again.") from err
        return found

    def outcome(self, run: str, name: str, *, n_cells: int | None = None, n_niches: int | None = None) -> Outcome:
        """A method's result, of so many cells and niches."""
        from nichekd.tl._evaluation_methods import Outcome

        proba = (n_cells, n_niches)
        found = self.arrays(run, name, {"labels": (n_cells,), "proba": proba, "calibrated": proba, "seconds": ()})
        return Outcome(found["labels"], found["proba"], found["calibrated"], float(found["seconds"]))

    def _file(self, run: str, name: str) -> Path:
        if self.path is None:
            raise TypeError("an evaluation without a folder has no files")
        return self.path / RUNS / run / f"{name}.npz"


def check_many(path: Path) -> None:
    """Note that a folder holds the tables of many data sets.

    Raises
    ------
    NotADirectoryError
        If the path is a file.
    ValueError
        If it holds those of one, or of something else.
    """
    manifest = path / MANIFEST
    # there was no manifest above those of the data sets once
    found = _read_manifest(manifest, refused=() if any(path.glob(f"*/{MANIFEST}")) else TABLES)
    _make(path)
    if found.get("of", MANY) != MANY or "cells" in found:
        raise ValueError(f"out={str(path)!r} holds the results of one data set, now of many. Name another folder.")
    _replace(manifest, json.dumps({"format": FORMAT, "of": MANY}, indent=1).encode())


def _read_manifest(manifest: Path, *, refused: Sequence[str]) -> dict[str, Any]:
    """What a folder's results are made of; nothing where it holds nothing that is ``refused``."""
    out = str(manifest.parent)
    if not manifest.is_file():
        if there := [name for name in refused if (manifest.parent / name).exists()]:
            raise ValueError(
                f"out={out!r} has {there}, but no {MANIFEST} that tells what they are made of: they would be mixed up, "
                "or overwritten. Name another folder, or remove them."
            )
        return {}
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise ValueError(f"{manifest} is damaged ({err}). Name another folder for out=, or remove this one.") from err
    if not isinstance(found, dict):
        raise ValueError(f"{manifest} is damaged: it holds a {type(found).__name__}. Name another folder for out=.")
    if "format" not in found or not {"of", "cells"} & set(found):
        raise ValueError(f"{manifest} is of no evaluation, or damaged: it has {sorted(found)}. Name another out=.")
    return found


def _check_shapes(found: Mapping[str, NDArray[Any]], shapes: Mapping[str, Shape]) -> None:
    """Raise ``ValueError`` for an array that is missing or of another shape."""
    for name, shape in shapes.items():
        if name not in found:
            raise ValueError(f"it has no {name!r}, but {sorted(found)}")
        there = found[name].shape
        fits = len(there) == len(shape) and all(n in (None, m) for n, m in zip(shape, there, strict=True))
        if not fits and not (name in OF_STUDENTS and there == (0, 0)):
            raise ValueError(f"{name!r} has shape {there}, in place of {shape}")


def _make(path: Path) -> None:
    if path.is_file():
        raise NotADirectoryError(f"out={str(path)!r} is a file; name a folder.")
    path.mkdir(parents=True, exist_ok=True)


def _replace(file: Path, content: bytes) -> None:
    """All or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with written(file, durable=True) as new:
        new.write_bytes(content)
