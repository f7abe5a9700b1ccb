"""Where cells are in an image: through SpatialData's transformations, whatever they are."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence, Translation, set_transformation

import nichekd as nk
from nichekd._image import get_image, has_image, image_fingerprint
from nichekd._image_notes import note_image, noted_mpp

MPP = 0.5
WIDTH, HEIGHT = 90, 60  # px
N = 40

# ways to lay the image's pixels out anew: what is done to the (y, x, 3) array, and the affine from its pixels to those
# of the upright one, by hand; a pixel's corner at 0 goes to the far edge when its axis is turned round
LAYOUTS = {
    "upright": (lambda a: a, [[1, 0, 0], [0, 1, 0]]),
    "mirrored left to right": (lambda a: a[:, ::-1], [[-1, 0, WIDTH], [0, 1, 0]]),
    "mirrored top to bottom": (lambda a: a[::-1], [[1, 0, 0], [0, -1, HEIGHT]]),
    "turned by 180°": (lambda a: a[::-1, ::-1], [[-1, 0, WIDTH], [0, -1, HEIGHT]]),
    "turned by 90° counterclockwise": (np.rot90, [[0, -1, WIDTH], [1, 0, 0]]),
    "turned by 90° clockwise": (lambda a: np.rot90(a, -1), [[0, 1, 0], [-1, 0, HEIGHT]]),
    "transposed": (lambda a: a.transpose(1, 0, 2), [[0, 1, 0], [1, 0, 0]]),
}


@pytest.fixture(scope="module")
def marked():
    """An upright image in which the pixel under each cell has a colour of its own; cells in µm, anywhere in a pixel."""
    rng = np.random.default_rng(0)
    where = rng.choice(WIDTH * HEIGHT, N, replace=False)
    column, row = where % WIDTH, where // WIDTH
    image = np.full((HEIGHT, WIDTH, 3), 255, dtype=np.uint8)
    colour = np.column_stack([np.arange(N), np.arange(N)[::-1], rng.integers(0, 200, N)]).astype(np.uint8)
    image[row, column] = colour
    within = rng.uniform(0.05, 0.95, (N, 2))
    return image, colour, (np.column_stack([column, row]) + within) * MPP


def cells(xy) -> AnnData:
    return AnnData(obs={"cell": [str(i) for i in range(len(xy))]}, obsm={"spatial": np.asarray(xy, dtype=float)})


def colour_under(image) -> np.ndarray:
    column, row = np.floor(image.xy_px).astype(int).T
    return np.asarray(image.pixels)[:, row, column].T


def build(image, xy, *, image_to, element_to, element_scale=1.0, obsm=None, **parse) -> SpatialData:
    """A SpatialData made by hand: circles at ``xy`` times ``element_scale``, with any transformations."""
    adata = cells(xy if obsm is None else obsm)
    adata.obs["region"] = "spots"
    adata.obs["region"] = adata.obs["region"].astype("category")
    adata.obs["instance"] = np.arange(len(xy))
    circles = ShapesModel.parse(xy * element_scale, geometry=0, radius=1.0, transformations=element_to)
    return SpatialData(
        images={
            "he": Image2DModel.parse(
                image.transpose(2, 0, 1),
                dims=("c", "y", "x"),
                transformations=image_to,
                c_coords=["r", "g", "b"],
                **parse,
            )
        },
        shapes={"spots": circles},
        tables={"table": TableModel.parse(adata, region="spots", region_key="region", instance_key="instance")},
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pixel_under_each_cell_however_the_image_lies(marked, layout):
    image, colour, xy = marked
    arrange, to_upright = LAYOUTS[layout]
    affine = np.diag([MPP, MPP, 1]) @ np.vstack([to_upright, [0, 0, 1]])
    sdata = nk.io.paired(cells(xy), np.ascontiguousarray(arrange(image)), affine=affine)
    found = get_image(sdata, sdata["table"])
    np.testing.assert_array_equal(colour_under(found), colour)
    np.testing.assert_array_equal(found.centre_px, np.floor(found.xy_px))
    assert found.mpp == pytest.approx(MPP)
    assert found.size_px == arrange(image).shape[1::-1]
    np.testing.assert_allclose(found.to_pixels[:2] @ [*xy[0], 1], found.xy_px[0])


@given(angle=st.floats(-np.pi, np.pi), mirror=st.booleans(), shift=st.tuples(*[st.floats(-1e4, 1e4)] * 2))
@settings(max_examples=25, deadline=None)
def test_any_rotation_and_mirroring(angle, mirror, shift):
    """Cells set in pixels and carried to µm by the affine come back to where they were."""
    px = np.array([[3.5, 4.25], [29.9, 0.5], [0.1, 19.9]])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag([1 - 2 * mirror, 1])
    affine = np.column_stack([MPP * turn, shift])
    sdata = nk.io.paired(cells(px @ affine[:, :2].T + affine[:, 2]), np.zeros((20, 30, 3), np.uint8), affine=affine)
    found = get_image(sdata, sdata["table"])
    np.testing.assert_allclose(found.xy_px, px, atol=1e-7)
    assert found.mpp == pytest.approx(MPP)


def test_chain_through_a_coordinate_system_that_is_not_um(marked):
    """As Xenium has it: shapes in µm, scaled to another image's pixels, and the H&E aligned to these by an affine."""
    image, colour, xy = marked
    scale = Scale([1 / 0.2125, 1 / 0.2125], axes=("x", "y"))
    aligned = Affine(
        np.array([[0, -1, WIDTH], [1, 0, 0], [0, 0, 1]]) * [[MPP / 0.2125], [MPP / 0.2125], [1]],
        input_axes=("x", "y"),
        output_axes=("x", "y"),
    )
    sdata = build(np.rot90(image), xy, image_to={"global": aligned}, element_to={"global": scale})
    found = get_image(sdata, sdata["table"])
    np.testing.assert_array_equal(colour_under(found), colour)
    assert found.mpp == pytest.approx(MPP)


