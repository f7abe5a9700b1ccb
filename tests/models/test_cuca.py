from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from nichekd.models import CucaConfig, Whiten
from nichekd.models._cuca import CucaNetwork, CucaObjective, CucaTraining, rmse

CONFIG = CucaConfig(n_features=6, n_types=3, width=8, gene_width=10)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(16, 6, generator=generator),
        torch.rand(16, 3, generator=generator),
        torch.rand(16, 5, generator=generator),
    )


def training(align="infonce", weights=(0.3, 0.6, 0.1), n_genes=5):
    torch.manual_seed(0)
    return CucaTraining(CucaNetwork(CONFIG), CucaObjective(CONFIG, n_genes, align=align, weights=weights))


def test_rmse_by_hand():
    assert rmse(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])).item() == pytest.approx(math.sqrt(12.5))


def test_rmse_has_a_gradient_where_it_is_zero():
    a = torch.ones(4, requires_grad=True)
    rmse(a, torch.ones(4)).backward()
    assert torch.isfinite(a.grad).all()


def test_embedding_and_abundance_are_never_negative(batch):
    network = CucaNetwork(CONFIG)
    scaled, z = network(batch[0])
    assert scaled.shape == (16, 3)
    assert z.shape == (16, 8)
    assert (z >= 0).all()
    assert (scaled < 0).any(), "else the next line shows nothing"
    assert (network.abundance(scaled) >= 0).all()


def test_abundance_is_in_the_units_of_the_types():
    network = CucaNetwork(CONFIG)
    network.scale_types([2.0, 0.5, 0.0])  # a constant type keeps its unit
    assert network.abundance(torch.tensor([[1.0, 1.0, -1.0]])).tolist() == [[2.0, 0.5, 0.0]]


def test_components_are_those_of_the_training_cells(batch):
    sample = torch.randn(50, 6, generator=torch.Generator().manual_seed(1)).numpy()
    network = CucaNetwork(replace(CONFIG, n_components=2)).eval()
    network.scale_features(sample)
    components = Whiten(6, 2).fit(sample)(batch[0])
    torch.testing.assert_close(network(batch[0]), network.of_scaled(components))
    assert network.projector.layers[0].in_features == 2


@pytest.mark.parametrize("align", ["rmse", "infonce", "cosine"])
def test_loss_is_the_weighted_sum_of_its_terms(batch, align):
    terms = training(align).eval()(*batch)
    expected = 0.3 * terms["abundance"] + 0.6 * terms["genes"] + 0.1 * terms["align"]
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_published_alignment_is_between_the_embeddings_themselves(batch):
    module = training("rmse").eval()
    _, z = module.network(batch[0])
    g, _ = module.objective.genes(batch[2])
    assert module(*batch)["align"].item() == pytest.approx(rmse(z, g).item(), rel=1e-5)


def test_contrastive_alignment_goes_both_ways(batch):
    module = training("infonce").eval()
    a = module.objective.map_z(module.network(batch[0])[1])
    b = module.objective.map_g(module.objective.genes(batch[2])[0])
    similarity = F.cosine_similarity(a[:, None], b[None], dim=-1) / 0.1
    own = torch.arange(16)
    expected = (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2
    assert module(*batch)["align"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_without_alignment_there_is_no_gene_branch(batch):
    module = training(None)
    assert module.objective.genes is None
    terms = module(batch[0], batch[1], None)
    assert set(terms) == {"loss", "abundance"}


@pytest.mark.parametrize(("align", "reached"), [("infonce", True), ("rmse", True), ("cosine", True)])
def test_genes_reach_the_image_side_by_the_alignment_alone(batch, align, reached):
    module = training(align, weights=(1.0, 1.0, 0.0)).eval()
    module(*batch)["loss"].backward()
    alone = [p.grad.clone() for p in module.network.parameters()]
    module.zero_grad()
    other = (batch[0], batch[1], batch[2].flip(0))
    module(*other)["loss"].backward()
    same = all(torch.allclose(a, p.grad) for a, p in zip(alone, module.network.parameters(), strict=True))
    assert same, "with weight 0 for the alignment, genes don't matter"
    module.objective.weights = (1.0, 1.0, 1.0)
    grads = []
    for images in (batch, other):
        module.zero_grad()
        module(*images)["loss"].backward()
        grads.append(torch.cat([p.grad.flatten() for p in module.network.projector.parameters()]))
    assert (not torch.allclose(*grads)) == reached


def test_sizes_are_the_published_ones():
    config = CucaConfig(n_features=2560, n_types=80)
    network = CucaNetwork(config)
    shapes = [tuple(p.shape) for p in network.projector.parameters() if p.ndim == 2]
    assert shapes == [(512, 2560), (512, 512), (512, 512)]
    assert tuple(network.head.weight.shape) == (80, 512)
    genes = CucaObjective(config, 250, align="rmse", weights=(0.3, 0.6, 0.1)).genes
    shapes = [tuple(p.shape) for p in genes.encoder.parameters() if p.ndim == 2]
    assert shapes == [(1024, 250), (1024, 1024), (512, 1024)]
    assert [tuple(p.shape) for p in genes.decoder.parameters() if p.ndim == 2] == [(512, 512), (250, 512)]
