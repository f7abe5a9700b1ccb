import numpy as np
import pytest
import torch
from torch import nn

import nichekd as nk
from nichekd.models import NeighborhoodConfig, NeighborhoodIndex, NolanNetwork
from nichekd.tl import _prediction
from nichekd.tl._prediction import predict_logits


@pytest.fixture
def index(section):
    radius = section.uns["nichekd"]["radius"]
    return NeighborhoodIndex.from_graph(section.obsp["spatial_connectivities"], section.obsm["spatial"], radius)


class Counter(nn.Module):
    """Says of each neighborhood its centre's first feature and its number of cells; notes its batches."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, batch):
        self.batches.append(batch)
        return torch.stack([batch.features[batch.token[:, 0], 0], batch.mask.sum(1)], dim=1)


def test_each_cell_gets_its_own_row(index):
    features = np.arange(1500, dtype=np.float32)[:, None]
    out = predict_logits(Counter(), index, features)
    assert out[:, 0].tolist() == list(range(1500))
    assert out[:, 1].tolist() == index.sizes.tolist()
    some = np.array([700, 3, 1200])
    assert predict_logits(Counter(), index, features, some)[:, 0].tolist() == some.tolist()


@pytest.mark.parametrize("preset", ["small", "pooling"])
def test_buckets_and_order_change_nothing(preset, index, section, monkeypatch):
    torch.manual_seed(0)
    network = NolanNetwork(NeighborhoodConfig.preset(preset, 8, d_model=16), 3)
    cells = np.random.default_rng(0).permutation(1500)[:200]
    features = section.obsm["X_pca"]
    with torch.no_grad():
        expected = network.eval()(index.batch(cells, features))  # one batch, as the cells come
    monkeypatch.setattr(_prediction, "BATCH", 16)
    np.testing.assert_allclose(predict_logits(network, index, features, cells), expected, atol=1e-5)


def test_padding_and_features_are_few(index, monkeypatch):
    monkeypatch.setattr(_prediction, "BATCH", 64)
    counter = Counter()
    predict_logits(counter, index, np.zeros((1500, 1)))
    n_padded = sum(batch.mask.numel() for batch in counter.batches)
    n_tokens = sum(int(batch.mask.sum()) for batch in counter.batches)
    assert n_padded < 1.3 * n_tokens
    assert sum(len(batch.features) for batch in counter.batches) < n_tokens / 5  # neighbors share their neighbors


def test_network_goes_back_to_training(index):
    network = Counter().train()
    predict_logits(network, index, np.zeros((1500, 1)))
    assert network.training


def test_another_method_of_the_network_may_read(index):
    network = Counter()

    def forward(batch):
        return network(batch.with_features(batch.features + 5))

    out = predict_logits(network, index, np.zeros((1500, 1)), np.arange(4), forward=forward)
    assert out[:, 0].tolist() == [5] * 4


def test_progress_bar_counts_cells(index, monkeypatch, capsys):
    monkeypatch.setattr(nk.settings, "progress", True)
    predict_logits(Counter(), index, np.zeros((1500, 1)), progress="predict")
    assert "predict: 100%" in capsys.readouterr().err
