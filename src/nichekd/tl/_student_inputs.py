"""What a student reads, from the table, and the steps that are missing, done as it needs them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._image import has_image
from nichekd._keys import Keys
from nichekd._record import notes
from nichekd._resolve import get_table
from nichekd.tl._inputs import neighborhood_index, radius_of_another_graph
from nichekd.tl._recorded_features import check_kind, find_or_make, recorded_encoder

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from nichekd.models import Encoder, NeighborhoodIndex, NicheStudent

log = logging.getLogger(__name__)

WHO = "student"


def check_features(adata: AnnData, student: NicheStudent, use_rep: str, n_features: int) -> None:
    """Refuse features that are not of the student's kind."""
    config = student.config
    check_kind(adata, use_rep, config.features, (n_features, config.n_features), who=WHO)


def find_cells(
    data: AnnData | SpatialData,
    wanted: dict[str, Any],
    *,
    use_rep: str | None,
    encoder: Encoder | None,
    table_key: str,
    who: str = WHO,
) -> Encoder | None:
    """Segment nuclei where there is an image but no table, if the features ``wanted`` can then be made.

    Returns
    -------
    Their encoder, where it was looked for, so that large weights are read once; else what was handed in.

    Raises
    ------
    KeyError
        If features are named, or wanted, that nichekd did not make: a slide without a table has none.
    ValueError
        If their encoder is not here, or here with other weights.
    """
    from nichekd import pp

    if not has_image(data) or data.tables:  # type: ignore[union-attr]
        return encoder
    if use_rep is not None or "encoder" not in wanted:
        key = use_rep or wanted.get("use_rep")
        raise KeyError(
            f"The {who} is to read {'features of unknown origin' if key is None else f'obsm[{key!r}]'}, and this slide has "
            "no table of cells that could hold them. Run nk.pp.segment_nuclei, put features in, and name them by use_rep=."
        )
    encoder = recorded_encoder(wanted, encoder, who=who)
    log.info("no cells yet: segmenting nuclei")
    pp.segment_nuclei(data, table_key=table_key)
    return encoder


def student_rep(
    data: AnnData | SpatialData,
    student: NicheStudent,
    use_rep: str | None,
    *,
    encoder: Encoder | None,
    device: str | None,
    table_key: str,
) -> str:
    """``use_rep``, or the key of features of the student's kind, made where there are none, by ``encoder`` if given."""
    if use_rep is not None:
        return use_rep
    return find_or_make(data, student.config.features, encoder=encoder, device=device, table_key=table_key, who=WHO)


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
        pp.neighborhoods(data, radius=student.config.radius, split_key=split_key, table_key=table_key)
    return neighborhood_index(data, split_key=split_key, table_key=table_key)