def test_centres_in_um_beside_shapes_in_pixels(marked):
    """Shapes and image in pixels, both scaled to µm; the frame of the centres is told by where the shapes are."""
    image, colour, xy = marked
    to_um = {"aligned": Sequence([Scale([MPP, MPP], axes=("x", "y")), Translation([0, 0], axes=("x", "y"))])}
    sdata = build(image, xy, image_to=to_um, element_to=dict(to_um), element_scale=1 / MPP)
    found = get_image(sdata, sdata["table"])
    np.testing.assert_array_equal(colour_under(found), colour)
    assert found.mpp == pytest.approx(MPP)


def test_labels_in_pixels_beside_outlines_in_um(marked):
    """As Xenium reads today: the table annotates a label image, and only other shapes are in µm."""
    image, colour, xy = marked
    sdata = build(image, xy, image_to={"global": Identity()}, element_to={"global": Scale([2.0, 2.0], axes=("x", "y"))})
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
    column, row = np.floor(xy / MPP).astype(int).T
    labels[row, column] = np.arange(N) + 1
    table = cells(xy)
    table.obs["region"] = "mask"
    table.obs["region"] = table.obs["region"].astype("category")
    table.obs["label"] = np.arange(N) + 1
    sdata["mask"] = Labels2DModel.parse(labels, dims=("y", "x"), transformations={"global": Identity()})
    sdata["labelled"] = TableModel.parse(table, region="mask", region_key="region", instance_key="label")
    found = get_image(sdata, sdata["labelled"])
    np.testing.assert_array_equal(colour_under(found), colour)
    assert found.mpp == pytest.approx(MPP)


def test_full_resolution_of_a_multiscale_image(marked):
    image, colour, xy = marked
    to_um = {"global": Scale([MPP, MPP], axes=("x", "y"))}
    sdata = build(image, xy, image_to=to_um, element_to={"global": Identity()}, scale_factors=[2, 2])
    found = get_image(sdata, sdata["table"])
    assert found.pixels.shape == (3, HEIGHT, WIDTH)
    np.testing.assert_array_equal(colour_under(found), colour)


def test_moved_centres_move_in_the_image(marked):
    """A registration error is the user's to study: obsm["spatial"] counts, not the shapes."""
    image, _, xy = marked
    inner = xy[(xy[:, 0] < 35)]
    sdata = nk.io.paired(cells(inner), image, mpp=MPP)
    sdata["table"].obsm["spatial"] = inner + [5.0, 0.0]
    np.testing.assert_allclose(get_image(sdata, sdata["table"]).xy_px, (inner + [5.0, 0.0]) / MPP)


def test_pixels_of_a_cell_on_the_edge():
    sdata = nk.io.paired(cells([[0.0, 0.0], [9.999, 4.999]]), np.zeros((10, 20, 3), np.uint8), mpp=0.5)
    assert get_image(sdata, sdata["table"]).centre_px.tolist() == [[0, 0], [19, 9]]


# what goes wrong


@pytest.fixture
def sdata(marked):
    image, _, xy = marked
    return nk.io.paired(cells(xy), image, mpp=MPP)


def test_no_image(sdata):
    del sdata.images["he"]
    with pytest.raises(ValueError, match=r"no image.*nk\.io\.paired"):
        get_image(sdata, sdata["table"])
    assert not has_image(sdata)


