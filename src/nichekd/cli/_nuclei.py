"""Nuclei as a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nichekd._files import written
from nichekd._keys import Keys
from nichekd.cli import _data

if TYPE_CHECKING:
    from pathlib import Path

    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

ENDINGS = (".geojson", ".parquet", ".zarr")


def check_ending(path: Path) -> None:
    """That ``path`` says what to write.

    Raises
    ------
    ValueError
        If it ends in something else.
    """
    if path.suffix not in ENDINGS:
        raise ValueError(f"--out {path} ends in none of {', '.join(ENDINGS)}; its ending says what to write.")


def write(sdata: SpatialData, path: Path) -> None:
    """Write what :func:`nichekd.pp.segment_nuclei` found to ``path``; there all at once, in place of what was."""
    from nichekd import io

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zarr":
        _data.write(sdata, path)
        return
    if path.suffix == ".geojson":
        import pandas as pd

        adata = sdata["table"]
        adata.obs["class"] = pd.Categorical(["Nucleus"] * adata.n_obs)
        io.write_geojson(sdata, path, key="class")
        return
    with written(path) as new:
        _frame(sdata).to_parquet(new)


def _frame(sdata: SpatialData) -> GeoDataFrame:
    """A row a nucleus: its outline, in µm, its centroid and its area."""
    adata = sdata["table"]
    (name,) = adata.obs["region"].unique()
    frame = sdata.shapes[name][["geometry"]].loc[adata.obs_names].rename_axis("cell_id").reset_index()
    frame.attrs.clear()  # transformations, which a file can't hold
    frame["x_um"], frame["y_um"] = adata.obsm[Keys.SPATIAL].T
    frame[Keys.AREA] = adata.obs[Keys.AREA].to_numpy()
    return frame
