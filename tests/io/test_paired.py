from __future__ import annotations

from importlib.resources import files

import anndata
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import spatialdata
import tifffile
from anndata import AnnData
from scipy.sparse import random_array
from shapely import Point
from spatialdata.transformations import get_transformation

import nichekd as nk
from nichekd._image import get_image

PANCREAS = files("nichekd.datasets") / "data" / "pancreas"
N = 60


@pytest.fixture
def adata():
    """Cells within 100 × 80 µm, with all that a table may hold."""
    rng = np.random.default_rng(0)
    return AnnData(
        random_array((N, 4), density=0.5, format="csr", rng=rng, dtype=np.float32),
        obs=pd.DataFrame({"region": "cortex", "area": 50.0}, index=[f"cell{i}" for i in range(N)]),
        obsm={"spatial": rng.uniform((0, 0), (100, 80), (N, 2))},
        uns={"source": "made up", "nested": {"mpp": 0.5}},
    )


@pytest.fixture
def image():
    return np.random.default_rng(1).integers(0, 255, (160, 200, 3), dtype=np.uint8)


@pytest.fixture
def path(image, tmp_path):
    where = tmp_path / "he.ome.tif"
    sides = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}
    tifffile.imwrite(where, image, photometric="rgb", tile=(64, 64), ome=True, metadata=sides)
    return where


def test_elements_and_coordinate_system(adata, path, image):
    sdata = nk.io.paired(adata, path)
    assert (list(sdata.images), list(sdata.shapes), list(sdata.tables)) == (["he"], ["cells"], ["table"])
    assert sdata.coordinate_systems == ["global"]
    np.testing.assert_array_equal(sdata["he"], image.transpose(2, 0, 1))
    np.testing.assert_allclose(sdata["cells"].get_coordinates(), adata.obsm["spatial"])
    assert sdata["cells"].index.tolist() == adata.obs_names.tolist()
    matrix = get_transformation(sdata["he"], "global").to_affine_matrix(("x", "y"), ("x", "y"))
    np.testing.assert_allclose(matrix, np.diag([0.5, 0.5, 1]))
    region, key, instance = spatialdata.models.get_table_keys(sdata["table"])
    assert region == "cells"
    assert sdata["table"].obs[instance].tolist() == adata.obs_names.tolist()
    assert sdata["table"].uns["nichekd"]["paired"]["mpp"] == 0.5


def test_table_is_copied_and_kept(adata, path):
    before = adata.copy()
    table = nk.io.paired(adata, path)["table"]
    table.obsm["spatial"][0] = -1
    table.uns["nested"]["mpp"] = 9
    assert set(adata.uns) == set(before.uns)
    assert adata.uns["nested"] == before.uns["nested"]
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    np.testing.assert_array_equal(adata.obsm["spatial"], before.obsm["spatial"])
    assert (table.obs["region"] == "cortex").all(), "a column of the user's was overwritten"
    assert table.uns["source"] == "made up"


def test_file_stays_on_disk_until_pixels_are_asked_for(adata, path):
    sdata = nk.io.paired(adata, path)
    assert sdata["he"].data.chunksize == (3, 160, 200)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        nk.io.paired(adata, path)


@pytest.mark.parametrize("layout", ["yxc", "cyx", "dask", "alpha"])
def test_arrays(adata, image, layout):
    import dask.array as da

    alpha = np.concatenate([image, image[..., :1]], axis=2)
    array = {"yxc": image, "cyx": image.transpose(2, 0, 1), "dask": da.from_array(image), "alpha": alpha}[layout]
    sdata = nk.io.paired(adata, array, mpp=0.5)
    np.testing.assert_array_equal(sdata["he"], image.transpose(2, 0, 1))


def test_reloaded_object_goes_through_pp(adata, path, tmp_path):
    sdata = nk.io.paired(adata, path, image_key="slide", table_key="cells_table")
    kwargs = {"table_key": "cells_table"}
    sdata.write(tmp_path / "x.zarr")
    again = spatialdata.read_zarr(tmp_path / "x.zarr")
    fresh, back = (get_image(s, s["cells_table"]) for s in (sdata, again))
    np.testing.assert_array_equal(fresh.xy_px, back.xy_px)
    np.testing.assert_array_equal(fresh.pixels, back.pixels)
    for s in (sdata, again):
        nk.pp.split(s, crop_px=4, **kwargs)
        assert nk.pp.estimate_radius(s, n_neighbors=8, **kwargs) > 0
        nk.pp.neighborhoods(s, **kwargs)
    pd.testing.assert_series_equal(sdata["cells_table"].obs["split"], again["cells_table"].obs["split"])
    both = [s["cells_table"].obsp["spatial_distances"].toarray() for s in (sdata, again)]
    np.testing.assert_array_equal(*both)
    sdata.write(tmp_path / "y.zarr")
    table = spatialdata.read_zarr(tmp_path / "y.zarr")["cells_table"]
    assert table.uns["nichekd"]["radius"] == sdata["cells_table"].uns["nichekd"]["radius"]
    np.testing.assert_array_equal(table.obsp["spatial_distances"].toarray(), both[0])


