import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from nichekd.models import NeighborhoodBatch, NeighborhoodConfig, NeighborhoodIndex, NolanNetwork, NolanSettings
from nichekd.models._nolan import MeanTeacher, NolanLoss, ViewMaker, cosine, sinkhorn

RADIUS = 10.0


@pytest.fixture(scope="module")
def index():
    xy = np.random.default_rng(0).uniform(0, 60, (300, 2))
    graph = cKDTree(xy).sparse_distance_matrix(cKDTree(xy), RADIUS).tocsr()
    graph.setdiag(0)
    graph.eliminate_zeros()
    return NeighborhoodIndex.from_graph(graph, xy, RADIUS)


@pytest.fixture
def batch(index):
    """Every neighborhood; a cell's feature is its number + 1, so that no feature is 0 by itself."""
    return index.batch(np.arange(300), np.arange(1, 301, dtype=np.float32)[:, None].repeat(8, axis=1))


def views(seed: int = 0, **changes) -> ViewMaker:
    return ViewMaker(NolanSettings(**changes), torch.Generator().manual_seed(seed))


def places(view: NeighborhoodBatch, index: NeighborhoodIndex, row: int) -> np.ndarray:
    """µm, of the cells that a view kept; cells are told by their token."""
    return index.xy[view.token[row, view.mask[row]].numpy()]


@pytest.mark.parametrize("seed", [0, 1])
def test_local_view_is_a_smaller_disc_around_a_cell_near_the_centre(seed, batch, index):
    view = views(seed, local_radius=0.75, local_shift=0.25, cell_dropout=(0, 0)).local_view(batch)
    moved = 0
    for row in range(300):
        inside = places(view, index, row)
        centre = inside[0]
        assert np.linalg.norm(centre - index.xy[row]) <= 0.25 * RADIUS + 1e-4
        assert np.linalg.norm(inside - centre, axis=1).max() <= 0.75 * RADIUS + 1e-4
        around = np.linalg.norm(index.xy - centre, axis=1) <= 0.75 * RADIUS - 1e-4
        around &= np.linalg.norm(index.xy - index.xy[row], axis=1) <= RADIUS
        assert len(inside) >= around.sum()  # and nobody of that disc is missing
        moved += not np.array_equal(centre, index.xy[row])
    assert moved > 30


def test_local_view_starts_at_its_own_centre(batch):
    view = views().local_view(batch)
    assert not view.offset[:, 0].any()
    assert view.mask[:, 0].all()


@pytest.mark.parametrize("kind", ["global_view", "local_view"])
def test_views_keep_distances(kind, batch, index):
    view = getattr(views(cell_dropout=(0, 0)), kind)(batch)
    for row in range(0, 300, 7):
        inside = places(view, index, row)
        expected = np.linalg.norm(inside - inside[0], axis=1) / RADIUS
        assert view.offset[row, view.mask[row]].norm(dim=1).numpy() == pytest.approx(expected, abs=1e-5)


def test_views_turn_each_neighborhood_its_own_way(batch):
    view = views(cell_dropout=(0, 0)).global_view(batch)
    before, after = batch.offset[:, 1], view.offset[:, 1]
    turn = torch.atan2(after[:, 1], after[:, 0]) - torch.atan2(before[:, 1], before[:, 0])
    assert turn.remainder(2 * math.pi).std() > 1


def test_dropout_takes_its_share_of_cells_but_not_the_centre(batch):
    view = views(cell_dropout=(0.3, 0.3)).global_view(batch)
    assert view.mask[:, 0].all()
    assert not (view.mask & ~batch.mask).any()
    kept = view.mask[:, 1:].sum() / batch.mask[:, 1:].sum()
    assert kept.item() == pytest.approx(0.7, abs=0.05)


def test_dropped_features_are_dropped_in_all_cells_and_the_rest_make_up_for_them(batch):
    view = views(seed=3, feature_dropout=0.25).global_view(batch)
    alive = view.features.ne(0)
    assert 0 < alive.sum() < alive.numel()
    assert (alive == alive[0]).all()
    torch.testing.assert_close(view.features[:, alive[0]], batch.features[:, alive[0]] / 0.75)


def test_no_augmentation_leaves_the_neighborhood(batch):
    view = views(cell_dropout=(0, 0), feature_dropout=0).global_view(batch)
    assert view.features.equal(batch.features)
    assert view.token.equal(batch.token)
    assert view.mask.equal(batch.mask)


