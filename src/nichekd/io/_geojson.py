"""Outlines that a user brings, as QuPath and others export them."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

POLYGONS = ("Polygon", "MultiPolygon")


def read_polygons(path: str | Path) -> GeoDataFrame:
    """Outlines of a GeoJSON file.

    Parameters
    ----------
    path
        A FeatureCollection, a list of features, or one feature or geometry; gzipped if it ends in ``.gz``. Coordinates
        are pixels of the full resolution, from the image's top-left corner, as QuPath writes them.

    Returns
    -------
    A row a feature: ``geometry``, polygons or multipolygons, made valid where they cross themselves;
    ``classification``, the name of its class, ``None`` without.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not GeoJSON, holds no feature, or features that are not polygons.
    """
    import geopandas
    import pandas as pd
    import shapely

    path = Path(path)
    features = _features(_load(path), path)
    kinds = Counter(str((feature.get("geometry") or {}).get("type")) for feature in features)
    others = {kind: n for kind, n in kinds.items() if kind not in POLYGONS}
    if not features:
        raise ValueError(f"{path} holds no feature. In QuPath, export the detections.")
    if others:
        raise ValueError(
            f"{sum(others.values()):,} of {len(features):,} features of {path} are no polygons: {others}. Outlines are "
            "needed: in QuPath, export the detections, not points or lines."
        )
    try:
        shapes = shapely.from_geojson([json.dumps(feature["geometry"]) for feature in features])
    except shapely.errors.GEOSException as err:
        raise ValueError(f"{path} holds a polygon that is none ({err}). Export it again.") from err
    shapes = np.where(shapely.is_valid(shapes), shapes, shapely.buffer(shapes, 0))
    empty = int(np.count_nonzero(shapely.is_empty(shapes)))
    if empty:
        raise ValueError(f"{path} holds {empty:,} polygons without an area. Remove them, or export it again.")
    names = [_class_of(feature) for feature in features]
    # of its own accord, pandas 3 makes text of names, and NaN of None
    return geopandas.GeoDataFrame({"classification": pd.Series(names, dtype=object)}, geometry=shapes)


def _load(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"There is no GeoJSON {path} (looked in {path.absolute().parent}).")
    raw = path.read_bytes()
    try:
        return json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    except (json.JSONDecodeError, UnicodeDecodeError, OSError, EOFError) as err:
        raise ValueError(f"{path} is not GeoJSON, or cut off: {err}.") from err


def _features(content: Any, path: Path) -> list[dict[str, Any]]:
    """Of any of the ways in which programs nest them."""
    if isinstance(content, dict) and content.get("type") == "FeatureCollection":
        content = content.get("features")
    if isinstance(content, dict):
        content = [content if content.get("type") == "Feature" else {"geometry": content}]
    if not isinstance(content, list) or not all(isinstance(feature, dict) for feature in content):
        raise ValueError(f"{path} is JSON, but not GeoJSON: it holds no list of features.")
    for name in ("geometry", "properties"):
        if not all(isinstance(feature.get(name) or {}, dict) for feature in content):
            raise ValueError(f"{path} is JSON, but not GeoJSON: it holds a feature whose {name} is no object.")
    return content


def _class_of(feature: dict[str, Any]) -> str | None:
    classification = (feature.get("properties") or {}).get("classification")
    return classification.get("name") if isinstance(classification, dict) else classification
