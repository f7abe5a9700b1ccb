"""Crops for CUCA, where the encoder trains along."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._image import get_image
from nichekd._resolve import get_table
from nichekd.pp._crops import CropReader
from nichekd.pp._encode import CropPlan, with_progress

if TYPE_CHECKING:
    import torch
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData
    from torch import Tensor

    from nichekd.models import AbundanceModel, Encoder
    from nichekd.models._stain import CropAugmentation

ROWS = 32  # crops that are encoded at once where nothing is to be learnt


@dataclass(frozen=True)
class CropRows:
    """Crops around cells, normalised as the encoder takes them.

    Attributes
    ----------
    reader
        Of the crops.
    encoder
        With the adapters that are trained.
    augmentation
        Random changes in training; ``None``: none.
    generator
        Source of them.
    """

    reader: CropReader
    encoder: Encoder
    augmentation: CropAugmentation | None
    generator: torch.Generator

    def batch(self, cells: NDArray[np.integer], *, training: bool) -> Tensor:
        """Normalised crops, (B, 3, p, p)."""
        import torch

        crops = torch.from_numpy(self.reader.read(np.asarray(cells, dtype=np.int64)))
        if training and self.augmentation is not None:
            crops, _ = self.augmentation(crops, torch.zeros(len(crops), 0, 2), self.generator)
        return self.encoder.normalise(crops)

    def predict(self, model: AbundanceModel, cells: NDArray[np.integer]) -> NDArray[np.float32]:
        """Abundances, (B, K)."""
        parts = []
        for start in range(0, len(cells), ROWS):
            crops = self.reader.read(np.asarray(cells[start : start + ROWS], dtype=np.int64))
            features = self.encoder.encode(crops, precision="32")
            parts.append(model.predict(features.cpu().numpy(), device=features.device)[0])
        return np.concatenate(parts)


def crop_reader(data: AnnData | SpatialData, described: dict[str, Any], *, table_key: str) -> CropReader:
    """Crops of the kind that some features were made of, and of the same image, where ``data`` has one of its name.

    Raises
    ------
    TypeError
        If ``data`` has no image.
    ValueError
        If the image can't be used.
    """
    recorded = described.get("image")
    there = getattr(data, "images", {})
    image = get_image(
        data,  # type: ignore[arg-type]  # it says so itself
        get_table(data, table_key),
        image_key=recorded if recorded in there else None,
    )
    return CropReader(image, crop_px=int(described["crop_px"]), mpp=float(described["mpp"]))


def encode_crops(reader: CropReader, encoder: Encoder) -> NDArray[np.float16]:
    """Features of all cells, (n, F)."""
    plan = CropPlan(reader, encoder, batch_size=ROWS)
    order = plan.order()
    features = np.empty((len(order), plan.n_features), dtype=np.float16)
    for cells, rows in with_progress(plan.encoded(order, precision="32"), len(order)):
        features[cells] = rows
    return features
