"""The networks against a plain computation: token by token, nothing padded, every row of every block."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from nichekd.models import (
    NeighborhoodBatch,
    NeighborhoodConfig,
    NeighborhoodIndex,
    NeighborhoodPooling,
    NeighborhoodTransformer,
)
from nichekd.models._neighborhood_transformer import neighborhood_network
from nichekd.models._positional import FrequencyEncoding

ARCHITECTURES = ["transformer", "pooling"]
RADIUS = 12.0


@pytest.fixture(scope="module")
def index():
    """60 cells on 50 × 50 µm, 0 to 20 neighbors each: the last one is alone."""
    xy = np.random.default_rng(0).uniform(0, 50, (60, 2))
    xy[-1] = 500
    graph = cKDTree(xy).sparse_distance_matrix(cKDTree(xy), RADIUS).tocsr()
    graph.setdiag(0)
    graph.eliminate_zeros()
    return NeighborhoodIndex.from_graph(graph, xy, RADIUS)


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(1).normal(size=(60, 7)).astype(np.float32)


def network(architecture, **changes):
    config = NeighborhoodConfig(7, architecture, d_model=24, n_layers=3, n_heads=3, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = neighborhood_network(config)
        for parameter in made.parameters():
            if parameter.numel():
                torch.nn.init.normal_(parameter, std=0.3)  # no term is 0, as it may be after initialisation
    return made.eval()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), atol=1e-5, rtol=0)


def positions(offset: np.ndarray, n_frequencies: int = 6) -> torch.Tensor:
    """[sin, cos](2^k π Δ / r), written out."""
    columns = [wave(2**k * np.pi * offset) for k in range(n_frequencies) for wave in (np.sin, np.cos)]
    return torch.from_numpy(np.concatenate(columns, axis=-1))


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Head by head, query by query."""
    out = []
    for q, k, v in zip(query.chunk(n_heads, -1), key.chunk(n_heads, -1), value.chunk(n_heads, -1), strict=True):
        out.append(torch.stack([torch.softmax(k @ row / np.sqrt(len(row)), 0) @ v for row in q]))
    return torch.cat(out, dim=-1)


def plain_transformer(net, tokens, offset):
    x = torch.stack([net.project(t) + net.project_offset(p) for t, p in zip(tokens, positions(offset), strict=True)])
    x = torch.cat([net.cls[None], x])
    for block in net.blocks:
        h = block.norm_attention(x)
        x = x + block.out(attention(block.query(h), *block.key_value(h).chunk(2, -1), block.n_heads))
        x = x + block.mlp(block.norm_mlp(x))
    return net.norm(x[0])


def plain_pooling(net, tokens, offset):
    cells = torch.stack([net.project(t) for t in tokens])
    cells = cells + net.cell_mlp(cells)
    normed = net.norm_cell(cells)
    key, value = net.key_value(normed).chunk(2, -1)
    key = key + positions(offset) @ net.offset_key.flatten(0, 1).T  # the (L, d) tensors that the network never makes
    value = value + positions(offset) @ net.offset_value.flatten(0, 1).T
    x = cells[0] + net.out(attention(net.query(normed[:1]), key, value, net.n_heads)[0])
    for block in net.blocks:
        x = x + block(x)
    return net.norm(x)


