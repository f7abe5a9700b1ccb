"""The folder of an evaluation: what is finished stays finished."""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._files import held, written
from nichekd._keys import Keys
from nichekd._record import notes, plain
from nichekd._resolve import centres_um, split_of
from nichekd.tl._inputs import features_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from anndata import AnnData
    from numpy.typing import NDArray

    from nichekd.tl._evaluation_methods import Outcome

FORMAT = 2  # settings by what is not default in them
#: what features were made of, besides their encoder; None where it does not apply
CROPS = ("crop_px", "mpp", "mode", "stride_px", "stain", "image_fingerprint")
HASHED_ROWS = 1_000
MANIFEST, LOCK, RUNS, TEACHER = "manifest.json", "writer.lock", "runs", "teacher"


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
        RuntimeError
            If another process holds it.
        """
        if self.path is None:
            yield
            return
        if self.path.is_file():
            raise NotADirectoryError(f"out={str(self.path)!r} is a file; name a folder.")
        self.path.mkdir(parents=True, exist_ok=True)
        busy = RuntimeError(f"Another process writes to out={str(self.path)!r}. Wait for it, or name another folder.")
        with held(self.path / LOCK, busy):
            yield

    def check(self, made_of: Mapping[str, Any]) -> None:
        """Note what the results are made of.

        Raises
        ------
        ValueError
            If the folder's results are of other data or settings, or its manifest is lost or damaged.
        """
        if self.path is None:
            return
        manifest = self.path / MANIFEST
        wanted = {"format": FORMAT} | plain(made_of)
        found = _read_manifest(manifest)
        if differ := [key for key in wanted if key in found and found[key] != wanted[key]]:
            what = "; ".join(f"{key} {found[key]!r}, now {wanted[key]!r}" for key in differ)
            raise ValueError(
                f"out={str(self.path)!r} holds results of something else: {what}. Name another folder, or remove it."
            )
        _replace(manifest, json.dumps(found | wanted, indent=1).encode())

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

    def arrays(self, run: str, name: str) -> dict[str, NDArray[Any]]:
        """What was kept.

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
            with file.open("rb") as handle, np.load(handle, allow_pickle=False) as found:
                return {key: found[key] for key in found.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as err:
            raise ValueError(f"{file} is damaged ({err}). Remove it: the same call makes it again.") from err

    def outcome(self, run: str, name: str) -> Outcome:
        """A method's result."""
        from nichekd.tl._evaluation_methods import Outcome

        found = self.arrays(run, name)
        return Outcome(found["labels"], found["proba"], found["calibrated"], float(found["seconds"]))

    def _file(self, run: str, name: str) -> Path:
        if self.path is None:
            raise TypeError("an evaluation without a folder has no files")
        return self.path / RUNS / run / f"{name}.npz"


def cells_of(adata: AnnData, split_key: str) -> dict[str, Any]:
    """What tells one data set from another: its cells and their split."""
    digest = hashlib.sha256(np.ascontiguousarray(centres_um(adata), dtype="<f8").tobytes())
    digest.update("\n".join(split_of(adata, split_key)).encode())
    return {"cells": digest.hexdigest()[:16], "n_cells": adata.n_obs}


def features_made_of(adata: AnnData, reps: Mapping[str, str]) -> dict[str, Any]:
    """``features.<kind>``: key and fingerprint of each kind of features; ``features.<kind>.<what>``: of what crops.

    Of features that nichekd did not make from the image, the expression latent among them, a hash of some rows.
    """
    known, made_of = notes(adata).get(Keys.FEATURES, {}), {}
    for kind, rep in reps.items():
        about = known.get(rep, {})
        made_of[f"features.{kind}"] = features_name(rep, about.get("fingerprint"))
        made_of |= {f"features.{kind}.{name}": about.get(name) for name in CROPS} if about else {}
        made_of |= {} if about else {f"features.{kind}.rows": _hash_of_rows(adata, rep)}
    return made_of


def features_name(rep: str, fingerprint: str | None) -> str:
    """By what a folder knows features: their key, and the fingerprint of their encoder where it has one."""
    return rep if fingerprint is None else f"{rep} {fingerprint}"


def _read_manifest(manifest: Path) -> dict[str, Any]:
    """What a folder's results are made of; nothing where there are none."""
    if not manifest.is_file():
        if (manifest.parent / RUNS).is_dir():
            raise ValueError(
                f"out={str(manifest.parent)!r} has results, but no {MANIFEST} that tells what they are made of. Name "
                "another folder, or remove it."
            )
        return {}
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise ValueError(f"{manifest} is damaged ({err}). Name another folder for out=, or remove this one.") from err
    if not isinstance(found, dict):
        raise ValueError(f"{manifest} is damaged: it holds a {type(found).__name__}. Name another folder for out=.")
    return found


def _hash_of_rows(adata: AnnData, rep: str) -> str:
    """16 hexadecimal digits that tell features of one key apart by some of their rows."""
    features = features_of(adata, rep, run="the method that writes it")
    rows = np.unique(np.linspace(0, adata.n_obs - 1, min(adata.n_obs, HASHED_ROWS)).astype(np.int64))
    found = np.ascontiguousarray(np.asarray(features[rows]), dtype="<f4")
    return hashlib.sha256(repr(found.shape).encode() + found.tobytes()).hexdigest()[:16]


def _replace(file: Path, content: bytes) -> None:
    """All or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with written(file, durable=True) as new:
        new.write_bytes(content)
