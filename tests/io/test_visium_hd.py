"""A Visium HD output folder, and the H&E that it was aligned to."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import spatialdata

import nichekd as nk
from nichekd._image import get_image

MPP = 0.25
BIN_PX = 8 / MPP
N = 6  # bins a side


def barcodes(size: int) -> list[str]:
    return [f"s_{size:03d}um_{row:05d}_{column:05d}-1" for row in range(N) for column in range(N)]


def write_bins(folder, size: int, write_counts) -> None:
    """One size of bins: all those of the array in the positions, those under tissue (not the last row) counted."""
    where = folder / "binned_outputs" / f"square_{size:03d}um"
    (where / "spatial").mkdir(parents=True)
    row, column = np.divmod(np.arange(N * N), N)
    columns = {"barcode": barcodes(size), "in_tissue": (row < N - 1).astype(int), "array_row": row}
    columns |= {"array_col": column}
    side = size / MPP
    columns |= {"pxl_row_in_fullres": 10 + side * (row + 0.5), "pxl_col_in_fullres": 20 + side * (column + 0.5)}
    # space ranger does not write them in the order of the counts
    pd.DataFrame(columns).iloc[::-1].to_parquet(where / "spatial" / "tissue_positions.parquet", index=False)
    scales = {"spot_diameter_fullres": side, "bin_size_um": float(size), "microns_per_pixel": MPP}
    scales |= {"tissue_hires_scalef": 0.1, "tissue_lowres_scalef": 0.01}
    (where / "spatial" / "scalefactors_json.json").write_text(json.dumps(scales))
    write_counts(where / "filtered_feature_bc_matrix.h5", barcodes(size)[: N * (N - 1)], seed=size)


@pytest.fixture
def folder(tmp_path, counts_writer):
    for size in (8, 16):
        write_bins(tmp_path / "outs", size, counts_writer)
    return tmp_path / "outs"


@pytest.fixture
def he(tmp_path, he_writer):
    he_writer(tmp_path / "tissue_image.tif", 220, 230, mpp=MPP)
    return tmp_path / "tissue_image.tif"


def test_bins_are_cells_in_um(folder, he):
    sdata = nk.io.visium_hd(folder, he_image=he)
    table = sdata["table"]
    assert table.obs_names.tolist() == barcodes(8)[: N * (N - 1)]
    row, column = table.obs["array_row"].to_numpy(), table.obs["array_col"].to_numpy()
    np.testing.assert_array_equal(row * N + column, np.arange(N * (N - 1)))
    expected = np.column_stack([20 * MPP + 8 * (column + 0.5), 10 * MPP + 8 * (row + 0.5)])
    np.testing.assert_allclose(table.obsm["spatial"], expected)
    assert sdata["cells"].geometry.area.to_numpy() == pytest.approx(64)
    image = get_image(sdata, table)
    assert image.mpp == MPP
    np.testing.assert_allclose(image.xy_px[0], [20 + BIN_PX / 2, 10 + BIN_PX / 2])
    assert table.uns["nichekd"]["visium_hd"]["bin_um"] == 8


def test_goes_through_pp_and_a_reload(folder, he, tmp_path):
    sdata = nk.io.visium_hd(folder, he_image=he)
    nk.pp.neighborhoods(sdata, radius=8.1)
    assert sdata["table"].obs["n_neighbors"].max() == 4
    sdata.write(tmp_path / "x.zarr")
    back = spatialdata.read_zarr(tmp_path / "x.zarr")
    np.testing.assert_allclose(get_image(back, back["table"]).xy_px, get_image(sdata, sdata["table"]).xy_px)


def test_image_of_the_folder_is_found(folder, he_writer):
    (folder / "microscope_image").mkdir()
    he_writer(folder / "microscope_image" / "section.tif", 220, 230, mpp=MPP)
    assert nk.io.visium_hd(folder)["table"].n_obs == 30


def test_bins_beyond_the_image_are_left_out(folder, tmp_path, he_writer):
    he_writer(tmp_path / "narrow.tif", 220, 160, mpp=MPP)  # four columns of bins, and a bit
    with pytest.warns(UserWarning, match="10 of 30 cells lie outside the H&E .* left out") as warned:
        sdata = nk.io.visium_hd(folder, he_image=tmp_path / "narrow.tif")
    (told,) = [one for one in warned if "lie outside" in str(one.message)]  # anndata may warn of things of its own
    assert told.filename == __file__, "who called is told, not pytest"
    assert sorted(sdata["table"].obs["array_col"].unique()) == [0, 1, 2, 3]
    assert len(sdata["cells"]) == 20


# what goes wrong


def test_bins_that_there_are_not(folder, he):
    with pytest.raises(ValueError, match=r"bin_um=4: .* has bins of \[8, 16\] µm"):
        nk.io.visium_hd(folder, bin_um=4, he_image=he)


def test_not_a_visium_hd_folder(tmp_path, he):
    with pytest.raises(FileNotFoundError, match=r"no Visium HD output.*square_\*um.*tissue_image"):
        nk.io.visium_hd(tmp_path, he_image=he)


def test_no_image(folder):
    with pytest.raises(FileNotFoundError, match="0 images at full resolution.*he_image="):
        nk.io.visium_hd(folder)


def test_missing_file_of_the_folder(folder, he):
    (folder / "binned_outputs" / "square_008um" / "spatial" / "tissue_positions.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*tissue_positions\.parquet .*scalefactors_json"):
        nk.io.visium_hd(folder, he_image=he)


def test_positions_of_another_run(folder, he):
    path = folder / "binned_outputs" / "square_008um" / "spatial" / "tissue_positions.parquet"
    pd.read_parquet(path).iloc[:-3].to_parquet(path)
    with pytest.raises(ValueError, match=r"lacks 3 of 30 bins .*not of the same run"):
        nk.io.visium_hd(folder, he_image=he)


def test_image_that_is_too_small(folder, tmp_path, he_writer):
    """The reduced image in place of the full one."""
    he_writer(tmp_path / "hires.tif", 64, 64, mpp=MPP)
    with pytest.raises(ValueError, match="cells lie outside the H&E .*that Space Ranger was given"):
        nk.io.visium_hd(folder, he_image=tmp_path / "hires.tif")
