from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

import nichekd as nk
from nichekd.models import NeighborhoodConfig, NeighborhoodIndex, NolanNetwork
from nichekd.tl import FitSettings
from nichekd.tl._loop import make_fabric
from nichekd.tl._ranks import launched, predict_together, share_of


@pytest.fixture
def index(section):
    radius = section.uns["nichekd"]["radius"]
    return NeighborhoodIndex.from_graph(section.obsp["spatial_connectivities"], section.obsm["spatial"], radius)


# shares of a batch -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["small", "pooling"])
@pytest.mark.parametrize("n_ranks", [2, 3])
def test_the_gradient_over_all_shares_is_that_of_the_batch(index, section, preset, n_ranks):
    cells = np.random.default_rng(0).permutation(1500)[:64]  # not a multiple of three
    batch = index.batch(cells, section.obsm["X_pca"])
    target = torch.randint(3, (64,), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    network = NolanNetwork(NeighborhoodConfig.preset(preset, 8, d_model=16, n_heads=2), 3)

    def gradients(batch, target, weight=1.0):
        network.zero_grad()
        (weight * torch.nn.functional.cross_entropy(network(batch), target)).backward()
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    whole = gradients(batch, target)
    shares = [share_of(batch, cells, rank, n_ranks) for rank in range(n_ranks)]
    assert np.concatenate([mine for _, mine, _ in shares]).tolist() == cells.tolist()
    starts = np.cumsum([0, *(len(mine) for _, mine, _ in shares)])
    parts = [
        gradients(part, target[start : start + len(mine)], weight)
        for start, (part, mine, weight) in zip(starts[:-1], shares, strict=True)
    ]
    for expected, *found in zip(whole, *parts, strict=True):
        torch.testing.assert_close(torch.stack(found).mean(0), expected, atol=1e-5, rtol=1e-4)


def test_a_share_holds_only_the_cells_that_it_needs(index, section):
    cells = np.argsort(section.obsm["spatial"][:, 0])[:200]
    batch = index.batch(cells, section.obsm["X_pca"])
    part, mine, weight = share_of(batch, cells, 1, 4)
    assert (len(part.token), weight) == (50, 1.0)
    assert set(part.token[part.mask].tolist()) == set(range(len(part.features)))
    assert len(part.features) < 0.7 * len(batch.features)
    alone = index.batch(mine, section.obsm["X_pca"])
    torch.testing.assert_close(part.features[part.token[part.mask]], alone.features[alone.token[alone.mask]])
    torch.testing.assert_close(part.offset[part.mask], alone.offset[alone.mask])


def test_one_process_has_it_all(index, section):
    cells = np.arange(5)
    batch = index.batch(cells, section.obsm["X_pca"])
    assert share_of(batch, cells, 0, 1) == (batch, cells, 1.0)


def test_fewer_cells_than_processes(index, section):
    cells = np.arange(2)
    with pytest.raises(ValueError, match="batch of 2 cells is none for 3 processes"):
        share_of(index.batch(cells, section.obsm["X_pca"]), cells, 0, 3)


def test_prediction_together_is_prediction(index, section, monkeypatch):
    """Each process predicts a region; what they gather is in the order of the cells."""
    torch.manual_seed(0)
    network = NolanNetwork(NeighborhoodConfig.preset("pooling", 8, d_model=16), 3)
    cells = np.random.default_rng(0).permutation(1500)[:300]
    fabric = make_fabric("cpu")
    alone = predict_together(fabric, network, index, section.obsm["X_pca"], cells)
    parts = {}

    def gather(fabric, rows):
        parts[fabric.global_rank] = rows
        return np.concatenate([parts.get(rank, rows) for rank in range(2)])

    monkeypatch.setattr("nichekd.tl._ranks.gathered", gather)
    for rank in range(2):  # one after the other: only the last has both halves
        ranked = SimpleNamespace(device=fabric.device, world_size=2, global_rank=rank)
        together = predict_together(ranked, network, index, section.obsm["X_pca"], cells)
    assert [len(part) for part in parts.values()] == [150, 150]
    np.testing.assert_allclose(together, alone, atol=1e-5)


# bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"devices": 0}, ValueError, "devices=0; it has to be at least 1"),
        ({"devices": 1.5}, TypeError, "devices=1.5 is no whole number"),
        ({"devices": True}, TypeError, "devices=True is no whole number"),
        ({"devices": "all"}, TypeError, "devices='all' is no whole number.*'auto' for all"),
        ({"devices": []}, ValueError, r"devices=\[\] lists no devices"),
        ({"devices": [0, 0]}, ValueError, r"devices=\[0, 0\] lists no devices, each once"),
        ({"devices": [-1]}, ValueError, r"devices=\[-1\] lists no devices"),
        ({"num_nodes": 0}, ValueError, "num_nodes=0; there is at least this machine"),
        ({"num_nodes": 1.0}, TypeError, "num_nodes=1.0 is no whole number"),
    ],
)
def test_bad_numbers_of_devices(taught_cells, options, error, match):
    with pytest.raises(error, match=match):
        nk.tl.distill(taught_cells, use_rep="X_image", device="cpu", **options)


