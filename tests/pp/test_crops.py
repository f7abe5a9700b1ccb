from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nichekd._image import CellImage
from nichekd.pp._crops import SEGMENT, CropReader, batch_cells, read_ahead
from nichekd.pp._hilbert import hilbert_index, reading_order
from nichekd.pp._tiles import ImageTiles, TileCache

RNG = np.random.default_rng(0)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)


def cells_in(height, width, n, seed=0):
    """Centres (n, 2), x and y, some of them on the very edge."""
    xy = np.random.default_rng(seed).uniform(0, (width, height), (n, 2))
    corners = [(0, 0), (width - 1e-9, height - 1e-9)]
    return np.concatenate([xy, corners])[-n:]


def cell_image(pixels, xy, chunks=(64, 64), mpp=0.5):
    array = pixels if isinstance(pixels, da.Array) else da.from_array(pixels, chunks=(3, *chunks))
    return CellImage(key="he", pixels=array, to_pixels=np.eye(3), mpp=mpp, xy_px=np.asarray(xy, dtype=float))


def naive(pixels, xy, crop_px):
    """Slices of the image with a white margin."""
    padded = np.pad(pixels, ((0, 0), (crop_px, crop_px), (crop_px, crop_px)), constant_values=255)
    column, row = (np.floor(xy).astype(int) + crop_px - crop_px // 2).T
    return np.stack([padded[:, r : r + crop_px, c : c + crop_px] for c, r in zip(column, row, strict=True)])


def all_crops(reader, **options):
    order = reader.order()
    cells, crops = zip(*reader.batches(order, **options), strict=True)
    np.testing.assert_array_equal(np.concatenate(cells), order)
    found = np.empty((len(order), *crops[0].shape[1:]), np.uint8)
    found[order] = np.concatenate(crops)
    return found


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    chunks=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    crop_px=st.integers(1, 120),
    n=st.integers(1, 30),
    batch_size=st.integers(1, 12),
    num_workers=st.integers(0, 3),
    cache_bytes=st.sampled_from([0, 20_000, 10**9]),
    seed=st.integers(0, 2**20),
)
def test_crops_are_slices_of_the_padded_image(
    height, width, chunks, crop_px, n, batch_size, num_workers, cache_bytes, seed
):
    pixels, xy = picture(height, width, seed), cells_in(height, width, n, seed)
    reader = CropReader(cell_image(pixels, xy, chunks), crop_px=crop_px, cache_bytes=cache_bytes)
    found = all_crops(reader, batch_size=batch_size, num_workers=num_workers)
    np.testing.assert_array_equal(found, naive(pixels, xy, crop_px))


def test_the_centre_pixel_by_hand():
    pixels = np.zeros((3, 10, 12), np.uint8)
    pixels[:, 6, 4] = 7
    reader = CropReader(cell_image(pixels, [(4.0, 6.0), (4.999, 6.999), (5.0, 6.0)]), crop_px=4)
    crops = reader.read(np.array([0, 1, 2]))
    assert (crops[:2, :, 2, 2] == 7).all()  # rows and columns c − 2 … c + 1
    assert (crops[2, :, 2, 1] == 7).all()


def test_beyond_the_image_is_white():
    reader = CropReader(cell_image(np.zeros((3, 20, 20), np.uint8), [(0, 0)]), crop_px=224)
    (crop,) = reader.read(np.array([0]))
    assert (crop[:, :112] == 255).all()
    assert (crop[:, :, :112] == 255).all()
    assert (crop[:, 112:132, 112:132] == 0).all()
    assert (crop[:, 132:] == 255).all()


def test_chunks_that_split_the_colours_or_differ_in_size():
    pixels = picture(50, 70)
    array = da.from_array(pixels, chunks=((1, 2), (7, 30, 13), (50, 20)))
    xy = cells_in(50, 70, 9)
    np.testing.assert_array_equal(all_crops(CropReader(cell_image(array, xy), crop_px=32)), naive(pixels, xy, 32))


@pytest.mark.parametrize("crop_px", [0, -3, 10.5])
def test_bad_crop_size(crop_px):
    with pytest.raises(ValueError, match="whole number of pixels"):
        CropReader(cell_image(picture(9, 9), [(1, 1)]), crop_px=crop_px)


# resolution -------------------------------------------------------------------------------------------------------


