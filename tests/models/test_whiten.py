import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from nichekd.models import Whiten


@pytest.fixture
def features():
    """500 cells with 12 features that mix 4 sources, of means and scales all over the place."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(500, 4)) * [5, 2, 1, 0.5] @ rng.normal(size=(4, 12)) + 0.1 * rng.normal(size=(500, 12))
    return (mixed * np.logspace(-2, 2, 12) + np.linspace(-10, 10, 12)).astype(np.float32)


def whitened(features, n_components, **options):
    whiten = Whiten(features.shape[1], n_components, **options).fit(features)
    return whiten(torch.from_numpy(features)).numpy()


@pytest.mark.parametrize("n_components", [3, 11, 12])
def test_components_have_mean_0_variance_1_and_no_correlation(features, n_components):
    out = whitened(features, n_components)
    assert out.shape == (500, n_components)
    assert_allclose(out.mean(0), 0, atol=0.02)
    assert_allclose(np.cov(out.T), np.eye(n_components), atol=0.02)


def test_components_against_the_eigenvectors_of_the_correlations(features):
    standard = (features - features.mean(0, dtype=float)) / features.std(0, dtype=float)
    values, vectors = np.linalg.eigh(standard.T @ standard / (len(features) - 1))
    expected = standard @ vectors[:, ::-1] / np.sqrt(values[::-1])
    out = whitened(features, 4)
    correlation = (out * expected[:, :4]).mean(0)  # ±1: a component's sign is free
    assert_allclose(np.abs(correlation), 1, atol=0.02)


def test_unequal_components_keep_distances(features):
    standard = (features - features.mean(0, dtype=float)) / features.std(0, dtype=float)
    out = whitened(features, 12, equal=False)
    assert_allclose(out.var(0, ddof=1).mean(), 1, rtol=0.02)
    assert out[:, 0].var() > 2 * out[:, 1].var()
    ours = np.linalg.norm(out[:100] - out[100:200], axis=1)
    theirs = np.linalg.norm(standard[:100] - standard[100:200], axis=1)
    assert_allclose(ours / ours.mean(), theirs / theirs.mean(), rtol=0.02)


@pytest.mark.parametrize("constant", [0.0, 7.3, 1e4])
def test_constant_features_are_silent_whatever_they_are_elsewhere(features, constant):
    features[:, [2, 9]] = constant
    whiten = Whiten(12, 5).fit(features)
    assert not whiten.components[[2, 9]].any()
    elsewhere = features.copy()
    elsewhere[:, [2, 9]] = -50
    assert whiten(torch.from_numpy(elsewhere)).equal(whiten(torch.from_numpy(features)))


def test_all_constant_is_all_silent():
    assert not whitened(np.full((20, 3), 5, np.float32), 2).any()


def test_fewer_cells_than_components(features):
    out = whitened(features[:5], 10)  # 5 cells span 4 dimensions
    assert_allclose(out[:, :4].var(0, ddof=1), 1, rtol=0.02)
    assert not out[:, 4:].any()


def test_one_cell_teaches_nothing(features):
    assert not whitened(features[:1], 3).any()


def test_rounding_is_not_blown_up():
    # two features that are one: a second component would be rounding
    one = np.random.default_rng(0).normal(size=(200, 1)).astype(np.float32)
    out = whitened(np.concatenate([one, one], axis=1), 2)
    assert_allclose(out[:, 0].var(ddof=1), 1, rtol=0.01)
    assert not out[:, 1].any()


def test_half_precision_features_and_the_same_seed(features):
    half = features.astype(np.float16)
    first, second = Whiten(12, 3).fit(half, seed=1), Whiten(12, 3).fit(half, seed=1)
    assert first.components.equal(second.components)
    assert first.components.dtype == torch.float32
