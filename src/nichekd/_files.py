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
    """
    new = unfinished(path)
    remove(new)  # of a process that was killed
    try:
        yield new
    except BaseException:
        remove(new)
        raise
    if durable:
        flush(new)
    if path.is_dir() or new.is_dir():
        remove(path)  # a folder takes nothing's place
    new.replace(path)
    if durable:
        flush(path.parent)


def unfinished(path: Path) -> Path:
    """What :func:`written` calls ``path`` until it is whole."""
    return path.with_name(f"{path.stem}.new{path.suffix}")


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