def test_a_table_has_no_image(sdata):
    with pytest.raises(TypeError, match=r"AnnData has no image.*nk\.io\.paired"):
        get_image(sdata["table"], sdata["table"])
    assert not has_image(sdata["table"])


def test_several_images_are_listed(sdata, marked):
    sdata["dapi"] = Image2DModel.parse(marked[0].transpose(2, 0, 1), dims=("c", "y", "x"))
    with pytest.raises(ValueError, match=r"2 images, \['dapi', 'he'\].*image_key="):
        get_image(sdata, sdata["table"])
    assert get_image(sdata, sdata["table"], image_key="he").key == "he"


def test_unknown_image_names_those_there_are(sdata):
    with pytest.raises(KeyError, match=r"no image 'HE'; it has \['he'\]"):
        get_image(sdata, sdata["table"], image_key="HE")


def test_no_shared_coordinate_system(sdata):
    set_transformation(sdata["he"], {"slide": Identity()}, set_all=True)
    with pytest.raises(ValueError, match=r"No transformation leads.*\['slide'\].*\['global'\].*affine="):
        get_image(sdata, sdata["table"])


def test_transformation_that_cannot_be_inverted(sdata):
    set_transformation(sdata["he"], Scale([1.0, 0.0], axes=("x", "y")))
    with pytest.raises(ValueError, match=r"image 'he' to coordinate system 'global' can't be inverted"):
        get_image(sdata, sdata["table"])


def test_coordinate_systems_that_contradict_each_other(sdata):
    set_transformation(sdata["he"], Identity(), "aligned")
    set_transformation(sdata["cells"], Identity(), "aligned")
    with pytest.raises(ValueError, match=r"'global', 'aligned'.*differently.*remove_transformation"):
        get_image(sdata, sdata["table"])


@pytest.mark.parametrize("mpp", [0.01, 20.0])
def test_absurd_resolution(sdata, mpp):
    set_transformation(sdata["he"], Scale([mpp, mpp], axes=("x", "y")))
    with pytest.raises(ValueError, match=rf"is {mpp:g} µm per pixel.*0\.05 to 5"):
        get_image(sdata, sdata["table"])


def test_pixels_that_are_not_square(sdata):
    set_transformation(sdata["he"], Scale([0.5, 1.0], axes=("x", "y")))
    with pytest.raises(ValueError, match=r"0\.5 × 1 µm.*square"):
        get_image(sdata, sdata["table"])


def test_resolution_that_contradicts_the_caller(sdata):
    assert get_image(sdata, sdata["table"], mpp=0.505).mpp == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"0\.5 µm per pixel by its transformation, but 0\.25 by mpp="):
        get_image(sdata, sdata["table"], mpp=0.25)


def test_resolution_that_contradicts_the_metadata(sdata):
    assert noted_mpp(sdata, "he") == MPP
    note_image(sdata, "he", mpp=0.25, source="he.tif")
    with pytest.raises(ValueError, match=r"but 0\.25 by its metadata"):
        get_image(sdata, sdata["table"])


def test_cells_outside_are_counted(sdata):
    sdata["table"].obsm["spatial"][:3] = [[-0.5, 1.0], [WIDTH * MPP, 1.0], [1.0, HEIGHT * MPP + 5]]
    with pytest.raises(ValueError, match=rf"3 of {N} cells lie outside image 'he' \(90 × 60 px\).*Drop"):
        get_image(sdata, sdata["table"])


def test_centres_in_pixels_are_found_out(sdata):
    sdata["table"].obsm["spatial"] /= MPP
    with pytest.raises(ValueError, match=r"seems to be in pixels.*adata\.obsm\['spatial'\] \*= mpp, here 0\.5"):
        get_image(sdata, sdata["table"])


def test_image_and_centres_in_pixels_are_found_out():
    """Nothing contradicts anything, but cells 36 µm apart are in no tissue."""
    xy = np.random.default_rng(0).uniform(0, 3000, (2_000, 2))
    white = np.full((3000, 3000, 3), 255, dtype=np.uint8)
    sdata = build(white, xy, image_to={"global": Identity()}, element_to={"global": Identity()})
    with pytest.raises(ValueError, match=r"no µm per pixel.*pixels.*\*= mpp"):
        get_image(sdata, sdata["table"])


def tissue(n, spacing) -> np.ndarray:
    """Cells that keep a distance from each other, as in tissue."""
    side = int(np.sqrt(n))
    lattice = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)
    return spacing * (lattice + 1 + np.random.default_rng(0).uniform(-0.3, 0.3, lattice.shape))


