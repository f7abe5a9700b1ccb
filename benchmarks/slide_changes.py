"""Slides as other laboratories, scanners and accidents make them, out of one that is at hand.

A window of a slide is written as a tiled TIFF, with its pixels changed or as they are, and opened again as any other
slide. Strengths were set before anything was measured: strong, but such as archives hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pancreas_section import MPP

import nichekd as nk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd.models import NicheStudent

    Change = Callable[[NDArray[np.uint8], float], NDArray[np.uint8]]

DENSITY = -np.log((np.arange(256) + 1) / 256)  # optical, of 8-bit light
SCANNER = np.array([0.7, 1.1, 1.6])  # what another lamp and other filters make of the densities of red, green and blue
# haematoxylin, eosin and what is neither, as Ruifrok and Johnston measured the first two; unit columns
STAINS = np.array([[0.65, 0.07, 0.27], [0.70, 0.99, 0.57], [0.29, 0.11, 0.78]])
STAINS /= np.linalg.norm(STAINS, axis=0)
AMOUNTS = np.diag([0.6, 1.6, 1.0])  # another laboratory: little haematoxylin, much eosin
MARGIN_UM = 112 * MPP + 1  # half a crop
ROWS = 512  # changed at once, for memory


def other_scanner(pixels: NDArray[np.uint8], mpp: float) -> NDArray[np.uint8]:
    """Each colour's optical density, by a factor of its own."""
    tables = [_light(gain * DENSITY) for gain in SCANNER]
    return np.stack([table[plane] for table, plane in zip(tables, pixels, strict=True)])


def other_laboratory(pixels: NDArray[np.uint8], mpp: float) -> NDArray[np.uint8]:
    """Other amounts of the two stains."""
    mix = STAINS @ AMOUNTS @ np.linalg.inv(STAINS)
    out = np.empty_like(pixels)
    for row in range(0, pixels.shape[1], ROWS):
        part = pixels[:, row : row + ROWS]
        out[:, row : row + ROWS] = _light(np.tensordot(mix, DENSITY[part], axes=1))
    return out


def out_of_focus(sigma_um: float) -> Change:
    """Blurred by a Gaussian."""

    def blurred(pixels: NDArray[np.uint8], mpp: float) -> NDArray[np.uint8]:
        from scipy.ndimage import gaussian_filter

        return np.stack([gaussian_filter(plane, sigma_um / mpp) for plane in pixels])

    return blurred


def unchanged(pixels: NDArray[np.uint8], mpp: float) -> NDArray[np.uint8]:
    return pixels


STAIN_CHANGES: dict[str, Change] = {"other_scanner": other_scanner, "other_laboratory": other_laboratory}
CHANGES: dict[str, Change] = STAIN_CHANGES | {
    "blurred_1_um": out_of_focus(1.0), "blurred_2_um": out_of_focus(2.0)
}  # fmt: skip


@dataclass(frozen=True)
class Window:
    """A part of a slide, as a slide of its own.

    Attributes
    ----------
    path
        Its file.
    corner_um
        Its top-left corner on the slide that it was cut from, (2,).
    mpp
        µm per pixel.
    """

    path: Path
    corner_um: NDArray[np.float64]
    mpp: float

    def slide(self) -> SpatialData:
        """Without any cells."""
        return nk.io.slide(self.path, mpp=self.mpp)

    def with_cells(self, adata: AnnData) -> SpatialData:
        """With cells of the large slide; their table has nothing but places, and names."""
        from anndata import AnnData

        cells = AnnData(obs=adata.obs[[]].copy(), obsm={"spatial": adata.obsm["spatial"] - self.corner_um})
        return nk.io.paired(cells, self.path, mpp=self.mpp)


def cut_out(sdata: SpatialData, cells: AnnData, path: Path, change: Change = unchanged) -> Window:
    """The window around ``cells`` with all their crops, changed, as the file ``path``."""
    import tifffile

    image, xy = sdata["he"].data, cells.obsm["spatial"]
    _, height, width = image.shape
    low = np.maximum(np.floor((xy.min(axis=0) - MARGIN_UM) / MPP).astype(int), 0)
    high = np.minimum(np.ceil((xy.max(axis=0) + MARGIN_UM) / MPP).astype(int) + 1, [width, height])
    pixels = np.asarray(image[:, low[1] : high[1], low[0] : high[0]])
    changed = np.ascontiguousarray(np.moveaxis(change(pixels, MPP), 0, -1))
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, changed, tile=(512, 512), photometric="rgb", metadata=None)
    return Window(path, low * MPP, MPP)


def _light(density: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.clip(np.rint(256 * np.exp(-density) - 1), 0, 255).astype(np.uint8)


# what the scripts share


def quietly(data: Any, student: NicheStudent, **options: Any) -> list[str]:
    """Predict; what was warned of is returned."""
    nk.tl.predict_niches(data, student, **options)
    table = data["table"] if hasattr(data, "tables") else data
    return list(table.uns["nichekd"]["predict_niches"].get("warnings", ()))


def in_test(adata: AnnData) -> NDArray[np.bool_]:
    return (adata.obs["split"] == "test").to_numpy()


def ari(one: Any, other: Any) -> float:
    from sklearn.metrics import adjusted_rand_score

    return round(float(adjusted_rand_score(np.asarray(one), np.asarray(other))), 4)
