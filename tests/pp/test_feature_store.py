from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from nichekd.pp import _feature_store
from nichekd.pp._feature_store import FeatureStore, cells_hash

MADE_OF = {"image_fingerprint": "i1", "fingerprint": "e1", "cells": "c1", "crop_px": 224, "precision": "32"}
ABOUT = {"encoder": "color"}
N, F = 2500, 6


@pytest.fixture
def order():
    return np.random.default_rng(0).permutation(N)


@pytest.fixture
def features():
    """In the order of the table."""
    return np.random.default_rng(1).normal(size=(N, F)).astype(np.float16)


def fill(store, order, features, *, stop=None, batch=100, made_of=MADE_OF):
    """Write as a run does; ``stop`` breaks off before that cell."""
    with store.writing(made_of, order=order, n_features=F, about=ABOUT):
        for start in range(store.n_done, N, batch):
            if stop is not None and start >= stop:
                raise KeyboardInterrupt
            store.append(features[store.order[start : start + batch]])


def test_what_is_written_is_read_in_the_tables_order(tmp_path, order, features):
    store = FeatureStore(tmp_path / "f.zarr")
    fill(store, order, features)
    assert store.is_complete
    lazy = store.array()
    assert lazy.dtype == np.float16
    np.testing.assert_array_equal(lazy.compute(), features)
    rows = np.array([2400, 3, 3, 77])
    np.testing.assert_array_equal(store.take(rows), features[rows])
    np.testing.assert_array_equal(lazy[rows].compute(), features[rows])
    np.testing.assert_array_equal(lazy[5:9, 2].compute(), features[5:9, 2])


def test_a_lock_that_cannot_be_removed_does_no_harm(tmp_path, order, features, monkeypatch):
    """Windows refuses while it is held."""
    unlink = Path.unlink

    def refuses(path, missing_ok=False):
        if path.name == _feature_store.LOCK:
            raise PermissionError(13, "The process cannot access the file", str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuses)
    store = FeatureStore(tmp_path / "f.zarr")
    fill(store, order, features)
    assert store.is_complete
    np.testing.assert_array_equal(store.array().compute(), features)


def test_a_chunk_of_the_lazy_array_does_not_read_the_rest(tmp_path, order, features, monkeypatch):
    monkeypatch.setattr(_feature_store, "LAZY_ROWS", 300)
    store = FeatureStore(tmp_path / "f.zarr")
    fill(store, order, features)
    lazy = store.array()
    assert lazy.chunks[0] == (300,) * 8 + (100,)
    np.testing.assert_array_equal(lazy.compute(), features)


def test_the_lazy_array_travels_to_other_processes(tmp_path, order, features):
    store = FeatureStore(tmp_path / "f.zarr")
    fill(store, order, features)
    lazy = store.array()
    lazy[:3].compute()  # the look-up table is read, and must not travel
    sent = pickle.dumps(lazy)
    assert len(sent) < 10_000
    np.testing.assert_array_equal(pickle.loads(sent).compute(), features)  # noqa: S301
    assert lazy.name == FeatureStore(tmp_path / "f.zarr").array().name


def test_it_is_a_plain_zarr_group_with_a_manifest(tmp_path, order, features):
    fill(FeatureStore(tmp_path / "f.zarr"), order, features)
    group = zarr.open_group(tmp_path / "f.zarr", mode="r")
    assert group["features"].dtype == np.float16
    np.testing.assert_array_equal(group["features"][:], features[order])
    np.testing.assert_array_equal(group["cells"][:], order)
    manifest = group.attrs["nichekd"]
    assert manifest["made_of"] == MADE_OF
    assert (manifest["n"], manifest["n_done"], manifest["order"]) == (N, N, "hilbert")
    assert sorted(group.keys()) == ["cells", "features"]  # nothing strange beside them


def test_commits_every_1024_cells(tmp_path, order, features):
    store = FeatureStore(tmp_path / "f.zarr")
    done = []
    with store.writing(MADE_OF, order=order, n_features=F, about=ABOUT):
        for start in range(0, N, 128):
            store.append(features[order[start : start + 128]])
            done.append(store.n_done)
    assert done[:8] == [0] * 7 + [1024]
    assert done[-1] == N
    assert max(np.diff(done)) <= 1024


@pytest.mark.parametrize("stop", [0, 500, 1100, 2400])
def test_goes_on_from_the_last_commit(tmp_path, order, features, stop):
    store = FeatureStore(tmp_path / "f.zarr")
    with pytest.raises(KeyboardInterrupt):
        fill(store, order, features, stop=stop)
    again = FeatureStore(tmp_path / "f.zarr")
    assert not again.is_complete
    assert again.n_done == stop // 1024 * 1024
    fill(again, np.arange(N), features, batch=64)  # its own order is ignored for the store's
    np.testing.assert_array_equal(again.array().compute(), features)