def test_pixels_in_the_corner_of_a_slide_are_suspected():
    """1,600 cells 9 µm apart, handed in as pixels of 0.25 µm: they lie on the slide, but 36 apart."""
    white = np.full((3, 6400, 6400), 255, dtype=np.uint8).transpose(1, 2, 0)
    with pytest.warns(UserWarning, match=r"seems to be in pixels.*\*= mpp, here 0\.25"):
        nk.io.paired(cells(tissue(1600, 9) / 0.25), white, mpp=0.25)
    nk.io.paired(cells(tissue(1600, 9)), white, mpp=0.25)  # and nothing is said


@pytest.mark.parametrize("clustered", [False, True])
def test_sparse_cells_are_not_suspected(clustered):
    """1,600 immune cells in 4 mm²: strewn at random, or by twos and threes."""
    rng = np.random.default_rng(0)
    xy = rng.uniform(20, 1980, (1600, 2))
    if clustered:
        xy[:700] = xy[700:1400] + rng.normal(0, 8, (700, 2))
    nk.io.paired(cells(xy * 1.2), np.full((4900, 4900, 3), 255, dtype=np.uint8), mpp=0.5)


def test_centres_that_are_nowhere_near_their_cells():
    xy = np.random.default_rng(0).uniform(0, 100, (50, 2))
    white = np.full((1000, 1000, 3), 255, dtype=np.uint8)
    sdata = build(white, xy, image_to={"global": Identity()}, element_to={"global": Identity()}, obsm=xy + 600)
    with pytest.raises(ValueError, match=r"does not fit the cells of element 'spots'.*849 away"):
        get_image(sdata, sdata["table"])


def test_table_that_annotates_nothing(sdata):
    del sdata["table"].uns["spatialdata_attrs"]
    with pytest.raises(ValueError, match=r"annotates no element.*nk\.io\.paired"):
        get_image(sdata, sdata["table"])


@pytest.mark.filterwarnings("ignore:The table is annotating:UserWarning")
def test_annotated_element_that_is_gone(sdata):
    del sdata.shapes["cells"]
    with pytest.raises(KeyError, match=r"annotates element 'cells', which the SpatialData lacks"):
        get_image(sdata, sdata["table"])


def test_table_of_two_sections(sdata):
    region = sdata["table"].obs["region"].cat.add_categories(["more"])
    region.iloc[0] = "more"
    sdata["table"].obs["region"] = region
    with pytest.raises(ValueError, match=r"2 elements, \['cells', 'more'\]"):
        get_image(sdata, sdata["table"])


def test_instances_that_are_not_in_the_element(sdata):
    sdata["table"].obs["instance_id"] = [f"x{i}" for i in range(N)]
    with pytest.raises(ValueError, match=r"None of the table's instances \('x0'"):
        get_image(sdata, sdata["table"])


def test_grey_or_deep_images_are_refused(sdata, marked):
    image = marked[0].transpose(2, 0, 1)
    sdata["grey"] = Image2DModel.parse(image[:1], dims=("c", "y", "x"))
    sdata["deep"] = Image2DModel.parse(image.astype(np.uint16), dims=("c", "y", "x"))
    with pytest.raises(ValueError, match=r"Image 'grey' has shape \(1, 60, 90\).*three colours"):
        get_image(sdata, sdata["table"], image_key="grey")
    with pytest.raises(TypeError, match=r"Image 'deep' is of uint16"):
        get_image(sdata, sdata["table"], image_key="deep")


# fingerprints


def test_fingerprint_is_of_the_pixels(sdata, marked, tmp_path):
    import spatialdata

    image = marked[0].transpose(2, 0, 1)
    own = image_fingerprint(get_image(sdata, sdata["table"]))
    assert own == image_fingerprint(image)
    sdata.write(tmp_path / "x.zarr")
    again = spatialdata.read_zarr(tmp_path / "x.zarr")
    assert own == image_fingerprint(get_image(again, again["table"]))
    assert len({own, image_fingerprint(255 - image), image_fingerprint(image[:, :, :-1])}) == 3


def test_fingerprint_of_an_image_smaller_than_its_windows():
    assert image_fingerprint(np.zeros((3, 2, 2), np.uint8)) != image_fingerprint(np.ones((3, 2, 2), np.uint8))


def test_the_colour_image_beside_fluorescence(marked):
    """As spatialdata_io reads a Xenium."""
    pixels, _, xy = marked
    sdata = nk.io.paired(cells(xy), pixels, mpp=MPP)
    sdata.images["morphology"] = Image2DModel.parse(np.zeros((1, 60, 90), dtype=np.uint16), dims=("c", "y", "x"))
    assert get_image(sdata, sdata["table"]).key == "he"
    sdata.images["other"] = sdata.images["he"]
    with pytest.raises(ValueError, match=r"3 images.*image_key="):
        get_image(sdata, sdata["table"])
