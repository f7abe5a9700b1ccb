"""The manifest of a feature store: the attributes of its zarr group, replaced at one stroke."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from nichekd._files import unfinished, written

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1
ROOT, FEATURES, CELLS, LOCK = "zarr.json", "features", "cells", "writer.lock"  # all there is in a store


def read_manifest(path: Path) -> dict[str, Any] | None:
    """What the store ``path`` was made of, or ``None`` if there is none yet.

    Raises
    ------
    ValueError
        If something else is there, or a store of a later format.
    """
    root = path / ROOT
    if not root.is_file():
        there = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
        if path.is_file() or not set(there) <= {FEATURES, CELLS, LOCK, unfinished(path / ROOT).name}:
            raise ValueError(f"store={str(path)!r} is no feature store (found {there[:5]}). Name a new folder.")
        return None
    try:
        manifest = json.loads(root.read_text(encoding="utf-8"))["attributes"]["nichekd"]
    except (json.JSONDecodeError, KeyError, TypeError) as err:
        raise ValueError(f"store={str(path)!r} is a zarr, but no feature store. Name a new folder.") from err
    if manifest["format"] != FORMAT:
        raise ValueError(
            f"store={str(path)!r} is of format {manifest['format']}; this version of nichekd reads format {FORMAT}. "
            "Upgrade nichekd, or name a new folder."
        )
    return manifest


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Put ``manifest`` in place of the store's: after a power cut there is the old one or the new one."""
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"nichekd": manifest}}
    with written(path / ROOT, durable=True) as new:
        new.write_text(json.dumps(group, indent=1) + "\n", encoding="utf-8")
