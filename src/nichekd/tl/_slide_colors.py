"""A slide's colours around its cells, as far as they tell one stain and scanner from another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._image import get_image
from nichekd._keys import Keys
from nichekd._record import notes
from nichekd.tl._neighborhood_means import neighborhood_means

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd.models import NeighborhoodIndex, NicheStudent

NAMES = ("density of red", "density of green", "density of blue", "red over green", "blue over green")
TAILS = (0.05, 0.95)  # of the training crops' colours; a slide whose median crop is beyond them has others
LEAST = 1e-3  # density of glass, so that it has a logarithm


@dataclass(frozen=True)
class SlideColors:
    """Colours of one slide.

    Attributes
    ----------
    densities
        Mean optical density of each cell's crop in red, green and blue, (n, 3).
    mpp
        µm per pixel of the image.
    """

    densities: NDArray[np.float32]
    mpp: float

    @classmethod
    def of(cls, data: AnnData | SpatialData, adata: AnnData, student: NicheStudent, use_rep: str) -> SlideColors | None:
        """Of the image that the features ``use_rep`` were made of, seen as the student's crops are; ``None`` without."""
        from nichekd.pp._densities import mean_densities

        key = notes(adata).get(Keys.FEATURES, {}).get(use_rep, {}).get("image")
        if key is None or key not in getattr(data, "images", {}):
            return None
        image = get_image(data, adata, image_key=key)  # type: ignore[arg-type]
        features = student.config.features
        densities = mean_densities(
            image, crop_px=int(features.get("crop_px", 224)), mpp=features.get("mpp"), stain=features.get("stain")
        )
        return cls(np.maximum(densities, LEAST), image.mpp)

    def means(self, index: NeighborhoodIndex) -> NDArray[np.float32]:
        """Logarithms over each neighborhood, (n, 3), in which another lamp or a thicker section is a shift."""
        return neighborhood_means(index, np.log(self.densities))

    def spans(self, cells: NDArray[np.integer]) -> dict[str, Any]:
        """What a student notes of its training cells: resolution, and the span of 90 % of the crops' colours."""
        columns = self._named(self.densities[cells]).items()
        spans = {name: np.quantile(column, TAILS).round(5).tolist() for name, column in columns}
        return {"mpp": [self.mpp, self.mpp], "color": spans}

    def middle(self) -> dict[str, float]:
        """Colours of the median crop."""
        return {name: float(np.median(column)) for name, column in self._named(self.densities).items()}

    @staticmethod
    def _named(densities: NDArray[np.floating]) -> dict[str, NDArray[np.floating]]:
        """Densities, which a stronger stain or a thicker section changes, and ratios, which another hue does."""
        red, green, blue = densities.T
        return dict(zip(NAMES, (red, green, blue, red / green, blue / green), strict=True))
