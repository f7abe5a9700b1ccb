"""A disk that fills up while features are written: the error says what is safe, and the same call goes on from there."""

import errno

import numpy as np
import pytest

import nichekd as nk
from nichekd.pp import _feature_store

N = 1100  # a segment, and some


@pytest.fixture(scope="module")
def sdata():
    return nk.datasets.simulate(N, K=2, seed=0)


@pytest.fixture(scope="module")
def features(sdata):
    made = nk.pp.histology_features(sdata, encoder="color", crop_px=16, copy=True)
    return made["table"].obsm["X_color"]


def encode(sdata, store):
    made = nk.pp.histology_features(sdata, encoder="color", crop_px=16, store=store, copy=True)
    return np.asarray(made["table"].obsm["X_color"])


@pytest.mark.parametrize(
    ("fails", "calls_before", "safe"),
    [
        ("zarr.create_array", 0, "No cell is yet in"),
        ("zarr.create_array", 1, "No cell is yet in"),
        ("nichekd.pp._feature_store.write_manifest", 0, "No cell is yet in"),
        ("nichekd.pp._feature_store.write_segment", 0, "No cell is yet in"),
        ("nichekd.pp._feature_store.write_segment", 1, "The first 1,024 cells are safe in"),
        ("nichekd.pp._feature_store.write_manifest", 2, "The first 1,024 cells are safe in"),
    ],
)
def test_goes_on_once_there_is_space(sdata, features, tmp_path, monkeypatch, fails, calls_before, safe):
    module, name = fails.rsplit(".", 1)
    write = getattr(__import__(module, fromlist=[name]), name)
    calls = []

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) > calls_before:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*args, **kwargs)

    monkeypatch.setattr(fails, full)
    with pytest.raises(OSError, match="No space left on device") as raised:
        encode(sdata, tmp_path / "f.zarr")
    assert raised.value.errno == errno.ENOSPC
    (note,) = raised.value.__notes__
    assert note == f"{safe} {tmp_path / 'f.zarr'}; the same call goes on from there."
    monkeypatch.undo()
    assert _feature_store.FeatureStore(tmp_path / "f.zarr").n_done == (1024 if "1,024" in safe else 0)
    np.testing.assert_array_equal(encode(sdata, tmp_path / "f.zarr"), features)
