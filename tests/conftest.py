from __future__ import annotations

import os
from pathlib import Path

import hypothesis  # noqa: F401  # at the end of a run without it, CPython 3.11 may fail to compile it (gh-106905)
import pytest

from nichekd._memory import keep_freed_memory


def pytest_configure() -> None:
    keep_freed_memory()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the development data sets, which no user's machine has."""
    folder = Path(os.environ.get("NICHEKD_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the development data sets are not here ({folder}); set NICHEKD_DATA to their folder")
    return folder