def test_bundled_section_with_outlines():
    adata = anndata.read_h5ad(PANCREAS / "cells.h5ad")
    outlines = gpd.read_parquet(PANCREAS / "cells.parquet")
    sdata = nk.io.paired(adata, PANCREAS / "he.ome.tif", shapes=outlines.iloc[::-1])  # in another order
    assert sdata["cells"].index.equals(adata.obs_names)
    assert (sdata["cells"].geom_type == "Polygon").all()
    found = get_image(sdata, sdata["table"])
    assert found.mpp == pytest.approx(0.274)
    np.testing.assert_allclose(found.xy_px, adata.obsm["spatial"].astype(float) / 0.274)


def test_outlines_in_the_tables_order(adata, image):
    outlines = gpd.GeoDataFrame(geometry=[Point(xy).buffer(2) for xy in adata.obsm["spatial"]])
    sdata = nk.io.paired(adata, image, mpp=0.5, shapes=outlines)
    assert sdata["cells"].index.equals(adata.obs_names)


def test_table_out_of_another_object(adata, image):
    first = nk.io.paired(adata, image, mpp=0.5)
    second = nk.io.paired(first["table"], image, mpp=0.5)
    assert second["table"].uns["spatialdata_attrs"]["region"] == "cells"


def test_lone_cell(image):
    sdata = nk.io.paired(AnnData(obsm={"spatial": np.array([[1.0, 2.0]])}), image, mpp=0.5)
    assert sdata["cells"]["radius"].tolist() == [5.0]


def test_backed_table(adata, image, tmp_path):
    adata.write_h5ad(tmp_path / "x.h5ad")
    sdata = nk.io.paired(anndata.read_h5ad(tmp_path / "x.h5ad", backed="r"), image, mpp=0.5)
    assert not sdata["table"].isbacked
    np.testing.assert_array_equal(sdata["table"].X.toarray(), adata.X.toarray())


# µm per pixel, from wherever it is said


def test_mpp_of_the_metadata_is_taken(adata, path):
    assert get_image(*_of(nk.io.paired(adata, path))).mpp == pytest.approx(0.5)


def test_mpp_that_agrees_with_the_metadata_is_exact(adata, path):
    assert get_image(*_of(nk.io.paired(adata, path, mpp=0.505))).mpp == pytest.approx(0.505)


def test_mpp_overrules_the_metadata_and_says_so(adata, path):
    with pytest.warns(UserWarning, match=r"0\.5 µm per pixel by its metadata; 0\.6 is taken"):
        sdata = nk.io.paired(adata, path, mpp=0.6)
    assert get_image(*_of(sdata)).mpp == pytest.approx(0.6)


def test_unknown_mpp(adata, image):
    with pytest.raises(ValueError, match=r"not known.*mpp=.*affine="):
        nk.io.paired(adata, image)


@pytest.mark.parametrize("mpp", [0.0, -0.5, 0.01, 11, np.nan, np.inf])
def test_absurd_mpp(adata, image, mpp):
    with pytest.raises(ValueError, match=r"mpp= is .* µm per pixel; a microscope image has 0\.05 to 5"):
        nk.io.paired(adata, image, mpp=mpp)


def test_mpp_and_affine_that_contradict_each_other(adata, image):
    affine = [[0.5, 0, 0], [0, 0.5, 0]]
    nk.io.paired(adata, image, mpp=0.505, affine=affine)
    with pytest.raises(ValueError, match=r"mpp= says 0\.25 µm per pixel, affine= 0\.5"):
        nk.io.paired(adata, image, mpp=0.25, affine=affine)


@pytest.mark.parametrize("affine", [[[1, 0], [0, 1]], [[1, 0, 0], [0, 1, 0], [0, 0.1, 1]], [[1, 0, np.nan], [0, 1, 0]]])
def test_affine_that_is_none(adata, image, affine):
    with pytest.raises(ValueError, match=r"has to be \(2, 3\)"):
        nk.io.paired(adata, image, affine=affine)


@pytest.mark.parametrize("affine", ["x", [[1, 0, 0], [0, 1]], [[1, 0, None], [0, 1, "a"]]])
def test_affine_without_numbers(adata, image, affine):
    with pytest.raises(TypeError, match=r"affine=.* is no matrix of numbers.*has to be \(2, 3\)"):
        nk.io.paired(adata, image, affine=affine)


