"""A Xenium output folder, and the H&E of its section."""

from __future__ import annotations

import json

import numpy as np
import pytest
import spatialdata

import nichekd as nk
from nichekd._image import get_image

PIXEL_SIZE, HE_MPP = 0.2125, 0.25  # µm per px of the morphology image and of the H&E
SCALE = HE_MPP / PIXEL_SIZE
# the H&E, 200 × 260 px, lies on its side: its x runs up the morphology image, its y to the right
TURNED = np.array([[0.0, SCALE, 8.0], [-SCALE, 0.0, 230.0], [0.0, 0.0, 1.0]])


@pytest.fixture
def he(tmp_path, he_writer):
    """H&E and its matrix, where Xenium Explorer's users keep them."""
    he_writer(tmp_path / "section_he_image.ome.tif", 260, 200)
    np.savetxt(tmp_path / "matrix.csv", TURNED, delimiter=",")
    return tmp_path / "section_he_image.ome.tif"


def in_he(xy: np.ndarray) -> np.ndarray:
    """Pixels of the H&E by hand: x' = S y + 8 and y' = -S x + 230 in pixels of the morphology image."""
    morphology = xy / PIXEL_SIZE
    return np.column_stack([(230 - morphology[:, 1]) / SCALE, (morphology[:, 0] - 8) / SCALE])


@pytest.mark.parametrize("version", ["1.6.0.8", "2.0.0.6", "3.1.0.0"])
def test_cells_in_um_and_in_the_pixels_of_the_image(tmp_path, xy, he, xenium_writer, version):
    names = xenium_writer(tmp_path / "outs", xy, version=version)
    sdata = nk.io.xenium(tmp_path / "outs", he_image=he, he_alignment=tmp_path / "matrix.csv")
    table = sdata["table"]
    assert table.obs_names.tolist() == names
    assert table.shape == (40, 5)
    np.testing.assert_allclose(table.obsm["spatial"], xy)
    image = get_image(sdata, table)
    assert image.key == "he"
    assert image.mpp == pytest.approx(HE_MPP)
    np.testing.assert_allclose(image.xy_px, in_he(xy), atol=1e-6)
    assert len(sdata["he"].children) == 2
    about = table.uns["nichekd"]["xenium"]
    assert about["mpp"] == pytest.approx(HE_MPP)
    assert about["he_alignment"].endswith("matrix.csv")


def test_outlines_belong_to_the_cells(xenium_folder, xy, he):
    sdata = nk.io.xenium(xenium_folder, he_image=he, he_alignment=he.parent / "matrix.csv")
    region, _, instance = spatialdata.models.get_table_keys(sdata["table"])
    assert region == "cell_boundaries"
    outlines = sdata["cell_boundaries"].loc[sdata["table"].obs[instance]]
    centroid = outlines.geometry.centroid
    np.testing.assert_allclose(np.column_stack([centroid.x, centroid.y]), xy, atol=1e-4)


def test_files_of_the_folder_are_found(xenium_folder, xy, he_writer):
    he_writer(xenium_folder / "run_he_image.ome.tif", 260, 200)
    np.savetxt(xenium_folder / "run_he_imagealignment.csv", TURNED, delimiter=",")
    sdata = nk.io.xenium(xenium_folder)
    np.testing.assert_allclose(get_image(sdata, sdata["table"]).xy_px, in_he(xy), atol=1e-6)


def test_without_a_matrix_the_image_is_aligned(xenium_folder, xy, tmp_path, he_writer, caplog):
    he_writer(tmp_path / "he.ome.tif", 200, 260)
    with caplog.at_level("INFO", logger="nichekd"):
        sdata = nk.io.xenium(xenium_folder, he_image=tmp_path / "he.ome.tif")
    np.testing.assert_allclose(get_image(sdata, sdata["table"]).xy_px, xy / HE_MPP)
    assert "no alignment of he.ome.tif" in caplog.text


def test_goes_through_pp_and_a_reload(xenium_folder, he, tmp_path):
    sdata = nk.io.xenium(xenium_folder, he_image=he, he_alignment=he.parent / "matrix.csv")
    nk.pp.histology_features(sdata, encoder="color", crop_px=16)
    nk.pp.neighborhoods(sdata, radius=10)
    sdata.write(tmp_path / "x.zarr")
    back = spatialdata.read_zarr(tmp_path / "x.zarr")
    np.testing.assert_allclose(get_image(back, back["table"]).xy_px, get_image(sdata, sdata["table"]).xy_px)
    nk.pp.histology_features(back, encoder="color", crop_px=16, key_added="X_again")
    np.testing.assert_array_equal(back["table"].obsm["X_again"], sdata["table"].obsm["X_color"])


def test_more_of_the_folder_on_request(xenium_folder):
    sdata = nk.io.xenium(xenium_folder, cells_labels=True)
    assert "cell_labels" in sdata.labels
    assert spatialdata.models.get_table_keys(sdata["table"])[0] == "cell_boundaries"


