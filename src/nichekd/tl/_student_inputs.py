"""What a student reads, from the table, and the steps that are missing, done as it needs them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._image import has_image
from nichekd._keys import Keys
from nichekd._record import notes
from nichekd._resolve import get_table
from nichekd.tl._inputs import neighborhood_index, radius_of_another_graph

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from nichekd.models import Encoder, NeighborhoodIndex, NicheStudent

log = logging.getLogger(__name__)

MPP_TOLERANCE = 0.02
KIND = ("encoder", "fingerprint", "crop_px", "mode", "stride_px", "stain")  # what features of one kind agree in
ALIGNED = "rank_by_gene"  # the encoder of features that nk.tl.embed_histology wrote
UNRECORDED = ("stain",)  # of these, those that are not recorded where there are none


def check_features(adata: AnnData, student: NicheStudent, use_rep: str, n_features: int) -> None:
    """Refuse features that are not of the student's kind."""
    expected, found = student.config.features, notes(adata).get(Keys.FEATURES, {}).get(use_rep, {})
    advice = "Leave use_rep out, and they are made as the student needs them."
    for name in KIND:
        if differs(name, expected, found):
            raise ValueError(
                f"obsm[{use_rep!r}] has {name} {found.get(name)!r}; the student was trained on "
                f"{expected.get(name)!r}. {advice}"
            )
    if "mpp" in expected and "mpp" in found:
        ratio = float(found["mpp"]) / float(expected["mpp"])
        if abs(ratio - 1) > MPP_TOLERANCE:
            raise ValueError(
                f"obsm[{use_rep!r}] was made at {float(found['mpp']):.4g} µm per pixel; the student was trained at "
                f"{float(expected['mpp']):.4g}. {advice}"
            )
    if n_features != student.config.n_features:
        raise ValueError(
            f"obsm[{use_rep!r}] has {n_features} features; the student reads {student.config.n_features}. {advice}"
        )


def differs(name: str, expected: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether two records of features are known to differ in ``name``."""
    known = (name in expected and name in found) or (name in UNRECORDED and bool(expected) and bool(found))
    return known and expected.get(name) != found.get(name)


def find_cells(data: AnnData | SpatialData, table_key: str) -> None:
    """Segment nuclei where there is an image but no table."""
    from nichekd import pp

    if has_image(data) and not data.tables:  # type: ignore[union-attr]
        log.info("no cells yet: segmenting nuclei")
        pp.segment_nuclei(data, table_key=table_key)


def student_rep(
    data: AnnData | SpatialData, student: NicheStudent, use_rep: str | None, *, device: str | None, table_key: str
) -> str:
    """``use_rep``, or the key of features of the student's kind, which are made where there are none."""
    from nichekd import pp

    if use_rep is not None:
        return use_rep
    adata = get_table(data, table_key)
    wanted = student.config.features
    if not wanted:
        last = notes(adata).get(Keys.LAST_REP)
        if last is None:
            raise KeyError(
                "The student carries no encoder, and the table has no image features; name some by use_rep=. "
                f"obsm has {sorted(adata.obsm.keys())}."
            )
        return last
    for key, found in notes(adata).get(Keys.FEATURES, {}).items():
        if key in adata.obsm and same_kind(found, wanted):
            return key
    encoder = encoder_of(student)
    log.info("no features of the student's encoder yet: encoding crops with %s", wanted["encoder"])
    pp.histology_features(
        data,
        encoder=encoder,
        crop_px=int(wanted["crop_px"]),
        mpp=float(wanted["mpp"]),
        mode=wanted.get("mode", "crop"),
        stride_px=wanted.get("stride_px"),
        stain=wanted.get("stain"),
        device=device,
        table_key=table_key,
    )
    return notes(adata)[Keys.LAST_REP]


def encoder_of(student: NicheStudent) -> Encoder:
    """The encoder of the student's features, found to be it before anything is encoded.

    Raises
    ------
    ValueError
        If it is not here, or here with other weights.
    EncoderAccessError
        If a hub refuses its weights.
    """
    from nichekd.models import get_encoder

    if student.encoder is not None:
        return student.encoder
    wanted = student.config.features
    if wanted.get("encoder") == ALIGNED:
        raise ValueError(
            "The student reads features of an aligned encoder. Make them here first: nk.tl.embed_histology(data, model), "
            f"model being that encoder, then name them: use_rep={Keys.RANK_BY_GENE!r}."
        )
    name, noted = str(wanted["encoder"]), wanted.get("weights")
    advice = (
        "With it at hand, run nk.pp.histology_features(encoder=..., weights=...), and name the features by use_rep=."
    )
    try:  # the file of its weights is where it was on the machine that trained the student, or nowhere
        encoder = get_encoder(name, weights=noted if noted is not None and Path(noted).is_file() else None)
    except (ValueError, ImportError) as err:
        raise ValueError(f"The student reads features of encoder {name!r}, which is not here: {err} {advice}") from err
    if wanted.get("fingerprint") not in (None, encoder.fingerprint):
        raise ValueError(
            f"The student reads features of encoder {name!r} with other weights: its fingerprint is "
            f"{wanted['fingerprint']!r}, here {encoder.fingerprint!r}. {advice}"
        )
    return encoder


def same_kind(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether two records of features tell of the same encoder, crops and resolution."""
    same = all(found.get(name) == wanted.get(name) for name in KIND)
    return (
        same
        and "mpp" in found
        and "mpp" in wanted
        and abs(float(found["mpp"]) / float(wanted["mpp"]) - 1) <= MPP_TOLERANCE
    )


def student_neighborhoods(
    data: AnnData | SpatialData, student: NicheStudent, *, split_key: str, table_key: str
) -> NeighborhoodIndex:
    """Neighborhoods of the student's radius."""
    from nichekd import pp

    adata = get_table(data, table_key)
    found = notes(adata).get(Keys.RADIUS)
    is_there = found is not None and Keys.CONNECTIVITIES in adata.obsp and radius_of_another_graph(adata) is None
    if not is_there or not np.isclose(float(found or 0), student.config.radius):
        log.info("neighborhoods of the student's radius, %.1f µm", student.config.radius)
        library_key = notes(adata).get("neighborhoods", {}).get("library_key")  # those there were kept sections apart
        pp.neighborhoods(
            data, radius=student.config.radius, split_key=split_key, library_key=library_key, table_key=table_key
        )
    return neighborhood_index(data, split_key=split_key, table_key=table_key)
