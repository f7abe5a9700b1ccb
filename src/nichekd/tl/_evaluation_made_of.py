"""What the results of an evaluation are made of, as its folder notes it: keys and short hashes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._keys import Keys
from nichekd._record import notes
from nichekd._resolve import centres_um, split_of
from nichekd._sections import recorded_library
from nichekd.pp._counts import raw_counts
from nichekd.tl._inputs import features_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

#: what features were made of, besides their encoder; None where it does not apply
CROPS = ("crop_px", "mpp", "mode", "stride_px", "stain", "image_fingerprint")
HASHED_ROWS = 1_000


def cells_of(adata: AnnData, split_key: str) -> dict[str, Any]:
    """What tells one data set from another: its cells and their split."""
    centres = np.ascontiguousarray(centres_um(adata), dtype="<f8")
    return {"cells": _digest(centres.tobytes(), _text(split_of(adata, split_key))), "n_cells": adata.n_obs}


def graph_of(adata: AnnData) -> dict[str, Any]:
    """What tells one neighborhood graph from another: radius, column of sections, and edges."""
    graph = adata.obsp[Keys.CONNECTIVITIES].tocsr()
    if not graph.has_sorted_indices:
        graph = graph.sorted_indices()
    edges = (np.ascontiguousarray(part, dtype="<i8").tobytes() for part in (graph.indptr, graph.indices))
    return {
        "radius": round(float(notes(adata)[Keys.RADIUS]), 6),
        "library_key": recorded_library(adata),
        "graph": _digest(*edges),
    }


def counts_of(adata: AnnData) -> dict[str, str]:
    """What tells the counts of the same cells apart, however they are stored."""
    counts = raw_counts(adata, None)
    numbers = np.arange(1, adata.n_vars + 1)
    # whole numbers, so both sums are exact: of a cell, and the same with genes told apart
    sums = (np.asarray(counts @ weight, dtype="<f8") for weight in (np.ones(adata.n_vars), numbers.astype(np.float64)))
    return {"counts": _digest(_text(adata.var_names), *(total.tobytes() for total in sums))}


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


def _hash_of_rows(adata: AnnData, rep: str) -> str:
    """What tells features of one key apart by some of their rows."""
    features = features_of(adata, rep, run="the method that writes it")
    rows = np.unique(np.linspace(0, adata.n_obs - 1, min(adata.n_obs, HASHED_ROWS)).astype(np.int64))
    found = np.ascontiguousarray(np.asarray(features[rows]), dtype="<f4")
    return _digest(repr(found.shape).encode(), found.tobytes())


def _text(words: Any) -> bytes:
    return "\n".join(map(str, words)).encode()


def _digest(*parts: bytes) -> str:
    """16 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]
