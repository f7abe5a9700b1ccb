"""Models on a hub: where it does not give them, or does not take them, one message that says what to do."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LOG_IN = "log in with a token (`hf auth login`), or hand one in by token="
REFUSED = (401, 402, 403)
UNREACHABLE = (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ETIMEDOUT)


class HubAccessError(ConnectionError):
    """A hub can't be reached, or does not let you in."""


def fetch_folder(
    name: str,
    files: Sequence[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """The local copy of a repository's ``files``, fetched where it is missing or old.

    Parameters
    ----------
    name
        OWNER/NAME.
    files
        Names or patterns. No other file is fetched.
    revision, token, cache_dir, force_download, local_files_only
        As of ``huggingface_hub.snapshot_download``.

    Raises
    ------
    FileNotFoundError
        If the hub has no such repository or revision.
    HubAccessError
        If it is gated, the token is refused, or the hub can't be reached and the cache has no copy.
    ValueError
        If ``name`` can't be a repository's.
    """
    from huggingface_hub import snapshot_download

    with reading(name, revision):
        folder = snapshot_download(
            name, revision=revision, token=token, cache_dir=cache_dir, force_download=force_download,
            local_files_only=local_files_only, allow_patterns=list(files),
        )  # fmt: skip
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{name} is on the hub, but holds none of {list(files)}: it is no model of this kind.")
    return Path(folder)


@contextmanager
def reading(name: str, revision: str | None) -> Iterator[None]:
    """Say clearly why a repository can't be read."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    failures: tuple[type[Exception], ...] = (*_http_errors(), OSError)
    try:
        yield
    except HFValidationError as err:
        raise ValueError(f"There is no folder {name!r}, and on a hub a name is OWNER/NAME. Check the name.") from err
    except GatedRepoError as err:
        raise HubAccessError(
            f"{name} is gated: its owners let in who asks. Ask at {constants.ENDPOINT}/{name}, {LOG_IN}, and run again."
        ) from err
    except RevisionNotFoundError as err:
        raise FileNotFoundError(
            f"{name} has no revision {revision!r} on the hub. Leave revision= out for the latest, or name one of its "
            "branches, tags or commits."
        ) from err
    except RepositoryNotFoundError as err:
        raise FileNotFoundError(
            f"There is no folder {name}, and the hub has no {name} either, or a private one. Check the name; to see a "
            f"private one, {LOG_IN}."
        ) from err
    except failures as err:
        if _status(err) in REFUSED:
            raise HubAccessError(
                f"The hub does not let you read {name} ({_first_line(err)}). Your token may be old, or of another "
                f"account: {LOG_IN}."
            ) from err
        if not _is_about_the_hub(err):
            raise
        kept_off = isinstance(_origin(err), (LocalEntryNotFoundError, OfflineModeIsEnabled))
        why = (
            "was not to be asked (HF_HUB_OFFLINE, local_files_only)" if kept_off else f"gave none ({_first_line(err)})"
        )
        raise HubAccessError(
            f"There is no folder {name} and no complete copy of it in the cache, and the hub {why}. Run again with a "
            "connection, or have somebody send you the folder, and load that."
        ) from err


@contextmanager
def writing(name: str) -> Iterator[None]:
    """Say clearly why a repository can't be written."""
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, RepositoryNotFoundError

    failures: tuple[type[Exception], ...] = (*_http_errors(), OSError)
    try:
        yield
    except HFValidationError as err:
        raise ValueError(f"{name!r} can't be a name on a hub. Name it OWNER/NAME.") from err
    except failures as err:
        refused = isinstance(err, (LocalTokenNotFoundError, RepositoryNotFoundError)) or _status(err) in REFUSED
        if refused:
            raise HubAccessError(
                f"The hub does not let you write to {name} ({_first_line(err)}). Check the owner's name, and {LOG_IN}: "
                "one that may write."
            ) from err
        if not _is_about_the_hub(err):
            raise
        raise HubAccessError(
            f"{name} can't be put on the hub ({_first_line(err)}). Run again with a connection, or save the folder and "
            f"upload it later: student.save('student'), hf upload {name} student."
        ) from err


def _http_errors() -> tuple[type[Exception], ...]:
    """What the library that huggingface_hub speaks HTTP with raises: requests, httpx or httpx2, by version."""
    from huggingface_hub.errors import HfHubHTTPError

    theirs = {"huggingface_hub", "builtins"}
    return tuple(cls for cls in HfHubHTTPError.__mro__ if cls.__module__.split(".")[0] not in theirs)  # type: ignore[misc]


def _is_about_the_hub(err: BaseException) -> bool:
    """Not about this machine's disk, say."""
    from huggingface_hub.errors import EntryNotFoundError

    if isinstance(err, (EntryNotFoundError, ConnectionError, TimeoutError, *_http_errors())):
        return True
    return isinstance(err, OSError) and err.errno in UNREACHABLE


def _status(err: BaseException) -> int | None:
    """Of the hub's answer."""
    return getattr(getattr(_origin(err), "response", None), "status_code", None)


def _origin(err: BaseException) -> BaseException:
    """What went wrong with the hub before the cache was found to be empty."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    return err.__cause__ if isinstance(err, LocalEntryNotFoundError) and err.__cause__ is not None else err


def _first_line(err: BaseException) -> str:
    err = _origin(err)
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return f"{type(err).__name__}: {lines[0]}" if lines else type(err).__name__
