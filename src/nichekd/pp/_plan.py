"""From what :func:`nichekd.pp.histology_features` is asked for to what is read, how, and what is noted of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nichekd._image import image_fingerprint
from nichekd.pp._crops import CropReader
from nichekd.pp._dense import DensePlan
from nichekd.pp._encode import CropPlan
from nichekd.pp._feature_store import cells_hash
from nichekd.pp._stain import StainedTiles, fit_stain
from nichekd.pp._tiles import CACHE_BYTES

if TYPE_CHECKING:
    from nichekd._image import CellImage
    from nichekd.models import Encoder
    from nichekd.pp._stain import Stain


STRIDE = (
    5 / 7
)  # of a tile: 160 of 224 px, with which students were as good as with a crop a cell, at a twelfth of the time


def make_reader(image: CellImage, crop_px: int, mpp: float | None, stain: Stain | None) -> CropReader:
    """Crops around the cells, in another stain where one is named."""
    reader = CropReader(image, crop_px=crop_px, mpp=mpp)
    if stain is None:
        return reader
    normalise = fit_stain(stain, reader)
    return reader.through(lambda tiles: StainedTiles(tiles, normalise, CACHE_BYTES))


def make_plan(
    reader: CropReader, encoder: Encoder, mode: str, stride_px: int | None, batch_size: int, num_workers: int
) -> CropPlan | DensePlan:
    """How the crops or tiles are gone through.

    Raises
    ------
    ValueError
        If the mode is unknown, or the stride does not go with it.
    """
    if mode not in {"crop", "dense"}:
        raise ValueError(f"mode={mode!r}; choose 'crop' or 'dense'.")
    if mode == "dense":
        stride = max(1, round(STRIDE * reader.crop_px)) if stride_px is None else stride_px
        return DensePlan(reader, encoder, stride, batch_size=batch_size, num_workers=num_workers)
    if stride_px is not None:
        raise ValueError(f"stride_px={stride_px} is the distance of tiles; it goes with mode='dense'.")
    return CropPlan(reader, encoder, batch_size=batch_size, num_workers=num_workers)


def describe(image: CellImage, reader: CropReader, plan: CropPlan | DensePlan, stain: str | None) -> dict[str, Any]:
    """What a student has to know to use these features."""
    about = {
        "encoder": plan.encoder.name,
        "fingerprint": plan.encoder.fingerprint,
        "weights": plan.encoder.weights,
        "license": plan.encoder.license,
        "n_features": plan.n_features,
        "crop_px": reader.crop_px,
        "mpp": float(f"{reader.mpp:.6g}"),  # rounding of the transformations must not make another store
        "mode": "crop" if isinstance(plan, CropPlan) else "dense",
        "stride_px": None if isinstance(plan, CropPlan) else plan.stride_px,
        "stain": stain,
        "image": image.key,
        "image_fingerprint": image_fingerprint(image),
        "cells": cells_hash(reader.centre_px),
    }
    return {name: value for name, value in about.items() if value is not None}  # h5ad can't hold None