def plain(net, index, features, cells):
    """Embeddings of ``cells``, one after the other, in double precision."""
    compute = plain_pooling if isinstance(net, NeighborhoodPooling) else plain_transformer
    rows = []
    for cell in cells:
        members = [cell, *index.indices[index.indptr[cell] : index.indptr[cell + 1]]]
        offset = (index.xy[members] - index.xy[cell]) / index.radius
        rows.append(compute(net, torch.from_numpy(features[members].astype(np.float64)), offset))
    return torch.stack(rows)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_the_plain_computation(architecture, index, features):
    net, cells = network(architecture), np.arange(60)
    expected = plain(deepcopy(net).double(), index, features, cells)
    close(net(index.batch(cells, features)), expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_equal_those_of_the_plain_computation(architecture, index, features):
    net, cells = network(architecture), np.array([3, 59, 17])
    double = deepcopy(net).double()
    net(index.batch(cells, features)).square().sum().backward()
    plain(double, index, features, cells).square().sum().backward()
    for (name, ours), theirs in zip(net.named_parameters(), double.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_company_and_padding_change_nothing(architecture, index, features):
    net = network(architecture)
    together = net(index.batch(np.arange(60), features))  # padded to the largest
    alone = torch.cat([net(index.batch(np.array([cell]), features)) for cell in range(60)])  # not padded
    close(together, alone)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_order_of_neighbors_changes_nothing(architecture, index, features):
    net, rng = network(architecture), np.random.default_rng(2)
    rows = [rng.permutation(index.indices[a:b]) for a, b in zip(index.indptr[:-1], index.indptr[1:], strict=True)]
    shuffled = replace(index, indices=np.concatenate(rows))
    cells = np.arange(60)
    close(net(shuffled.batch(cells, features)), net(index.batch(cells, features)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_padding_points_to_is_not_seen(architecture, index, features):
    net, batch = network(architecture), index.batch(np.arange(60), features)
    rubbish = NeighborhoodBatch(
        batch.features,
        torch.where(batch.mask, batch.token, 7),
        torch.where(batch.mask[..., None], batch.offset, 99.0),
        batch.mask,
    )
    close(net(rubbish), net(batch))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_positions_matter_unless_they_are_taken_away(architecture, index, features):
    batch = index.batch(np.arange(60), features)
    elsewhere = replace(batch, offset=batch.offset * 0.5)
    seeing, blind = network(architecture), network(architecture, n_frequencies=0)
    assert (seeing(batch) - seeing(elsewhere))[:-1].norm(dim=1).min() > 1e-3  # the last cell is alone
    assert blind(batch).equal(blind(elsewhere))


def test_features_are_projected_once_a_cell_and_the_last_block_has_one_query(index, features):
    net, batch, seen = network("transformer"), index.batch(np.arange(60), features), {}
    for name, part in {"project": net.project, "first": net.blocks[0].query, "last": net.blocks[-1].query}.items():
        part.register_forward_hook(lambda _, x, y, name=name: seen.update({name: tuple(y.shape[:-1])}))
    net(batch)
    n_tokens = batch.token.shape[1]
    assert seen == {"project": (60,), "first": (60, 1 + n_tokens), "last": (60, 1)}


def test_encoding_is_sines_and_cosines_of_octaves():
    offset = np.random.default_rng(3).uniform(-1, 1, (5, 9, 2))
    encode = FrequencyEncoding(6)
    assert encode.n_features == 24
    close(encode(torch.from_numpy(offset).float()), positions(offset))


def test_encoding_of_the_centre_is_zeros_and_ones():
    assert FrequencyEncoding(2)(torch.zeros(2)).tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


def test_encoding_by_hand():
    # half a radius to the right, a quarter down: π/2 and π/4, doubled once
    s = np.sqrt(0.5)
    assert FrequencyEncoding(2)(torch.tensor([0.5, 0.25])).numpy() == pytest.approx([1, s, 0, s, 0, 1, -1, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("base", ("transformer", 256, 4, 8)),
        ("small", ("transformer", 128, 2, 4)),
        ("pooling", ("pooling", 128, 1, 4)),
    ],
)
def test_presets(name, sizes):
    config = NeighborhoodConfig.preset(name, 10)
    assert (config.architecture, config.d_model, config.n_layers, config.n_heads) == sizes
    assert config.n_features == 10
    assert config.n_frequencies == 6


def test_preset_takes_changes_and_names_those_there_are():
    assert NeighborhoodConfig.preset("small", 10, n_layers=3).n_layers == 3
    with pytest.raises(ValueError, match=r"no preset 'huge'.*base.*small.*pooling"):
        NeighborhoodConfig.preset("huge", 10)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 100, "n_heads": 3}, r"d_model=100 is not a multiple of n_heads=3"),
        ({"n_heads": 0}, r"n_heads=0; it has to be at least 1"),
        ({"n_layers": 0}, r"n_layers=0; it has to be at least 1"),
        ({"architecture": "mamba"}, r"no architecture 'mamba'.*transformer.*pooling"),
    ],
)
def test_impossible_config(changes, message):
    with pytest.raises(ValueError, match=message):
        NeighborhoodConfig(10, **changes)


def test_config_round_trip():
    config = NeighborhoodConfig.preset("pooling", 10, dropout=0.1)
    assert NeighborhoodConfig(**config.to_dict()) == config


@pytest.mark.parametrize(
    ("architecture", "kind"), [("transformer", NeighborhoodTransformer), ("pooling", NeighborhoodPooling)]
)
def test_architecture_names_the_network(architecture, kind):
    assert type(network(architecture)) is kind
