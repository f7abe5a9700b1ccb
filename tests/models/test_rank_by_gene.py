from __future__ import annotations

import numpy as np
import pytest
import torch

from nichekd.models._rank_by_gene import Branch, ProjectionHead, RankByGeneNetwork, Standardize, rank_by_gene_loss


def network(momentum: float = 0.9, queue_size: int = 0) -> RankByGeneNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return RankByGeneNetwork(Branch(6, 4), Branch(5, 4), momentum=momentum, queue_size=queue_size)


def test_head_is_a_linear_map_and_its_correction():
    head = ProjectionHead(3, 2)
    x = torch.randn(4, 3)
    wx = x @ head.linear.weight.T + head.linear.bias
    inner = torch.nn.functional.gelu(wx) @ head.hidden.weight.T + head.hidden.bias
    y = inner + wx
    expected = (y - y.mean(1, keepdim=True)) / (y.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(head(x), expected, atol=1e-6)


def test_teacher_is_the_exact_moving_average():
    net = network(momentum=0.9)
    before = [p.clone() for p in net.teacher.parameters()]
    with torch.no_grad():
        for p in net.student.parameters():
            p.add_(1.0)
    for _ in range(5):
        net.update_teacher()
    for start, taught, learned in zip(before, net.teacher.parameters(), net.student.parameters(), strict=True):
        assert torch.allclose(taught, 0.9**5 * start + (1 - 0.9**5) * learned, atol=1e-6)


def test_teacher_starts_as_the_student_head_included_and_gets_no_gradient():
    net = network()
    for taught, learned in zip(net.teacher.parameters(), net.student.parameters(), strict=True):
        assert torch.equal(taught, learned)
        assert not taught.requires_grad
    x = torch.randn(8, 6)
    s, t, _ = net(x, x, torch.randn(8, 5))
    assert torch.allclose(s, t)
    assert not t.requires_grad


def test_queue_keeps_the_latest():
    net = network(queue_size=5)
    for i in range(4):
        net.remember(torch.full((2, 4), float(i)), torch.full((2, 4), float(-i)))
    assert net.queue_genes[:, 0].tolist() == [1, 2, 2, 3, 3]
    assert net.queue_teacher[:, 0].tolist() == [-1, -2, -2, -3, -3]
    assert not any(name.startswith("queue") for name in net.state_dict())


@pytest.mark.parametrize(
    ("rank_weight", "distill_weight", "terms"),
    [(5, 1, {"contrastive", "rank", "distill"}), (0, 1, {"contrastive", "distill"}), (0, 0, {"contrastive"})],
)
def test_loss_is_the_weighted_sum_of_its_terms(rank_weight, distill_weight, terms):
    net = network()
    x, y = torch.randn(16, 6), torch.randn(16, 5)
    found = rank_by_gene_loss(
        net, net(x, x + 0.1, y), y, [torch.zeros(16, dtype=torch.long)], temperature=0.1, rank_weight=rank_weight,
        distill_weight=distill_weight, kind="hinge", n_pairs=8, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert set(found) == terms | {"loss"}
    weights = {"contrastive": 1, "rank": rank_weight, "distill": distill_weight}
    assert found["loss"].item() == pytest.approx(sum(weights[name] * found[name].item() for name in terms), rel=1e-5)


def test_constant_columns_stay_zero():
    rows = np.random.default_rng(0).normal(size=(50, 3))
    rows[:, 1] = 7.0
    scaled = Standardize(3).fit(rows.mean(0), rows.std(0))(torch.tensor(rows, dtype=torch.float32))
    assert torch.allclose(scaled.mean(0), torch.zeros(3), atol=1e-6)
    assert torch.allclose(scaled.std(0, correction=0), torch.tensor([1.0, 0.0, 1.0]), atol=1e-5)


def test_branch_starts_at_the_order_that_is_there():
    """Cosines of the projection are those of the features, as far as few components and the small correction let."""
    rng = np.random.default_rng(0)
    rows = torch.tensor(rng.normal(size=(200, 3)) @ rng.normal(size=(3, 20)), dtype=torch.float32)
    branch = Branch(20, 8)
    branch.start(rows, alike=True)
    unit = torch.nn.functional.normalize
    scaled, projected = unit(rows - rows.mean(0)), unit(branch(rows)).detach()
    before, after = (scaled @ scaled.T).flatten(), (projected @ projected.T).flatten()
    assert np.corrcoef(before, after)[0, 1] > 0.9


def test_few_rows_and_columns_start_too():
    branch = Branch(3, 16)
    branch.start(torch.randn(4, 3))
    assert torch.isfinite(branch(torch.randn(5, 3))).all()
