"""What QuPath reads: features in pixels, with class, colour and measurements."""

from __future__ import annotations

import gzip
import json

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from shapely import MultiPolygon, Point, Polygon, box
from shapely.geometry import shape
from spatialdata import bounding_box_query, read_zarr
from spatialdata.transformations import Affine, set_transformation

import nichekd as nk
from nichekd.io._geojson import read_polygons

N = 20
# what QuPath's reader knows (qupath.lib.io.PathObjectTypeAdapters): other types become annotations
OBJECT_TYPES = {"annotation", "detection", "cell", "tile", "tmaCore", "root"}


@pytest.fixture
def cells():
    """Cells within 100 × 80 µm with a student's niches, one of them without."""
    rng = np.random.default_rng(0)
    proba = rng.dirichlet([1, 1], N).astype(np.float32)
    niche = pd.Categorical.from_codes(np.where(np.arange(N) == 3, -1, proba.argmax(1)), ["duct", "fat"])
    obs = {"niche": niche, "niche_entropy": rng.random(N).astype(np.float32)}
    return AnnData(
        obs=pd.DataFrame(obs, index=[f"cell{i}" for i in range(N)]),
        obsm={"spatial": rng.uniform((10, 10), (90, 70), (N, 2)), "student_proba": proba},
        uns={"niche_colors": ["#ff0000", "#0080ff"]},
    )


@pytest.fixture
def sdata(cells):
    """The same, with outlines, on an image that is mirrored and shifted: µm = (100 - px / 2, px / 2 + 4)."""
    outlines = gpd.GeoDataFrame(geometry=[box(x - 3, y - 2, x + 3, y + 2) for x, y in cells.obsm["spatial"]])
    image = np.full((160, 200, 3), 255, dtype=np.uint8)
    return nk.io.paired(cells, image, affine=[[-0.5, 0, 100], [0, 0.5, 4]], shapes=outlines)


def load(path) -> list[dict]:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["type"] == "FeatureCollection"
    return content["features"]


def in_pixels(xy: np.ndarray) -> np.ndarray:
    return np.column_stack([(100 - xy[:, 0]) / 0.5, (xy[:, 1] - 4) / 0.5])


def test_outlines_in_pixels_with_class_and_measurements(sdata, cells, tmp_path):
    assert nk.io.write_geojson(sdata, tmp_path / "niches.geojson") == tmp_path / "niches.geojson"
    features = load(tmp_path / "niches.geojson")
    assert [f["properties"]["name"] for f in features] == cells.obs_names.tolist()
    centres = in_pixels(cells.obsm["spatial"])
    for i, feature in enumerate(features):
        outline, about = shape(feature["geometry"]), feature["properties"]
        assert about["objectType"] == "cell"
        assert (outline.centroid.x, outline.centroid.y) == pytest.approx(centres[i], abs=0.02)
        assert outline.area == pytest.approx(24 / 0.25, rel=0.01)
        proba = cells.obsm["student_proba"][i]
        expected = {"probability duct": proba[0], "probability fat": proba[1]}
        assert about["measurements"] == pytest.approx(
            expected | {"entropy": cells.obs["niche_entropy"].iloc[i]}, abs=1e-5
        )
    classes = [f["properties"].get("classification") for f in features]
    assert classes[3] is None
    colors = {"duct": [255, 0, 0], "fat": [0, 128, 255]}
    for niche, found in zip(cells.obs["niche"], classes, strict=True):
        assert found is None or found == {"name": niche, "color": colors[niche]}


