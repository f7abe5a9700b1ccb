"""Files that are whole or not there, and folders that one process writes to."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def written(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Where to write what then takes the place of ``path``, a file or a folder; what fails leaves ``path`` as it was.

    Parameters
    ----------
    path
        Its last suffix stays the last, for writers that go by it.
    durable
        Wait until the file is on disk: after a power cut there is the old one or the new one.

    Raises
    ------
    IsADirectoryError
        If a file was written, and ``path`` is a folder, which stays.
    """
    new, old = unfinished(path), path.with_name(f".{path.stem}.nichekd-old{path.suffix}")
    if not path.exists() and old.exists():
        old.rename(path)  # a process was killed while a folder took another's place
    remove(new)  # of a process that was killed
    try:
        yield new
        if path.is_dir() and not new.is_dir():
            raise IsADirectoryError(f"{path} is a folder; a file can't take its place. Name another file.")
    except BaseException:
        remove(new)
        raise
    if durable:
        flush(new)
    if new.is_dir() and path.exists():  # no folder takes a place at one stroke
        remove(old)
        path.rename(old)
        new.rename(path)
        remove(old)
    else:
        new.replace(path)
    if durable:
        flush(path.parent)


def unfinished(path: Path) -> Path:
    """What :func:`written` calls ``path`` until it is whole: a name that nobody else gives a file."""
    return path.with_name(f".{path.stem}.nichekd-new{path.suffix}")


@contextmanager
def held(lock: Path, busy: Exception) -> Iterator[None]:
    """Hold the file ``lock``, in a folder that is there; raise ``busy`` if another process holds it."""
    from filelock import FileLock, Timeout

    file = FileLock(lock, timeout=0)
    try:
        file.acquire()
    except Timeout as err:
        raise busy from err
    try:
        yield
    finally:
        file.release()


def flush(*paths: Path) -> None:
    """Wait until files, or folders' entries, are on disk."""
    for path in paths:
        if path.is_dir() and os.name == "nt":
            continue  # Windows has no handle to folders
        handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