def test_no_he_is_said(xenium_folder, caplog):
    sdata = nk.io.xenium(xenium_folder)
    assert not sdata.images
    assert "he_image=" in caplog.text


def test_cells_beyond_the_image_are_left_out(xenium_folder, xy, tmp_path, he_writer):
    he_writer(tmp_path / "he.ome.tif", 200, 160)  # 40 µm wide
    n_inside = int((xy[:, 0] < 40).sum())
    with pytest.warns(UserWarning, match=rf"{40 - n_inside} of 40 cells lie outside the H&E .* are left out"):
        sdata = nk.io.xenium(xenium_folder, he_image=tmp_path / "he.ome.tif")
    assert sdata["table"].n_obs == n_inside == len(sdata["cell_boundaries"])
    assert (sdata["table"].obsm["spatial"][:, 0] < 40).all()
    get_image(sdata, sdata["table"])


def test_resolution_that_the_metadata_deny(xenium_folder, he):
    np.savetxt(he.parent / "matrix.csv", TURNED * [[1.1], [1.1], [1]], delimiter=",")
    with pytest.warns(UserWarning, match=r"0\.25 µm per pixel by its metadata, 0\.275 by matrix\.csv"):
        sdata = nk.io.xenium(xenium_folder, he_image=he, he_alignment=he.parent / "matrix.csv")
    assert get_image(sdata, sdata["table"]).mpp == pytest.approx(0.275)


# what goes wrong


def test_not_a_xenium_folder(tmp_path):
    (tmp_path / "readme.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"no Xenium output: it has no experiment\.xenium .*readme\.txt"):
        nk.io.xenium(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        nk.io.xenium(tmp_path / "nowhere")


def test_missing_file_of_the_folder(xenium_folder):
    (xenium_folder / "cells.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"cells\.parquet"):
        nk.io.xenium(xenium_folder)


def test_missing_he_and_matrix(xenium_folder, he):
    with pytest.raises(FileNotFoundError, match=r"no image .*none\.tif"):
        nk.io.xenium(xenium_folder, he_image="none.tif")
    with pytest.raises(FileNotFoundError, match=r"no he_alignment .*none\.csv"):
        nk.io.xenium(xenium_folder, he_image=he, he_alignment="none.csv")
    with pytest.raises(ValueError, match=r"without an H&E.*he_image="):
        nk.io.xenium(xenium_folder, he_alignment=he.parent / "matrix.csv")


def test_two_images(xenium_folder, he_writer):
    for name in ("a", "b"):
        he_writer(xenium_folder / f"{name}_he_image.ome.tif", 200, 260)
    with pytest.raises(ValueError, match=r"2 files \*he_image\.ome\.tif.*a_he_image.*he_image="):
        nk.io.xenium(xenium_folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fixedX,fixedY,alignmentX,alignmentY\n1,2,3,4\n", r"no matrix of numbers.*not its keypoints"),
        ("1,0\n0,1\n", r"has to be a 3 × 3 matrix"),
        ("1,0,0\n0,1,0\n0.1,0,1\n", r"last row of 0, 0, 1"),
        ("1,0,nan\n0,1,0\n0,0,1\n", r"has to be a 3 × 3 matrix"),
        ("1,1,0\n1,1,0\n0,0,1\n", "can't be inverted"),
    ],
)
def test_matrix_that_is_none(xenium_folder, he, text, message):
    (he.parent / "matrix.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        nk.io.xenium(xenium_folder, he_image=he, he_alignment=he.parent / "matrix.csv")


def test_matrix_the_wrong_way_round(xenium_folder, he):
    np.savetxt(he.parent / "matrix.csv", np.linalg.inv(TURNED), delimiter=",")
    with pytest.raises(ValueError, match=r"takes pixels of the morphology image to the H&E.*Invert it"):
        nk.io.xenium(xenium_folder, he_image=he, he_alignment=he.parent / "matrix.csv")


def test_image_of_another_section(xenium_folder, he):
    far = TURNED + [[0, 0, 5000], [0, 0, 0], [0, 0, 0]]
    np.savetxt(he.parent / "matrix.csv", far, delimiter=",")
    with pytest.raises(ValueError, match=r"40 of 40 cells lie outside the H&E .*he_alignment="):
        nk.io.xenium(xenium_folder, he_image=he, he_alignment=he.parent / "matrix.csv")


def test_absurd_pixel_size(xenium_folder):
    specs = json.loads((xenium_folder / "experiment.xenium").read_text()) | {"pixel_size": 0}
    (xenium_folder / "experiment.xenium").write_text(json.dumps(specs))
    with pytest.raises(ValueError, match=r"By experiment\.xenium, the morphology image is 0 µm per pixel"):
        nk.io.xenium(xenium_folder)