@pytest.mark.parametrize(
    ("field", "value"),
    [("image_fingerprint", "i2"), ("fingerprint", "e2"), ("cells", "c2"), ("crop_px", 112), ("precision", "bf16")],
)
@pytest.mark.parametrize("stop", [None, 1200])
def test_a_store_of_something_else_is_refused(tmp_path, order, features, field, value, stop):
    store = FeatureStore(tmp_path / "f.zarr")
    if stop is None:
        fill(store, order, features)
    else:
        with pytest.raises(KeyboardInterrupt):
            fill(store, order, features, stop=stop)
    before = store.manifest
    with pytest.raises(ValueError, match=f"{field} is {MADE_OF[field]!r} in the store and {value!r} now"):
        fill(store, order, features, made_of=MADE_OF | {field: value})
    assert store.manifest == before


def test_a_folder_of_other_things_is_left_alone(tmp_path, order, features):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match=r"no feature store \(found \['thesis.txt'\]"):
        fill(FeatureStore(tmp_path), order, features)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="no feature store"):
        fill(FeatureStore(tmp_path / "thesis.txt"), order, features)


def test_another_zarr_is_left_alone(tmp_path, order, features):
    zarr.open_group(tmp_path / "image.zarr", mode="w")
    with pytest.raises(ValueError, match="a zarr, but no feature store"):
        fill(FeatureStore(tmp_path / "image.zarr"), order, features)


def test_a_store_of_a_later_version(tmp_path, order, features):
    store = FeatureStore(tmp_path / "f.zarr")
    fill(store, order, features)
    root = tmp_path / "f.zarr" / "zarr.json"
    values = json.loads(root.read_text())
    values["attributes"]["nichekd"]["format"] = 99
    root.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="format 99.*Upgrade"):
        _ = store.manifest


@pytest.mark.parametrize(("lost", "says"), [("features/c/1", "1 of 3 files of its features"), ("features", "damaged: "),
                                            ("cells/c/0", "1 of 1 files of its cells")])  # fmt: skip
def test_lost_files_are_not_read_as_zeros(tmp_path, order, features, lost, says):
    store = FeatureStore(tmp_path / "f.zarr")
    fill(store, order, features)
    path = store.path / lost
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(ValueError, match=f"{says}.*Delete the folder"):
        FeatureStore(store.path).array()


def test_two_writers(tmp_path, order, features):
    store, other = (FeatureStore(tmp_path / "f.zarr") for _ in range(2))
    with store.writing(MADE_OF, order=order, n_features=F, about=ABOUT):
        with pytest.raises(RuntimeError, match="Another process is writing"):
            fill(other, order, features)
        store.append(features[order[:1024]])
    fill(other, order, features)
    np.testing.assert_array_equal(store.array().compute(), features)


HOLD = """
import sys, time, numpy as np
from nichekd.pp._feature_store import FeatureStore
store = FeatureStore(sys.argv[1])
order = np.random.default_rng(0).permutation(2500)
features = np.random.default_rng(1).normal(size=(2500, 6)).astype(np.float16)
made_of = {made_of}
with store.writing(made_of, order=order, n_features=6, about={{}}):
    store.append(features[order[:1024]])
    store.append(features[order[1024:1100]])
    print("holding", flush=True)
    time.sleep(60)
"""


def test_another_process_is_kept_out_until_it_is_killed(tmp_path, order, features):
    code = HOLD.format(made_of=MADE_OF)
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "f.zarr"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "holding\n"
        store = FeatureStore(tmp_path / "f.zarr")
        with pytest.raises(RuntimeError, match="Another process is writing"):
            fill(store, order, features)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert store.n_done == 1024
    fill(store, order, features)  # the dead process' lock went with it
    np.testing.assert_array_equal(store.array().compute(), features)


def test_killed_before_the_first_manifest(tmp_path, order, features):
    store = FeatureStore(tmp_path / "f.zarr")
    fill(store, order, features)
    (tmp_path / "f.zarr" / "zarr.json").unlink()  # arrays without a manifest
    assert store.manifest is None
    fill(store, order, features)
    np.testing.assert_array_equal(store.array().compute(), features)


def test_a_full_disk_keeps_what_was_committed(tmp_path, order, features, monkeypatch):
    store = FeatureStore(tmp_path / "f.zarr")
    write, calls = _feature_store.write_manifest, []

    def full(path, manifest):
        calls.append(manifest)
        if len(calls) == 3:  # the second commit
            raise OSError(28, "No space left on device")
        write(path, manifest)

    monkeypatch.setattr(_feature_store, "write_manifest", full)
    with pytest.raises(OSError, match="No space left") as raised:
        fill(store, order, features)
    assert "first 1,024 cells are safe" in raised.value.__notes__[0]
    fill(store, order, features)
    np.testing.assert_array_equal(store.array().compute(), features)


def test_cells_hash_knows_order_and_place():
    centre = np.array([[1, 2], [3, 4]])
    assert cells_hash(centre) == cells_hash(centre.copy())
    assert len({cells_hash(c) for c in (centre, centre[::-1], centre + 1, centre[:1])}) == 4
