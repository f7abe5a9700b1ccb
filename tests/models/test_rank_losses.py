from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from nichekd.models._rank_losses import (
    RankLoss,
    candidates,
    cosine_similarity,
    hinge_rank_loss,
    info_nce,
    published_rank_loss,
    rank_loss,
    soft_rank_loss,
)

KINDS = ("hinge", "soft_rank")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def similarities(n: int = 24, seed: int = 0) -> torch.Tensor:
    return cosine_similarity(torch.randn(n, 5, generator=generator(seed)))


def loss(image: torch.Tensor, genes: torch.Tensor, kind: RankLoss, *, n_pairs: int = 32, seed: int = 0) -> float:
    one_group = torch.zeros(len(image), dtype=torch.long)
    return rank_loss(image, genes, [one_group], kind=kind, n_pairs=n_pairs, generator=generator(seed)).item()


def test_hinge_by_hand():
    # one anchor, two pairs: genes prefer the first by 0.5, and the second by 0.2
    genes = torch.tensor([[0.9, 0.1, 0.4, 0.3]])
    image = torch.tensor([[0.5, 0.6, 0.3, 0.2]])
    # gaps of the genes 0.5 and -0.2; of the image 0.2 and 0.4
    assert hinge_rank_loss(image, genes).item() == pytest.approx(((0.5 - 0.2) + (0.2 + 0.4)) / 2)


def test_hinge_is_nothing_for_the_same_similarities_and_twice_the_gap_for_the_reverse():
    genes = similarities()
    assert loss(genes, genes, "hinge") == pytest.approx(0, abs=1e-6)
    constant, reverse = loss(torch.ones_like(genes), genes, "hinge"), loss(-genes, genes, "hinge")
    assert constant > 0
    assert reverse == pytest.approx(2 * constant, rel=1e-5)


def test_hinge_asks_for_the_order_with_its_gaps_or_wider_ones():
    genes = similarities()
    assert loss(3 * genes, genes, "hinge") == pytest.approx(0, abs=1e-6)
    assert 0 < loss(0.5 * genes, genes, "hinge") < loss(torch.ones_like(genes), genes, "hinge")


def test_soft_rank_is_one_minus_spearman():
    rng = np.random.default_rng(0)
    image, genes = rng.normal(size=(2, 6, 15))
    expected = np.mean([1 - spearmanr(a, b).statistic for a, b in zip(image, genes, strict=True)])
    assert soft_rank_loss(torch.tensor(image), torch.tensor(genes), softness=1e-4).item() == pytest.approx(
        expected, abs=1e-3
    )


def test_soft_rank_same_constant_reverse():
    genes = similarities()
    assert loss(genes, genes, "soft_rank") < 0.02
    assert loss(torch.ones_like(genes), genes, "soft_rank") == pytest.approx(1, abs=1e-5)
    assert loss(-genes, genes, "soft_rank") > 1.98


def test_published_loss_does_not_see_the_sign():
    """What systems built on it should know: a reversed order, and no order at all, cost nothing."""
    genes = similarities()
    probability = genes.softmax(dim=1)
    assert published_rank_loss(genes, genes, generator=generator()).item() == 0
    assert published_rank_loss(torch.ones_like(genes), genes, generator=generator()).item() == pytest.approx(
        0, abs=1e-4
    )
    wider = published_rank_loss(4 * genes, genes, generator=generator()).item()
    assert wider > 0, "gaps wider than the genes' are what it punishes"
    order = torch.randperm(len(genes), generator=generator())
    a, b = ((4 * genes).softmax(1)[order].flatten(), probability[order].flatten())
    by_hand = sum(max(0.0, abs(float(a[i] - a[i - 1])) - abs(float(b[i] - b[i - 1]))) for i in range(len(a))) / len(
        genes
    )
    assert wider == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_goes_into_the_genes(kind):
    x, y = torch.randn(12, 4, requires_grad=True), torch.randn(12, 4, requires_grad=True)
    group = torch.zeros(12, dtype=torch.long)
    rank_loss(cosine_similarity(x), cosine_similarity(y), [group], kind=kind, generator=generator()).backward()
    assert y.grad is None
    assert x.grad.abs().sum() > 0


def test_published_gradients_do():
    y = torch.randn(12, 4, requires_grad=True)
    image = cosine_similarity(4 * torch.randn(12, 4)) * 5
    published_rank_loss(image, cosine_similarity(y), generator=generator()).backward()
    assert y.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_permutation_of_the_batch_plays_no_part_in_expectation(kind):
    image, genes = similarities(seed=1), similarities(seed=2)
    order = torch.randperm(len(image), generator=generator(3))
    here = np.mean([loss(image, genes, kind, n_pairs=64, seed=s) for s in range(12)])
    there = np.mean([loss(image[order][:, order], genes[order][:, order], kind, n_pairs=64, seed=s) for s in range(12)])
    assert here == pytest.approx(there, rel=0.02)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    seed=st.integers(0, 2**31),
)
def test_candidates_are_others_of_the_anchors_group(sizes, seed):
    group = torch.repeat_interleave(torch.arange(len(sizes)) * 7, torch.tensor(sizes))
    group = group[torch.randperm(len(group), generator=generator(seed))]
    anchors, others = candidates(group, 20, generator(seed))
    large = [i for i, code in enumerate(group.tolist()) if sizes[code // 7] >= 4]
    assert anchors.tolist() == large
    assert others.shape == (len(large), 20)
    assert (group[others] == group[anchors][:, None]).all()
    assert (others != anchors[:, None]).all()


def test_every_other_member_comes_up_alike():
    anchors, others = candidates(torch.zeros(5, dtype=torch.long), 4000, generator())
    for anchor, drawn in zip(anchors, others, strict=True):
        counts = torch.bincount(drawn, minlength=5).float() / 4000
        counts[anchor] = 0.25
        assert torch.allclose(counts, torch.tensor(0.25), atol=0.03)


def test_scales_that_have_no_anchor_are_left_out():
    image, genes = similarities(seed=1), similarities(seed=2)
    alone, together = torch.arange(len(image)), torch.zeros(len(image), dtype=torch.long)
    one = rank_loss(image, genes, [together], generator=generator())
    both = rank_loss(image, genes, [alone, together], generator=generator())
    assert both.item() == pytest.approx(one.item(), rel=0.2)
    assert rank_loss(image, genes, [alone]).item() == 0


def test_info_nce_by_hand():
    q, k = torch.tensor([[1.0, 0], [0, 2.0]]), torch.tensor([[3.0, 0], [1.0, 1.0]])
    # cosines: [[1, 1/√2], [0, 1/√2]]; τ = 0.5
    r = 1 / math.sqrt(2)
    first = -math.log(math.exp(2) / (math.exp(2) + math.exp(2 * r)))
    second = -math.log(math.exp(2 * r) / (1 + math.exp(2 * r)))
    assert info_nce(q, k, 0.5).item() == pytest.approx((first + second) / 2)


def test_queue_adds_keys_and_takes_no_gradient():
    q, k = torch.randn(6, 4), torch.randn(6, 4, requires_grad=True)
    queue = torch.randn(10, 4, requires_grad=True)
    longer = info_nce(q, k, 0.1, queue=queue)
    assert longer > info_nce(q, k, 0.1)
    longer.backward()
    assert queue.grad is None
    assert k.grad is not None
    assert info_nce(q, k, 0.1, queue=torch.empty(0, 4)).item() == pytest.approx(info_nce(q, k, 0.1).item())
