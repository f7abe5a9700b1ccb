"""Nuclei in a piece of an H&E image: haematoxylin, thresholds, watershed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

FAINTEST = 0.15  # haematoxylin below which nothing is a nucleus, whatever the slide; unstained ground has up to 0.05
DENSITY = -np.log(np.maximum(np.arange(256), 1) / 255).astype(np.float32)  # optical density of an 8-bit value


@dataclass(frozen=True)
class NucleusSettings:
    r"""How ``nk.pp.segment_nuclei(method="watershed")`` tells nuclei from the ground and from each other.

    With haematoxylin h, the slide's own threshold T (Otsu's, between nuclei and ground), and means of h over squares of
    ``window_um`` (the surroundings, :math:`\bar h`) and of ``split_um`` (a nucleus and its rim, :math:`\hat h`):

    - a pixel is nuclear where :math:`h > \max(f T, (1 - w) T + w \bar h)`, with f ``faint`` and w ``local``, or where
      it is a core;
    - it is a nucleus' core where :math:`h > \max(f T, \hat h + c T)`, with c ``core``;
    - cores are told apart by the maxima of their distance to the rim, and grown over the nuclear pixels by watershed.

    Attributes
    ----------
    mpp
        µm per pixel at which nuclei are looked for; images that are not much finer are taken as they are.
    smooth_um
        Standard deviation of the Gaussian that h and the distances are smoothed by.
    window_um
        Side of the surroundings.
    split_um
        Side of the square that cores stand out from: smaller splits more.
    local
        Share of the threshold that follows the surroundings.
    faint
        Lowest threshold, as a share of T.
    core
        How far a core stands out, as a share of T.
    apart_um
        Least distance between the middles of two cores.
    contrast
        How far a nucleus stands out from its surroundings on average, as a share of T.
    min_area_um2, max_area_um2
        Nuclei smaller or larger are dropped.
    hole_um2
        Holes up to this size are filled.
    """

    mpp: float = 0.5
    smooth_um: float = 0.5
    window_um: float = 25.0
    split_um: float = 9.0
    local: float = 0.7
    faint: float = 0.4
    core: float = 0.05
    apart_um: float = 1.5
    contrast: float = 0.1
    min_area_um2: float = 8.0
    max_area_um2: float = 400.0
    hole_um2: float = 20.0

    def __post_init__(self) -> None:
        positive = ("mpp", "smooth_um", "window_um", "split_um", "apart_um", "max_area_um2")
        wrong = [name for name in positive if not getattr(self, name) > 0]
        wrong += [name for name in ("min_area_um2", "hole_um2", "faint", "core") if not getattr(self, name) >= 0]
        if wrong or not 0 <= self.local <= 1 or not self.min_area_um2 < self.max_area_um2:
            raise ValueError(
                f"{self}: {wrong or 'a setting'} is out of range. Lengths and areas are above 0, local is 0 to 1, and "
                "min_area_um2 is below max_area_um2."
            )


def haematoxylin(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Amount of haematoxylin in each pixel of (3, y, x), by colour deconvolution :cite:`Ruifrok2001`; (y, x)."""
    from skimage.color import hed_from_rgb

    weights = hed_from_rgb[:, 0].astype(np.float32)
    amount = weights[0] * DENSITY[rgb[0]]
    for weight, channel in zip(weights[1:], rgb[1:], strict=True):
        amount += weight * DENSITY[channel]
    return amount


def slide_threshold(samples: NDArray[np.float32]) -> float:
    """Otsu's threshold between nuclei and ground of haematoxylin in tissue pixels, any shape."""
    from skimage.filters import threshold_otsu

    if samples.size == 0 or samples.min() == samples.max():
        return FAINTEST
    return max(float(threshold_otsu(samples)), FAINTEST)


def label_nuclei(rgb: NDArray[np.uint8], mpp: float, threshold: float, settings: NucleusSettings) -> NDArray[np.int32]:
    """Nuclei of (3, y, x) as labels from 1, (y, x); see :class:`NucleusSettings`.

    Parameters
    ----------
    rgb
        Pixels.
    mpp
        Their µm per pixel.
    threshold
        From :func:`slide_threshold`.
    settings
        Sizes and shares.
    """
    from scipy import ndimage as ndi
    from skimage.segmentation import watershed

    h = ndi.gaussian_filter(haematoxylin(rgb), settings.smooth_um / mpp)
    surroundings = ndi.uniform_filter(h, _odd(settings.window_um / mpp))
    cores, nuclear = _masks(h, surroundings, mpp, threshold, settings)
    if not cores.any():
        return np.zeros(h.shape, dtype=np.int32)
    depth = _depth(cores, mpp, settings.split_um, settings.smooth_um)
    peak = ndi.maximum_filter(depth, footprint=_disc(settings.apart_um / mpp)) == depth
    markers, _ = ndi.label(peak & cores, np.ones((3, 3)))
    labels = watershed(-depth, markers, mask=nuclear)

    n_pixels = np.bincount(labels.ravel())
    total = np.bincount(labels.ravel(), (h - surroundings).ravel())
    area = n_pixels * mpp**2
    kept = (area >= settings.min_area_um2) & (area <= settings.max_area_um2)
    kept &= total >= settings.contrast * threshold * n_pixels
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0).astype(np.int32)[labels]


def _masks(
    h: NDArray[np.float32], surroundings: NDArray[np.float32], mpp: float, threshold: float, settings: NucleusSettings
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where cores and where nuclei are, without specks."""
    from scipy import ndimage as ndi

    lowest = settings.faint * threshold
    rim = ndi.uniform_filter(h, _odd(settings.split_um / mpp))
    cores = h > np.maximum(lowest, rim + settings.core * threshold)
    nuclear = h > np.maximum(lowest, (1 - settings.local) * threshold + settings.local * surroundings)
    nuclear = _without_small_holes(ndi.binary_opening(nuclear | cores), settings.hole_um2 / mpp**2)
    return ndi.binary_opening(cores) & nuclear, nuclear


def _without_small_holes(mask: NDArray[np.bool_], most_pixels: float) -> NDArray[np.bool_]:
    from scipy import ndimage as ndi

    ground, _ = ndi.label(~mask)
    small = np.bincount(ground.ravel()) <= most_pixels
    small[0] = False
    return mask | small[ground]


def _depth(cores: NDArray[np.bool_], mpp: float, cap_um: float, smooth_um: float) -> NDArray[np.float32]:
    """Distance to the rim, µm: above 0 in cores, below outside; capped, so that it is the same in any block."""
    from scipy import ndimage as ndi

    inside = ndi.distance_transform_edt(cores) if not cores.all() else np.full(cores.shape, np.inf)
    outside = ndi.distance_transform_edt(~cores)
    depth = np.clip((inside - outside) * mpp, -cap_um, cap_um).astype(np.float32)
    return ndi.gaussian_filter(depth, smooth_um / mpp)


def _odd(pixels: float) -> int:
    """The odd number of pixels next to a length."""
    return 2 * round((pixels - 1) / 2) + 1


def _disc(radius: float) -> NDArray[np.bool_]:
    reach = max(1, round(radius))
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    return np.hypot(x, y) <= max(radius, 1)