def test_is_geojson_as_qupath_reads_it(sdata, tmp_path):
    nk.io.write_geojson(sdata, tmp_path / "x.geojson")
    for feature in load(tmp_path / "x.geojson"):
        assert set(feature) == {"type", "geometry", "properties"}
        assert feature["type"] == "Feature"
        assert feature["properties"]["objectType"] in OBJECT_TYPES
        for ring in feature["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]
            assert len(ring) >= 4
        color = feature["properties"].get("classification", {"color": [0, 0, 0]})["color"]
        assert len(color) == 3
        assert all(isinstance(part, int) and 0 <= part <= 255 for part in color)
    assert "NaN" not in (tmp_path / "x.geojson").read_text()


def test_what_was_written_is_read(sdata, tmp_path):
    nk.io.write_geojson(sdata, tmp_path / "x.geojson")
    back = read_polygons(tmp_path / "x.geojson")
    assert len(back) == N
    assert [name for name in back["classification"] if name] == sdata["table"].obs["niche"].dropna().tolist()


def test_a_piece_of_a_slide_is_written_where_the_slide_has_it(sdata, tmp_path):
    """Cut out, stored and read again, cells keep their places on the file that QuPath shows."""
    nk.io.write_geojson(sdata, tmp_path / "whole.geojson")
    whole = {f["properties"]["name"]: f["geometry"] for f in load(tmp_path / "whole.geojson")}
    piece = bounding_box_query(
        sdata, ("x", "y"), min_coordinate=[15, 12], max_coordinate=[55, 60], target_coordinate_system="global"
    )
    piece.write(tmp_path / "piece.zarr")
    for cut in (piece, read_zarr(tmp_path / "piece.zarr")):
        nk.io.write_geojson(cut, tmp_path / "piece.geojson")
        features = load(tmp_path / "piece.geojson")
        assert 0 < len(features) < N
        assert cut["he"].shape != sdata["he"].shape
        for feature in features:
            here, there = (shape(part) for part in (feature["geometry"], whole[feature["properties"]["name"]]))
            assert here.centroid.distance(there.centroid) < 0.02


def test_an_image_moved_since_is_still_whole(sdata, tmp_path):
    """Registration moves the cells on the image; the image's pixels stay the file's."""
    shift = Affine([[-0.5, 0, 101], [0, 0.5, 4], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    set_transformation(sdata["he"], shift)
    nk.io.write_geojson(sdata, tmp_path / "niches.geojson")
    x = shape(load(tmp_path / "niches.geojson")[0]["geometry"]).centroid.x
    assert x == pytest.approx((101 - sdata["table"].obsm["spatial"][0, 0]) / 0.5, abs=0.02)


def test_cells_without_outlines_are_points(cells, tmp_path):
    sdata = nk.io.paired(cells, np.full((160, 200, 3), 255, dtype=np.uint8), mpp=0.5)
    nk.io.write_geojson(sdata, tmp_path / "x.geojson")
    for feature, xy in zip(load(tmp_path / "x.geojson"), cells.obsm["spatial"], strict=True):
        assert feature["geometry"]["type"] == "Point"
        assert feature["properties"]["objectType"] == "detection"
        assert feature["geometry"]["coordinates"] == pytest.approx(xy / 0.5, abs=0.01)


def test_other_shapes_by_their_name(sdata, tmp_path):
    nuclei = sdata["cells"].copy()
    nuclei["geometry"] = nuclei.geometry.scale(0.5, 0.5)
    sdata["nuclei"] = nuclei.iloc[:5]
    nk.io.write_geojson(sdata, tmp_path / "x.geojson", shapes_key="nuclei")
    kinds = [f["geometry"]["type"] for f in load(tmp_path / "x.geojson")]
    assert kinds == ["Polygon"] * 5 + ["Point"] * 15
    assert shape(load(tmp_path / "x.geojson")[0]["geometry"]).area == pytest.approx(24, rel=0.02)


def test_a_table_alone_takes_mpp(cells, tmp_path):
    cells.obs["niche_old"] = cells.obs["niche"]
    nk.io.write_geojson(cells, tmp_path / "x.geojson", mpp=0.25, key="niche_old")
    first = load(tmp_path / "x.geojson")[0]
    assert first["geometry"]["coordinates"] == pytest.approx(cells.obsm["spatial"][0] / 0.25, abs=0.01)
    assert "measurements" not in first["properties"]  # those there are belong to another column
    assert cells.uns["nichekd"]["write_geojson"]["key"] == "niche_old"


def test_a_failure_leaves_the_old_file(sdata, tmp_path, monkeypatch):
    nk.io.write_geojson(sdata, tmp_path / "x.geojson")
    before = (tmp_path / "x.geojson").read_text()

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nichekd.io._write_geojson.json.dumps", fail)
    with pytest.raises(OSError, match="No space left"):
        nk.io.write_geojson(sdata, tmp_path / "x.geojson")
    assert (tmp_path / "x.geojson").read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.geojson"]


def test_bad_input(sdata, cells, tmp_path):
    path = tmp_path / "x.geojson"
    with pytest.raises(KeyError, match=r"obs\['niche_teacher'\] is missing.*nk\.tl\.nolan"):
        nk.io.write_geojson(sdata, path, key="niche_teacher")
    with pytest.raises(KeyError, match=r"no shapes 'nuclei'; it has \['cells'\]"):
        nk.io.write_geojson(sdata, path, shapes_key="nuclei")
    with pytest.raises(ValueError, match=r"AnnData.*Hand in mpp="):
        nk.io.write_geojson(cells, path)
    with pytest.raises(ValueError, match="mpp= goes with an AnnData"):
        nk.io.write_geojson(sdata, path, mpp=0.5)
    others = sdata["cells"].copy()
    others.index = [f"nucleus{i}" for i in range(N)]
    sdata["nuclei"] = others
    with pytest.raises(ValueError, match=r"None of the table's cells \('cell0', ...\).*'nuclei' \(\['nucleus0'\]"):
        nk.io.write_geojson(sdata, path, shapes_key="nuclei")
    assert not path.exists()


# reading outlines

SQUARE = {"type": "Polygon", "coordinates": [[[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]]}


@pytest.mark.parametrize(
    "content",
    [
        {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": SQUARE, "properties": {}}]},
        [{"type": "Feature", "geometry": SQUARE, "properties": {"classification": {"name": "Tumor"}}}],
        {"type": "Feature", "geometry": SQUARE, "properties": None},
        SQUARE,
    ],
)
def test_outlines_however_they_are_nested(tmp_path, content):
    (tmp_path / "x.geojson").write_text(json.dumps(content))
    (tmp_path / "x.geojson.gz").write_bytes(gzip.compress(json.dumps(content).encode()))
    for name in ("x.geojson", "x.geojson.gz"):
        found = read_polygons(tmp_path / name)
        assert found.geometry.tolist() == [Polygon(SQUARE["coordinates"][0])]
    assert found["classification"].tolist() == ["Tumor" if isinstance(content, list) else None]


def test_outlines_in_parts_and_across_themselves(tmp_path):
    parts = MultiPolygon([box(0, 0, 1, 1), box(2, 2, 3, 3)])
    bow = {"type": "Polygon", "coordinates": [[[0, 0], [2, 2], [2, 0], [0, 2], [0, 0]]]}
    features = [{"type": "Feature", "geometry": g} for g in (parts.__geo_interface__, bow)]
    (tmp_path / "x.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    found = read_polygons(tmp_path / "x.geojson")
    assert found.geometry[0].equals(parts)
    assert found.geometry.is_valid.all()


def test_geojson_that_is_not_polygons(tmp_path):
    features = [{"type": "Feature", "geometry": Point(1, 2).__geo_interface__}] * 2
    features += [{"type": "Feature", "geometry": SQUARE}, {"type": "Feature", "geometry": None}]
    (tmp_path / "x.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    with pytest.raises(ValueError, match=r"3 of 4 features of .* no polygons: \{'Point': 2, 'None': 1\}"):
        read_polygons(tmp_path / "x.geojson")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dear colleague", "is not GeoJSON, or cut off"),
        ('{"type": "FeatureCollection", "features": [{"type": "Fea', "is not GeoJSON, or cut off"),
        ('"polygons"', "not GeoJSON: it holds no list of features"),
        ('{"type": "FeatureCollection", "features": []}', "holds no feature"),
        ('{"type": "FeatureCollection"}', "holds no list of features"),
        ('[{"type": "Feature", "geometry": "POINT (1 2)"}]', "a feature whose geometry is no object"),
        ('[{"type": "Feature", "geometry": null, "properties": ["tumour"]}]', "whose properties is no object"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}', "a polygon that is none"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [2, 2], [0, 0]]]}', "1 polygons without an area"),
    ],
)
def test_geojson_that_is_none(tmp_path, text, message):
    (tmp_path / "x.geojson").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_polygons(tmp_path / "x.geojson")


def test_no_geojson(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no GeoJSON .*x\.geojson"):
        read_polygons(tmp_path / "x.geojson")
