"""One clear line and an exit code for whatever goes wrong."""

from __future__ import annotations

import errno
import logging
import sys
import traceback
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("nichekd")

BAD_INPUT_CODE, FAILURE_CODE = 2, 1
# what nichekd's functions raise about what they were handed
BAD_INPUT = (FileExistsError, FileNotFoundError, IsADirectoryError, KeyError, NotADirectoryError, TypeError, ValueError)
FULL = (errno.ENOSPC, errno.EDQUOT)


class Commands(TyperGroup):
    """Commands whose errors are one line on stderr: exit code 2 for bad input, 1 for any other failure."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; with ``--debug`` the traceback passes through."""
        with messages(quiet=ctx.params.get("quiet", False)):
            try:
                return super().invoke(ctx)
            except Exception as err:
                # usage errors and exits have their own code, and Typer shows them
                if ctx.params.get("debug", False) or isinstance(err, typer.Abort) or hasattr(err, "exit_code"):
                    raise
                bad_input = isinstance(err, BAD_INPUT)
                more = "" if (bad_input and is_told(err)) or is_full_disk(err) else " (nichekd --debug … shows where)"
                typer.echo(f"Error: {one_line(err)}{more}", err=True)
                raise typer.Exit(BAD_INPUT_CODE if bad_input else FAILURE_CODE) from err


def one_line(err: Exception) -> str:
    """The message of ``err`` on one line; an error that says nothing gives its type."""
    # str() of a KeyError is the repr of its message
    message = str(err.args[0]) if isinstance(err, KeyError) and err.args else str(err)
    if is_full_disk(err):
        message = " ".join([_full(err), *(note for note in getattr(err, "__notes__", ()) if "same call" in note)])
        return " ".join(message.split())
    message = " ".join(message.split())
    return message if isinstance(err, BAD_INPUT) and message else f"{type(err).__name__}: {message}".rstrip(": ")


def is_told(err: Exception) -> bool:
    """Whether nichekd says in a sentence what is wrong: else it is another library that fails, or a slip of ours."""
    *_, (frame, _) = traceback.walk_tb(err.__traceback__)
    return frame.f_globals.get("__name__", "").split(".")[0] == "nichekd" and one_line(err).endswith((".", "?", "!"))


def is_full_disk(err: BaseException) -> bool:
    """Whether ``err`` says that no space is left; HDF5 says so in words alone."""
    return isinstance(err, OSError) and (err.errno in FULL or "No space left on device" in str(err))


def _full(err: Exception) -> str:
    where = getattr(err, "filename", None)
    return f"No space is left on the disk{f' of {where}' if where else ''}."


@contextmanager
def messages(*, quiet: bool) -> Iterator[None]:
    """Show nichekd's log lines and warnings on stderr, above the progress bars, and no other library's warnings."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    from nichekd._settings import settings

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    level, progress = log.level, settings.progress
    settings.progress = progress and not quiet
    log.addHandler(handler)
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        with warnings.catch_warnings(), logging_redirect_tqdm([log]):
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", module=r"nichekd(\.|$)")
            warnings.showwarning = _log_warning
            yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        settings.progress = progress


def _log_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    log.warning("Warning: %s", message)
