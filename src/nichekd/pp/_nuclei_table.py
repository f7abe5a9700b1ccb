"""Nuclei as a shapes element, and the table that annotates it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nichekd._frames import apply
from nichekd._keys import Keys

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd.pp._bare_image import BareImage


def write_nuclei(
    sdata: SpatialData, bare: BareImage, polygons: NDArray[np.object_], key_added: str, table_key: str
) -> AnnData:
    """Add polygons, in pixels of the image, as shapes in µm, and a table of their centroids and areas."""
    import geopandas
    import shapely
    from anndata import AnnData
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Affine

    polygons = shapely.transform(polygons, lambda xy: apply(bare.to_um, xy))
    names = pd.Index([f"nucleus_{i}" for i in range(len(polygons))])
    from_um = bare.to_system @ np.linalg.inv(bare.to_um)
    frame = geopandas.GeoDataFrame(geometry=polygons, index=names)
    to_system = Affine(from_um, input_axes=("x", "y"), output_axes=("x", "y"))
    sdata.shapes[key_added] = ShapesModel.parse(frame, transformations={bare.system: to_system})
    obs = pd.DataFrame({Keys.AREA: shapely.area(polygons)}, index=names)
    obs["region"] = pd.Categorical([key_added] * len(obs))
    obs["instance_id"] = names.to_numpy()
    xy = shapely.get_coordinates(shapely.centroid(polygons))
    adata = AnnData(obs=obs, obsm={Keys.SPATIAL: xy})
    sdata.tables[table_key] = TableModel.parse(adata, region=key_added, region_key="region", instance_key="instance_id")
    return sdata.tables[table_key]
