"""RankByGene with the image encoder itself in training: crops, changed strongly for the student, weakly for the teacher."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from anndata import AnnData

from nichekd._resolve import get_table
from nichekd.models._rank_by_gene import Branch
from nichekd.tl._rank_by_gene_task import Made, network_of, task_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData
    from torch import Tensor, nn

    from nichekd.models import Encoder
    from nichekd.pp._crops import CropReader
    from nichekd.tl._rank_by_gene_data import RankByGeneSettings
    from nichekd.tl._rank_by_gene_task import Expression

NAME = "rank_by_gene_encoder"
START_CROPS = 256  # whose features the heads start at


@dataclass(frozen=True)
class CropViews:
    """Crops of the training cells, normalised.

    Attributes
    ----------
    reader, cells
        Crops around cells of the table, and which of them are the training cells.
    encoder
        Normalises.
    strong, weak
        Changes of one crop, (3, h, w).
    n_checked
        Held-back cells to look at.
    """

    reader: CropReader
    cells: NDArray[np.intp]
    encoder: Encoder
    strong: Any
    weak: Any
    n_checked: int = 256

    def __call__(self, cells: NDArray[np.integer], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(B, 3, h, w) each; torchvision draws from torch's global generator, which the training has seeded."""
        crops = torch.from_numpy(self.reader.read(self.cells[cells].astype(np.int64)))
        views = [torch.stack([change(crop) for crop in crops]) for change in (self.strong, self.weak)]
        return self.encoder.normalise(views[0]), self.encoder.normalise(views[1])

    def plain(self, cells: NDArray[np.integer]) -> Tensor:
        """(B, 3, h, w)."""
        return self.encoder.normalise(torch.from_numpy(self.reader.read(self.cells[cells].astype(np.int64))))


def crop_task(
    sdata: SpatialData | AnnData,
    encoder: str | nn.Module | Encoder,
    read: Expression,
    library: NDArray[np.int64],
    fit: RankByGeneSettings,
    momentum: float,
    *,
    crop_px: int,
    image_key: str | None,
    device: str | None,
    seed: int,
    table_key: str,
) -> Made:
    """On crops of the image, by an encoder that is trained along."""
    from nichekd._image import get_image
    from nichekd.models import get_encoder
    from nichekd.pp._crops import CropReader
    from nichekd.pp._overlap import warn_if_crops_overlap

    if isinstance(sdata, AnnData):
        raise TypeError("encoder= is trained on crops, and an AnnData has no image. Make one of both: nk.io.paired.")
    adata = get_table(sdata, table_key)
    image = get_image(sdata, adata, image_key=image_key)
    reader = CropReader(image, crop_px=crop_px)
    warn_if_crops_overlap(adata, image, side_px=reader.crop_px, mpp=reader.mpp, stacklevel=4)
    base = get_encoder(encoder)
    n_features = base.check(crop_px)
    strong, weak = changes()
    views = CropViews(reader, read.cells, base, strong, weak)
    rows = _first_features(reader, base, read.cells, seed)
    backbone = copy.deepcopy(base.module).requires_grad_(True)
    student = Branch(n_features, fit.n_out, backbone=backbone, dropout=fit.dropout)
    network = network_of(student, rows, read, fit, momentum, seed)
    features = {
        "encoder": NAME, "license": base.license, "n_features": n_features, "crop_px": crop_px,
        "mpp": float(f"{reader.mpp:.6g}"), "mode": "crop",
    }  # fmt: skip

    def tuned(module: nn.Module) -> Encoder:
        return replace(base, name=NAME, module=module, weights=None)

    return Made(network, task_of(adata, views, read, library), features, tuned=tuned)


def changes() -> tuple[Any, Any]:
    """Strong: mirroring, colour and sometimes none of it; weak: mirroring and quarter turns."""
    from torchvision.transforms import v2

    mirror = [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
    color = v2.RandomApply([v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1)], p=0.8)
    turn = v2.RandomChoice([v2.RandomRotation((angle, angle)) for angle in (0, 90, 180, 270)])
    return v2.Compose([*mirror, color, v2.RandomGrayscale(p=0.2)]), v2.Compose([*mirror, turn])


def _first_features(reader: CropReader, encoder: Encoder, cells: NDArray[np.intp], seed: int) -> NDArray[np.float32]:
    """Features of some training cells before the training, (m, F)."""
    rng = np.random.default_rng(seed)
    some = np.sort(rng.choice(cells, min(START_CROPS, len(cells)), replace=False)).astype(np.int64)
    parts = np.array_split(some, max(1, len(some) // 32))
    return np.concatenate([encoder.encode(reader.read(part), precision="32").cpu().numpy() for part in parts])
