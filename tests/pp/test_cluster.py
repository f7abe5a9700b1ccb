from __future__ import annotations

import os
import signal
import sys
import time
from threading import Thread
from types import SimpleNamespace

import anndata as ad
import cloudpickle
import dask.array as da
import numpy as np
import pytest
import torch
from distributed import Client, KilledWorker, LocalCluster
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import nichekd as nk
from nichekd.pp import _cluster, _cluster_work
from nichekd.pp._feature_store import FeatureStore
from nichekd.pp._store_segments import by_segment, missing_segments, with_done

N = 3500  # four segments, the last a part of one


class Slow(nn.Conv2d):
    """A feature map that takes its time."""

    pause = 0.0

    def forward_features(self, x):
        time.sleep(self.pause)
        return super().forward(x)

    def forward_head(self, x):
        return x.amax(dim=(2, 3))

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(nk.settings, "progress", False)
    monkeypatch.setattr(nk.settings, "device", "cpu")


@pytest.fixture(scope="module")
def client():
    """Two workers in this process."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


def encoder(pause=0.0):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Slow(3, 8, 5)
    module.pause = pause
    return nk.models.Encoder("slow", module)


@pytest.fixture(scope="module")
def section():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 400, 400), dtype=np.uint8)
    adata = ad.AnnData(np.ones((N, 1), np.float32), obsm={"spatial": rng.uniform(0, 200, (N, 2))})
    return nk.io.paired(adata, da.from_array(pixels, chunks=(3, 128, 128)), mpp=0.5)


RUN = {"crop_px": 16, "batch_size": 48}


@pytest.fixture(scope="module")
def alone(section, tmp_path_factory):
    """Stores that one process made, by mode."""
    folder = tmp_path_factory.mktemp("alone")
    for mode in ("crop", "dense"):
        nk.pp.histology_features(section, encoder=encoder(), mode=mode, store=folder / mode, device="cpu", **RUN)
    return folder


def contents(store):
    """All files, by name."""
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def same_store(one, other):
    ours, theirs = contents(one), contents(other)
    assert sorted(ours) == sorted(theirs)
    return all(ours[name] == theirs[name] for name in ours)


@pytest.mark.parametrize("mode", ["crop", "dense"])
def test_the_store_is_that_of_one_process(section, alone, client, tmp_path, mode):
    sdata = nk.pp.histology_features(
        section, encoder=encoder(), mode=mode, store=tmp_path / "f", client=client, copy=True, **RUN
    )
    assert same_store(tmp_path / "f", alone / mode)
    key = {"crop": "X_slow", "dense": "X_slow_dense"}[mode]
    features = sdata["table"].obsm[key]
    assert isinstance(features, da.Array)
    assert features.compute().any(axis=1).all()
    assert sdata["table"].uns["nichekd"]["features"][key]["precision"] == "32"


def test_what_is_done_is_not_done_again(section, alone, client, tmp_path, monkeypatch):
    write, written = _cluster_work.write_segment, []

    def breaks(path, segment, features):
        return write(path, segment, features) if segment != 1 else 1 / 0

    def noted(path, segment, features):
        written.append(segment)
        write(path, segment, features)

    monkeypatch.setattr(_cluster_work, "write_segment", breaks)
    run = {"encoder": encoder(), "store": tmp_path / "f", "client": client} | RUN
    with pytest.raises(ZeroDivisionError):
        nk.pp.histology_features(section, copy=True, **run)
    done = set(range(4)) - set(FeatureStore(tmp_path / "f").missing)
    assert 1 not in done
    monkeypatch.setattr(_cluster_work, "write_segment", noted)
    nk.pp.histology_features(section, copy=True, **run)
    # what ran beside the broken one may end meanwhile, and writes the same bits
    assert set(written) == set(range(4)) - done
    assert same_store(tmp_path / "f", alone / "crop")


def test_one_process_goes_on_where_a_cluster_left_a_gap(section, alone, tmp_path):
    run = {"encoder": encoder(), "store": tmp_path / "f"} | RUN
    store = FeatureStore(tmp_path / "f")
    whole = FeatureStore(alone / "crop")
    made_of = whole.manifest["made_of"]
    with store.writing(made_of, order=whole.order, n_features=8, about=whole.manifest["about"]):
        store.note_done([0, 2])  # what is in them is nobody's, so that it has to be overwritten, or seen
    assert (store.n_done, store.missing) == (1024, [1, 3])
    with store.writing(made_of, order=whole.order, n_features=8, about={}):
        store.note_done([])
    (tmp_path / "f" / "features" / "c" / "0").mkdir(parents=True)
    (tmp_path / "f" / "features" / "c" / "0" / "0").write_bytes((alone / "crop/features/c/0/0").read_bytes())
    nk.pp.histology_features(section, copy=True, **run)
    assert same_store(tmp_path / "f", alone / "crop")


def test_all_workers_lost_time_and_again(section, client, tmp_path, monkeypatch):
    """What they were sent is gone with them; that of others is not tried for ever."""
    monkeypatch.setattr(_cluster, "LOOK_UP", 0.01)
    scatter, sent = Client.scatter, []

    def lost(self, *args, **options):
        sent.append(scatter(self, *args, **options))
        self.cancel(sent[-1])
        return sent[-1]

    monkeypatch.setattr(Client, "scatter", lost)
    with pytest.raises(RuntimeError, match="lost 3 times without a block done; 0 cells are safe"):
        nk.pp.histology_features(section, encoder=encoder(), store=tmp_path / "f", client=client, copy=True, **RUN)
    assert len(sent) == 3


class Bad(Slow):
    def forward(self, x):
        return super().forward(x) * torch.nan


def test_errors_of_workers_are_those_of_one_process(section, client, tmp_path):
    with pytest.raises(ValueError, match="NaN or infinite features for 48 of 48 crops"):
        nk.pp.histology_features(section, encoder=Bad(3, 8, 5), store=tmp_path / "f", client=client, copy=True, **RUN)
    assert FeatureStore(tmp_path / "f").n_done == 0


def test_an_image_that_workers_do_not_see(section, client, tmp_path):
    import imageio.v3 as iio

    path = tmp_path / "he.tif"
    iio.imwrite(path, np.full((400, 400, 3), 200, np.uint8))
    sdata = nk.io.paired(section["table"][:50].copy(), path, mpp=0.5)
    # opened here, and gone before a worker looks: as if it lay on a disk of this machine
    scatter = Client.scatter

    def gone(self, *args, **options):
        path.rename(tmp_path / "elsewhere.tif")
        return scatter(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "scatter", gone)
        with pytest.raises(FileNotFoundError, match="he.tif") as raised:
            nk.pp.histology_features(sdata, encoder="color", store=tmp_path / "f", client=client, crop_px=16)
    assert "Keep the image where all workers see it" in raised.value.__notes__[0]


def test_a_store_that_workers_do_not_see(section, client, tmp_path, monkeypatch):
    monkeypatch.setattr("nichekd.pp._cluster_work.FeatureStore", lambda path: FeatureStore(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match=r"finds no feature store .*on a disk that all workers share"):
        nk.pp.histology_features(section, encoder=encoder(), store=tmp_path / "f", client=client, copy=True, **RUN)


def test_workers_of_another_version(section, client, tmp_path, monkeypatch):
    monkeypatch.setattr("nichekd.pp._cluster_work.version", lambda package: "0.0.1")
    with pytest.raises(RuntimeError, match=r"workers have nichekd \['0.0.1'\]"):
        nk.pp.histology_features(section, encoder=encoder(), store=tmp_path / "f", client=client, copy=True, **RUN)


def test_workers_of_another_version_go_on_with_nothing(section, client, tmp_path, monkeypatch):
    """Nor where the store, begun before, says in what precision."""
    run = {"encoder": Bad(3, 8, 5), "store": tmp_path / "f", "client": client} | RUN
    with pytest.raises(ValueError, match="NaN or infinite"):
        nk.pp.histology_features(section, copy=True, **run)
    monkeypatch.setattr("nichekd.pp._cluster_work.version", lambda package: "0.0.1")
    with pytest.raises(RuntimeError, match=r"workers have nichekd \['0.0.1'\]"):
        nk.pp.histology_features(section, copy=True, **run)


def test_a_block_that_takes_down_every_worker(section, client, tmp_path, monkeypatch):
    def lost(*args):
        raise KilledWorker("encode_block", SimpleNamespace(address="tcp://here"), 3)

    monkeypatch.setattr(_cluster, "encode_block", lost)
    with pytest.raises(RuntimeError, match="One block of cells took down 4 workers.*memory limit"):
        nk.pp.histology_features(section, encoder=encoder(), store=tmp_path / "f", client=client, copy=True, **RUN)


def test_workers_of_other_hardware(section, client, tmp_path, monkeypatch):
    answers = {"its_version": {"a": nk.__version__}, "meant_by": {"a": "32", "b": "bf16"}}
    monkeypatch.setattr(Client, "run", lambda self, function, *args: answers[function.__name__])
    with pytest.raises(ValueError, match=r"precision='auto' means \['32', 'bf16'\] on different workers"):
        nk.pp.histology_features(section, encoder=encoder(), store=tmp_path / "f", client=client, copy=True, **RUN)


def test_what_is_no_client(section, client, tmp_path):
    with pytest.raises(TypeError, match="client is a LocalCluster; it has to be a dask.distributed.Client"):
        nk.pp.histology_features(section, encoder="color", store=tmp_path / "f", client=client.cluster)
    with pytest.raises(ValueError, match="client= needs store="):
        nk.pp.histology_features(section, encoder="color", client=client)
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setattr(Client, "asynchronous", True)
        with pytest.raises(TypeError, match="client is asynchronous"):
            nk.pp.histology_features(section, encoder="color", store=tmp_path / "f", client=client)


# the manifest's bookkeeping ----------------------------------------------------------------------------------------


@given(n=st.integers(1, 8000), data=st.data())
def test_segments_in_any_order_are_all_done_in_the_end(n, data):
    n_segments = -(-n // 1024)
    order = data.draw(st.permutations(range(n_segments)))
    manifest, done = {"n": n, "n_done": 0, "made_of": {}}, set()
    for segment in order:
        assert missing_segments(manifest) == sorted(set(range(n_segments)) - done)
        manifest = with_done(manifest, [segment])
        done.add(segment)
        gap = min(set(range(n_segments + 1)) - done)
        assert manifest["n_done"] == min(gap * 1024, n)
    assert manifest == {"n": n, "n_done": n, "made_of": {}}  # as one process leaves it


@given(lengths=st.lists(st.integers(0, 1500), max_size=6))
def test_batches_become_segments(lengths):
    rows = np.arange(sum(lengths), dtype=np.float16)[:, None]
    batches = np.split(rows, np.cumsum(lengths)[:-1]) if lengths else []
    segments = list(by_segment(batches))
    assert [len(s) for s in segments] == [len(rows[i : i + 1024]) for i in range(0, len(rows), 1024)]
    np.testing.assert_array_equal(np.concatenate([rows[:0], *segments]), rows)


# processes, killed -------------------------------------------------------------------------------------------------


@pytest.fixture
def processes():
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers don't have the tests
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def kill_when_begun(store, pids):
    """Wait for the first segment, then SIGKILL these processes."""
    while not store.path.is_dir() or store.manifest is None or len(store.missing) == 4:
        time.sleep(0.01)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("n_killed", [1, 2])
def test_what_a_killed_worker_was_at_is_done_by_another(section, alone, processes, tmp_path, n_killed):
    pids = list(processes.run(os.getpid).values())
    store = FeatureStore(tmp_path / "f")
    killer = Thread(target=kill_when_begun, args=(store, pids[:n_killed]), daemon=True)
    killer.start()
    nk.pp.histology_features(section, encoder=encoder(pause=0.05), store=store.path, client=processes, copy=True, **RUN)
    assert not killer.is_alive()
    assert set(processes.run(os.getpid).values()) != set(pids)
    assert same_store(store.path, alone / "crop")