def test_mpp_without_number_beside_an_affine(adata, image):
    with pytest.raises(TypeError, match="mpp= is 'half'"):
        nk.io.paired(adata, image, mpp="half", affine=[[0.5, 0, 0], [0, 0.5, 0]])


def test_affine_that_cannot_be_inverted(adata, image):
    with pytest.raises(ValueError, match="can't be inverted"):
        nk.io.paired(adata, image, affine=[[0.5, 0.5, 0], [0.5, 0.5, 0]])


def test_affine_the_wrong_way_round(adata, image):
    """px per µm in place of µm per px: twice 2 is 4 µm per px, and nothing fits."""
    with pytest.raises(ValueError, match="is 20 µm per pixel"):
        nk.io.paired(adata, image, affine=[[20, 0, 0], [0, 20, 0]])


# bad tables and shapes


def test_not_a_table(image):
    with pytest.raises(TypeError, match="adata is a dict"):
        nk.io.paired({}, image, mpp=0.5)


def test_no_cells(adata, image):
    with pytest.raises(ValueError, match=r"no cells.*nk\.io\.slide"):
        nk.io.paired(adata[:0].copy(), image, mpp=0.5)


def test_no_centres(adata, image):
    del adata.obsm["spatial"]
    with pytest.raises(KeyError, match=r"obsm\['spatial'\] is missing; obsm has \[\]\. Put .* there, in µm"):
        nk.io.paired(adata, image, mpp=0.5)


@pytest.mark.parametrize(("value", "match"), [(np.nan, "NaN"), (None, "duplicate")])
def test_bad_centres(adata, image, value, match):
    adata.obsm["spatial"][0] = adata.obsm["spatial"][1] if value is None else value
    with pytest.raises(ValueError, match=match):
        nk.io.paired(adata, image, mpp=0.5)


def test_centres_in_pixels(adata, image):
    adata.obsm["spatial"] /= 0.5
    with pytest.raises(ValueError, match=r"outside image 'he'.*in pixels.*\*= mpp, here 0\.5"):
        nk.io.paired(adata, image, mpp=0.5)


def test_cells_outside(adata, image):
    adata.obsm["spatial"][3] = [-4, 5]
    with pytest.raises(ValueError, match="1 of 60 cells lie outside"):
        nk.io.paired(adata, image, mpp=0.5)


@pytest.mark.filterwarnings("ignore:Observation names are not unique:UserWarning")
def test_repeated_names(adata, image):
    adata.obs_names = ["a"] * N
    with pytest.raises(ValueError, match="obs_names_make_unique"):
        nk.io.paired(adata, image, mpp=0.5)


def test_one_name_for_two_elements(adata, image):
    for keys in ({"image_key": "cells"}, {"image_key": "Cells"}, {"image_key": "table"}):
        with pytest.raises(ValueError, match="have to differ"):
            nk.io.paired(adata, image, mpp=0.5, **keys)


@pytest.mark.parametrize("name", ["", ".", "..", "__he", "a b/c", "he\n"])
def test_names_that_no_element_can_have(adata, image, name):
    for key in ("image_key", "table_key"):
        with pytest.raises(ValueError, match=f"{key}=.* can't name an element"):
            nk.io.paired(adata, image, mpp=0.5, **{key: name})


@pytest.mark.parametrize("name", ["_he", ".he", "H-e.2", "färbung", "切片"])
def test_names_that_elements_can_have(adata, image, name):
    assert name in nk.io.paired(adata, image, mpp=0.5, image_key=name).images


def test_a_name_that_is_no_text(adata, image):
    with pytest.raises(TypeError, match="image_key=3 is a int"):
        nk.io.paired(adata, image, mpp=0.5, image_key=3)


def test_shapes_that_do_not_fit(adata, image):
    outlines = gpd.GeoDataFrame(geometry=[Point(xy).buffer(2) for xy in adata.obsm["spatial"]])
    with pytest.raises(ValueError, match="59 rows for 60 cells"):
        nk.io.paired(adata, image, mpp=0.5, shapes=outlines.iloc[1:])
    with pytest.raises(ValueError, match=r"lie a median .* µm from the cells' centres"):
        nk.io.paired(adata, image, mpp=0.5, shapes=outlines.scale(9, 9, origin=(0, 0)).to_frame("geometry"))


@pytest.mark.parametrize("shape", [(0, 0, 3), (3, 0, 5), (5, 0, 4)])
def test_image_without_pixels(adata, shape):
    with pytest.raises(ValueError, match=r"image has shape .*no pixels"):
        nk.io.paired(adata, np.zeros(shape, dtype=np.uint8), mpp=0.5)


def test_image_that_is_none(adata):
    with pytest.raises(TypeError, match="image is a int"):
        nk.io.paired(adata, 3, mpp=0.5)


def _of(sdata):
    return sdata, sdata["table"]