def test_a_notebook_has_no_script_to_run_again(taught_cells, monkeypatch):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(RuntimeError, match=r"devices=2, num_nodes=1 takes 2 processes.*torchrun"):
        nk.tl.distill(taught_cells, use_rep="X_image", device="cpu", devices=2)


def test_features_and_teacher_have_to_be_there(cells, monkeypatch):
    monkeypatch.setattr("nichekd.tl._ranks.launched", lambda *where: SimpleNamespace(world_size=2))
    with pytest.raises(ValueError, match=r"2 processes train.*histology_features and nk\.tl\.nolan for itself"):
        nk.tl.distill(cells, devices=2)
    with pytest.raises(ValueError, match=r"each would run nk\.tl\.nolan for itself. Run it before"):
        nk.tl.distill(cells, use_rep="X_image", devices=2)


def test_another_number_than_that_of_the_script(monkeypatch):
    import torch.distributed as dist

    monkeypatch.setattr("nichekd.tl._ranks.new_fabric", lambda *a, **b: SimpleNamespace(
        world_size=2, launch=lambda: None,
        strategy=SimpleNamespace(cluster_environment=SimpleNamespace(creates_processes_externally=True)),
    ))  # fmt: skip
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    with pytest.raises(ValueError, match="makes 2 processes, but this script runs in 4"):
        launched("cpu", 2, 1)


# two processes -----------------------------------------------------------------------------------------------------

SCRIPT = """
import sys
import anndata, numpy as np, torch
import nichekd as nk

torch.set_num_threads(1)
nk.settings.progress = False
cells, out = sys.argv[1:]
adata = anndata.read_h5ad(cells)
fit = nk.tl.FitSettings(max_epochs=8, min_steps=0, batch_size=95, n_components=8)
common = dict(use_rep="X_image", device="cpu", devices=2)
student = nk.tl.distill(adata, fit=fit, **common)
again = adata.copy()
nk.tl.distill(again, fit=nk.tl.FitSettings(max_epochs=1, min_steps=0, n_components=4), **common)  # no third process
about = adata.uns["nichekd"]["distill"]
rank = torch.distributed.get_rank()
np.savez(f"{out}_{rank}.npz", logits=adata.obsm["student_logits"], n=about["n_processes"], **about["history"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["python", "torchrun"])
def test_two_processes_learn_what_one_does(taught_cells, tmp_path, launcher):
    for key in ("distill", "features"):
        taught_cells.uns["nichekd"].pop(key, None)
    (tmp_path / "train.py").write_text(SCRIPT)
    taught_cells.write_h5ad(tmp_path / "cells.h5ad")
    by = [] if launcher == "python" else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, "-W", "ignore", *by, tmp_path / "train.py", tmp_path / "cells.h5ad", tmp_path / "out"]
    found = subprocess.run(command, check=False, capture_output=True, text=True, timeout=900)
    assert found.returncode == 0, found.stderr[-3000:]

    fit = FitSettings(max_epochs=8, min_steps=0, batch_size=95, n_components=8)
    nk.tl.distill(taught_cells, use_rep="X_image", device="cpu", fit=fit)
    history = taught_cells.uns["nichekd"]["distill"]["history"]
    first, second = (np.load(tmp_path / f"out_{rank}.npz") for rank in range(2))
    assert first["n"] == second["n"] == 2
    np.testing.assert_array_equal(first["logits"], second["logits"])
    for name in ("train_loss", "validation_loss"):
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], history[name], rtol=1e-3)
    alone = taught_cells.obsm["student_logits"].argmax(1)
    assert adjusted_rand_score(first["logits"].argmax(1), alone) >= 0.98