def resampled_by_hand(pixels, up, down):
    """Each pixel ``up`` times, then means over ``down``: area resampling by a factor down / up."""
    large = pixels.repeat(up, axis=1).repeat(up, axis=2).astype(float)
    margins = [(0, -n % down) for n in large.shape[1:]]
    large = np.pad(large, ((0, 0), *margins), constant_values=255)
    blocks = large.reshape(3, large.shape[1] // down, down, large.shape[2] // down, down)
    return blocks.mean(axis=(2, 4))


@pytest.mark.parametrize(("up", "down"), [(1, 2), (1, 3), (2, 3), (2, 1), (5, 4)])
def test_another_resolution_is_cut_out_of_the_resampled_image(up, down, monkeypatch):
    monkeypatch.setattr("nichekd.pp._tiles.RESAMPLED_TILE", 17)  # several tiles, to see their seams
    pixels, xy = picture(61, 83), cells_in(61, 83, 12)
    reader = CropReader(cell_image(pixels, xy, mpp=0.5), crop_px=24, mpp=0.5 * down / up)
    expected = naive(resampled_by_hand(pixels, up, down), xy * up / down, 24)
    assert np.abs(all_crops(reader) - expected).max() <= 0.5 + 1e-3  # rounded to whole numbers
    assert reader.mpp == pytest.approx(0.5 * down / up)


@pytest.mark.parametrize("mpp", [None, 0.5, 0.505])
def test_the_same_resolution_is_not_resampled(mpp):
    pixels, xy = picture(61, 83), cells_in(61, 83, 5)
    reader = CropReader(cell_image(pixels, xy, mpp=0.5), crop_px=24, mpp=mpp)
    np.testing.assert_array_equal(all_crops(reader), naive(pixels, xy, 24))
    assert reader.mpp == 0.5


@pytest.mark.parametrize("mpp", [0.0, -1.0, float("nan"), 274.0])
def test_no_microscope_has_that_resolution(mpp):
    with pytest.raises(ValueError, match="mpp= is"):
        CropReader(cell_image(picture(9, 9), [(1, 1)]), mpp=mpp)


# order and batches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bits", [0, 1, 2, 5])
def test_hilbert_curve_steps_to_the_next_square(n_bits):
    side = 1 << n_bits
    y, x = np.divmod(np.arange(side * side), side)
    index = hilbert_index(x, y, n_bits)
    assert sorted(index) == list(range(side * side))
    path = np.stack([x, y])[:, np.argsort(index)]
    assert (np.abs(np.diff(path)).sum(axis=0) == 1).all()


@pytest.mark.parametrize("tile", [(64, 64), (100, 100), (512, 300)])
def test_order_finishes_a_tile_before_the_next(tile):
    height, width = 1000, 1400
    edges = [np.append(np.arange(0, size, step), size) for size, step in zip((height, width), tile, strict=True)]
    centre = np.floor(cells_in(height, width, 3000)).astype(np.int64)
    order = reading_order(centre, *edges)
    assert sorted(order) == list(range(3000))
    tiles = np.stack([centre[order, 1] // tile[0], centre[order, 0] // tile[1]], axis=1)
    changes = (np.diff(tiles, axis=0) != 0).any(axis=1).sum()
    assert changes == len(np.unique(tiles, axis=0)) - 1


def test_order_of_no_cells():
    edges = np.array([0, 10])
    assert len(reading_order(np.empty((0, 2), np.int64), edges, edges)) == 0


def test_batches_stop_at_segments():
    order = RNG.permutation(2 * SEGMENT + 10)
    batches = list(batch_cells(order, 100))
    np.testing.assert_array_equal(np.concatenate(batches), order)
    assert [len(b) for b in batches] == ([100] * 10 + [24]) * 2 + [10]
    later = list(batch_cells(order[SEGMENT:], 100))  # what a resumed run encodes
    for one, other in zip(batches[11:], later, strict=True):
        np.testing.assert_array_equal(one, other)


# decoding ---------------------------------------------------------------------------------------------------------


class Counted:
    """An array that counts how often its chunks are read."""

    ndim, dtype = 3, np.dtype(np.uint8)

    def __init__(self, pixels):
        self.pixels, self.shape, self.n_reads, self.lock = pixels, pixels.shape, 0, threading.Lock()

    def __getitem__(self, index):
        with self.lock:
            self.n_reads += 1
        return self.pixels[index]


@pytest.mark.parametrize("num_workers", [0, 4])
def test_each_chunk_is_decoded_once(num_workers):
    source = Counted(picture(512, 640))
    array = da.from_array(source, chunks=(3, 64, 64), meta=np.empty((0, 0, 0), np.uint8))
    source.n_reads = 0
    xy = cells_in(512, 640, 1500)
    reader = CropReader(cell_image(array, xy), crop_px=48)
    all_crops(reader, num_workers=num_workers)
    assert source.n_reads == 8 * 10


def test_a_small_cache_decodes_little_more_than_once():
    source = Counted(picture(1024, 1024))
    array = da.from_array(source, chunks=(3, 64, 64), meta=np.empty((0, 0, 0), np.uint8))
    reader = CropReader(cell_image(array, cells_in(1024, 1024, 6000)), crop_px=48, cache_bytes=48 * 3 * 64 * 64)
    source.n_reads = 0
    for _ in reader.batches(reader.order(), num_workers=0):
        pass
    assert source.n_reads < 1.6 * 256  # 48 tiles kept, of 256


def test_cache_keeps_to_its_size_and_to_the_newest():
    cache = TileCache(n_bytes=3 * 12)
    made = []

    def get(key):
        return cache.get(key, lambda: made.append(key) or np.zeros((3, 2, 2), np.uint8))

    for key in "abcabcda":  # "a" is used again before "d" comes
        get(key)
    assert made == ["a", "b", "c", "d"] + ["a"]
    assert sum(len(tile.result().tobytes()) for tile in cache._tiles.values()) <= 36


def test_threads_that_want_the_same_tile_wait_for_one():
    cache, made = TileCache(), []

    def make():
        time.sleep(0.05)
        made.append(1)
        return np.zeros((3, 2, 2), np.uint8)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: cache.get("a", make), range(8)))
    assert len(made) == 1


def test_a_tile_that_failed_is_tried_again():
    cache = TileCache()

    def fail():
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        cache.get("a", fail)
    assert cache.get("a", lambda: np.ones((3, 1, 1), np.uint8)).sum() == 3


@pytest.mark.parametrize("n_threads", [0, 3])
def test_read_ahead_passes_errors_on_and_stops(n_threads):
    def make(item):
        if item == 5:
            raise OSError("unreadable")
        return item

    before, results = set(threading.enumerate()), []
    with pytest.raises(OSError, match="unreadable"):
        results.extend(read_ahead(make, range(10_000), n_threads))
    assert set(threading.enumerate()) <= before
    assert list(read_ahead(make, range(5), n_threads)) == list(range(5))


def test_read_ahead_does_not_run_away():
    made = []
    results = read_ahead(lambda item: made.append(item) or item, range(1000), 2)
    next(results)
    time.sleep(0.05)
    assert len(made) <= 5
    results.close()


# files ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Call to deprecated class Scaler:DeprecationWarning")  # spatialdata
def test_tiled_tiff_and_ome_zarr(tmp_path):
    import spatialdata
    import tifffile
    from spatialdata.models import Image2DModel

    from nichekd.io._read_image import read_image

    pixels, xy = picture(300, 420), cells_in(300, 420, 40)
    tifffile.imwrite(tmp_path / "he.tif", pixels.transpose(1, 2, 0), tile=(64, 64), compression="zlib")
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), chunks=(3, 100, 100))
    spatialdata.SpatialData(images={"he": image}).write(tmp_path / "he.zarr")
    stored = spatialdata.read_zarr(tmp_path / "he.zarr")["he"].data
    for lazy in (read_image(tmp_path / "he.tif")[0], stored):
        reader = CropReader(cell_image(lazy, xy), crop_px=64)
        np.testing.assert_array_equal(all_crops(reader), naive(pixels, xy, 64))


@pytest.mark.real_data
def test_a_real_slide_file(shared_data):
    from nichekd.io._read_image import read_image

    lazy, _ = read_image(shared_data / "slides" / "CMU-1-Small-Region.svs")
    pixels = lazy.compute(scheduler="threads")
    xy = cells_in(*lazy.shape[1:], 60)
    reader = CropReader(cell_image(lazy, xy))
    assert len(ImageTiles(lazy).y_edges) > 3
    np.testing.assert_array_equal(all_crops(reader), naive(pixels, xy, 224))