def test_loss_is_the_cross_entropy_of_pairs_of_different_views():
    rng = np.random.default_rng(0)
    student, teacher = rng.uniform(-1, 1, (4, 5, 3)), rng.uniform(-1, 1, (2, 5, 3))  # 4 and 2 views, 5 cells, K = 3

    def softmax(a):
        return np.exp(a) / np.exp(a).sum(1, keepdims=True)

    pairs = [(i, j) for i in range(2) for j in range(4) if i != j]
    assert len(pairs) == 6
    expected = np.mean(
        [-(softmax(teacher[i] / 0.04) * np.log(softmax(student[j] / 0.1))).sum(1).mean() for i, j in pairs]
    )
    loss = NolanLoss(NolanSettings(), 3)
    found = loss([torch.from_numpy(v) for v in student], [torch.from_numpy(v) for v in teacher])
    assert found.item() == pytest.approx(expected)
    assert loss.center.numpy() == pytest.approx(0.1 * teacher.mean((0, 1)))


def test_center_is_a_running_mean_that_makes_common_prototypes_rarer():
    loss = NolanLoss(NolanSettings(center_momentum=0.5), 2)
    logits = torch.tensor([[0.5, 0.1], [0.3, 0.1]])
    loss.update_center(logits)
    assert loss.center.tolist() == pytest.approx([0.2, 0.05])
    loss.update_center(logits)
    assert loss.center.tolist() == pytest.approx([0.3, 0.075])
    assert loss.target(torch.tensor([[0.5, 0.3]])).argmax() == 1
    expected = np.exp(np.array([0.2, 0.225]) / 0.04)
    assert loss.target(torch.tensor([[0.5, 0.3]])).numpy() == pytest.approx((expected / expected.sum())[None], rel=1e-4)


def test_teacher_gives_no_gradient():
    loss = NolanLoss(NolanSettings(), 3)
    teacher = [torch.rand(4, 3, requires_grad=True) for _ in range(2)]
    student = [torch.rand(4, 3, requires_grad=True) for _ in range(3)]
    loss(student, teacher).backward()
    assert all(view.grad is None for view in teacher)
    assert all(view.grad is not None for view in student)


@given(st.integers(2, 6), st.integers(0, 2**31 - 1))
def test_sinkhorn_is_balanced_both_ways(n_prototypes, seed):
    scores = torch.randn(12 * n_prototypes, n_prototypes, generator=torch.Generator().manual_seed(seed))
    q = sinkhorn(scores, n_iterations=50)
    assert q.sum(1).numpy() == pytest.approx(1)
    assert q.sum(0).numpy() == pytest.approx(12, rel=1e-3)


def test_sinkhorn_revives_a_prototype_nobody_is_near():
    # cosines 1 and -1 at temperature 0.04: a column of e^-50
    logits = torch.tensor([1.0, -1.0]).repeat(10, 1) + 0.01 * torch.rand(10, 2, generator=torch.Generator())
    q = NolanLoss(NolanSettings(balance="sinkhorn"), 2).target(logits)
    assert q.sum(0).numpy() == pytest.approx([5, 5], abs=0.5)


@pytest.mark.parametrize("preset", ["small", "pooling"])
def test_logits_are_cosines(preset, batch):
    network = NolanNetwork(NeighborhoodConfig.preset(preset, 8), 5)
    with torch.no_grad():
        logits = network(batch)
        unit = network.head.prototypes / network.head.prototypes.norm(dim=1, keepdim=True)
        hidden = network.head.mlp(network.backbone(batch))
    assert logits.shape == (300, 5)
    assert logits.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(logits, hidden / hidden.norm(dim=1, keepdim=True) @ unit.T)


def test_mean_teacher_moves_by_the_momentum():
    network = NolanNetwork(NeighborhoodConfig.preset("pooling", 4), 3)
    teacher = MeanTeacher(network)
    before = deepcopy(network.state_dict())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    teacher.update(network, 0.9)
    for name, value in teacher.network.state_dict().items():
        torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * network.state_dict()[name])
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


def test_cosine_goes_from_start_to_end():
    assert [cosine(0.996, 1, p) for p in (0, 0.5, 1)] == pytest.approx([0.996, 0.998, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"balance": "koleo"}, r"balance='koleo'; choose from \['centering', 'sinkhorn'\]"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"n_steps": -1}, "n_steps=-1"),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        NolanSettings(**changes)
