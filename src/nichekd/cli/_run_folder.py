"""The folder of a prediction: what is done stays done, and one run at a time writes to it."""

from __future__ import annotations

import errno
import json
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nichekd._files import held, remove, unfinished, written
from nichekd.cli._errors import is_full_disk

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FORMAT = 1
MAP, CELLS, GEOJSON, RESULT, REPORT = "niches.png", "cells.parquet", "niches.geojson", "result.zarr", "report.html"
RESULTS = (MAP, CELLS, GEOJSON, RESULT, REPORT)
RUN, WORK, LOCK = "run.json", "work", "run.lock"
NEW_RUN = unfinished(Path(RUN)).name
NUCLEI, FEATURES = "nuclei.zarr", "features"  # in WORK; what a killed run leaves to the next
UNFINISHED = (
    NUCLEI,
    f"new-{NUCLEI}",
    FEATURES,
    *RESULTS,
    NEW_RUN,
)  # all there may be in WORK, besides RUN and LOCK


class RunFolder:
    """Results; ``run.json``, what they were made of; and ``work/`` until they are finished.

    A finished run has its ``run.json`` beside the results, one that goes on has it in ``work/``. Results are made in
    ``work/`` and moved, so that those in the folder are whole.

    Parameters
    ----------
    path
        The folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path / WORK

    def check_free(self, *, overwrite: bool) -> None:
        """Refuse a folder with results, or with something else that is in the way.

        Raises
        ------
        FileExistsError
            If a run is finished there, or something else has left results of these names, and may not be overwritten;
            if its ``work`` is not ours.
        NotADirectoryError
            If the path is a file.
        """
        if self.path.is_file():
            raise NotADirectoryError(f"--out {self.path} is a file; name a folder, or an ending: .zarr or .h5ad.")
        if files := [parent for parent in self.path.parents if parent.is_file()]:
            raise NotADirectoryError(
                f"--out {self.path}: {files[0]} is a file, which can hold no folder. Name another."
            )
        here = {path.name for path in self.work.iterdir()} if self.work.is_dir() else set()
        if others := here - {LOCK, NEW_RUN} if RUN not in here else here - {LOCK, RUN, *UNFINISHED}:
            raise FileExistsError(
                f"{self.work} holds {', '.join(sorted(others)[:3])}, which nichekd did not leave there and would be in "
                "its way. Name another --out."
            )
        if overwrite:
            return
        if (self.path / RUN).exists():
            raise FileExistsError(
                f"{self.path} holds a finished run{_shown(read_run(self.path))}. Name another --out, or add --overwrite."
            )
        there = [name for name in RESULTS if (self.path / name).exists()]
        if there and not (self.work / RUN).exists():
            raise FileExistsError(
                f"There already: {', '.join(there)} in {self.path}. Name another --out, or add --overwrite."
            )

    @contextmanager
    def writing(self, made_of: Mapping[str, tuple[str, str]], *, overwrite: bool) -> Iterator[None]:
        """Hold the folder against other runs; the lock ends with the process that holds it, however that ends.

        Parameters
        ----------
        made_of
            What tells this run from others: fingerprint, and what a reader calls it.
        overwrite
            Replace what a finished run, or one of something else, has left.

        Raises
        ------
        FileExistsError
            If another run is writing to it, or one has finished.
        ValueError
            If an unfinished run of something else is there.
        OSError
            If the disk is full; says that the same call goes on.
        """
        is_new = not self.path.exists()
        with self._room():
            self.work.mkdir(parents=True, exist_ok=True)
            busy = FileExistsError(
                f"Another run is writing to {self.path}. Wait until it is done, or name another --out."
            )
            try:
                with held(self.work / LOCK, busy):
                    yield from self._held(made_of, overwrite=overwrite)
            finally:
                for folder in (self.work, *([self.path] if is_new else [])):
                    if folder.is_dir() and not any(folder.iterdir()):
                        folder.rmdir()

    def _held(self, made_of: Mapping[str, Any], *, overwrite: bool) -> Iterator[None]:
        """The folder, while nobody else writes to it."""
        try:
            self._claim(made_of, overwrite=overwrite)
            yield
        finally:
            if (self.path / RUN).exists() or not self._kept():  # finished, or failed before anything was done
                self._clear_work()
                (self.work / RUN).unlink(missing_ok=True)
                with suppress(PermissionError):  # Windows, while it is held
                    (self.work / LOCK).unlink(missing_ok=True)

    @contextmanager
    def keeping(self, name: str) -> Iterator[Path]:
        """Where to write what the next run takes up; there under its name once it is whole."""
        new = self.work / f"new-{name}"
        remove(new)
        yield new
        new.replace(self.work / name)

    @contextmanager
    def result(self, name: str) -> Iterator[Path]:
        """Where to write a result; moved to the folder once it is whole."""
        new = self.work / name
        remove(new)
        yield new
        remove(self.path / name)
        new.replace(self.path / name)

    def finish(self, **about: Any) -> None:
        """Note that all results are there."""
        manifest = json.loads((self.work / RUN).read_text(encoding="utf-8"))
        _write_json(self.path / RUN, manifest | about | {"finished": now()})

    def _claim(self, made_of: Mapping[str, tuple[str, str]], *, overwrite: bool) -> None:
        """Go on with what is there, or start anew."""
        goes_on = self._kept() and not (self.path / RUN).exists()
        if goes_on and not overwrite:
            self._check_same(made_of)
        elif goes_on:
            goes_on = not self._differs(made_of)
        if not goes_on:
            self.check_free(overwrite=overwrite)  # another run may have finished since this one looked
            for name in (RUN, *RESULTS):
                remove(self.path / name)
            self._clear_work()
        shown = {name: list(pair) for name, pair in made_of.items()}
        _write_json(self.work / RUN, {"format": FORMAT, "started": now(), "made_of": shown})

    def _check_same(self, made_of: Mapping[str, tuple[str, str]]) -> None:
        if differ := self._differs(made_of):
            raise ValueError(
                f"{self.path} holds an unfinished run of something else: {'; '.join(differ)}. Name another --out, or "
                "add --overwrite."
            )

    def _differs(self, made_of: Mapping[str, tuple[str, str]]) -> list[str]:
        """Sentences on what is another than in the run that is there."""
        found = (read_run(self.work) or {}).get("made_of", {})
        return [
            f"{name} is {_named(found.get(name))} there and {_named(made_of.get(name))} now"
            for name in sorted({*found, *made_of})
            if (found.get(name) or [None])[0] != (made_of.get(name) or [None])[0]
        ]

    def _clear_work(self) -> None:
        for name in UNFINISHED:
            remove(self.work / name)

    def _kept(self) -> bool:
        return any((self.work / name).exists() for name in (NUCLEI, FEATURES))

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Say of a full disk that nothing is lost."""
        try:
            yield
        except OSError as err:
            if not is_full_disk(err):
                raise
            full = OSError(errno.ENOSPC, "No space left on device", str(self.path))
            full.add_note("What is finished is kept; once there is room, the same call goes on from there.")
            raise full from err


def read_run(folder: Path) -> dict[str, Any] | None:
    """``run.json`` of a folder; ``None`` where there is none.

    Raises
    ------
    ValueError
        If it is damaged, or of a later format.
    """
    path = folder / RUN
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise ValueError(f"{path} is damaged ({err}). Name another --out, or remove {folder}.") from err
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("made_of"), dict):
        raise ValueError(f"{path} is none of this version of nichekd. Name another --out, or remove {folder}.")
    return found


def now() -> str:
    """The time, with its zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _named(pair: Any) -> str:
    return "none" if not pair else f"{pair[1]!r} ({pair[0]})" if pair[0] != pair[1] else repr(pair[1])


def _shown(run: dict[str, Any] | None) -> str:
    parts = [
        f"{name} {pair[1]}" for name, pair in (run or {}).get("made_of", {}).items() if name in ("slide", "student")
    ]
    return f" ({', '.join(parts)})" if parts else ""


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    """All or nothing."""
    with written(path) as new:
        new.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
