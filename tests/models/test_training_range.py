import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import mahalanobis
from scipy.stats import special_ortho_group
from sklearn.covariance import ledoit_wolf

from nichekd.models import TrainingRange

SIZE = 50  # cells in a neighborhood


@pytest.fixture(scope="module")
def tissue():
    """400 neighborhoods of two niches, long in one direction, flat in another."""
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1], 200)
    rows = rng.normal(size=(400, 4)) * [3, 1, 0.5, 0] + 8 * groups[:, None] * [0, 1, 0, 0]
    return rows, groups


def range_of(rows, groups, **options) -> TrainingRange:
    n = len(rows)
    defaults = {"sizes": np.full(n, SIZE), "parts": np.arange(n) % 4, "lone": np.ones(n, dtype=bool)}
    return TrainingRange.of(rows, groups, **(defaults | options))


def score(found: TrainingRange, rows, size: int = SIZE) -> np.ndarray:
    return found.score(np.asarray(rows), np.full(len(rows), size))


def test_is_the_distance_from_the_nearest_niche(tissue):
    rows, groups = tissue
    found = range_of(rows, groups)
    means = np.stack([rows[groups == k].mean(0) for k in (0, 1)])
    covariance, _ = ledoit_wolf(rows - means[groups], assume_centered=True)
    inverse = np.linalg.inv(covariance)
    new = np.random.default_rng(1).normal(scale=5, size=(20, 4))
    expected = [min(mahalanobis(x, mean, inverse) for mean in means) for x in new]
    np.testing.assert_allclose(score(found, new) * float(found.limit), expected, rtol=1e-4)


def test_one_in_twenty_of_the_same_tissue_is_out(tissue):
    rows, groups = tissue
    found = range_of(rows, groups)
    rng = np.random.default_rng(2)
    again = rng.normal(size=(5000, 4)) * [3, 1, 0.5, 0] + 8 * rng.integers(0, 2, 5000)[:, None] * [0, 1, 0, 0]
    assert 0.02 < (score(found, again) > 1).mean() < 0.1


def test_between_the_niches_is_out(tissue):
    """One Gaussian around both would take the gap between them for the middle of the tissue."""
    found = range_of(*tissue)
    assert score(found, np.array([[0.0, 4, 0, 0]]))[0] > 1
    assert score(found, np.array([[0.0, 8, 0, 0], [0, 0, 0, 0]])).max() < 0.5


def test_a_shift_that_is_small_in_a_long_direction_is_large_in_a_short_one(tissue):
    found = range_of(*tissue)
    along, across = score(found, np.array([[3.0, 0, 0, 0], [0, 0, 3, 0]]))
    assert along < 1 < across


def test_means_of_few_cells_may_lie_farther_off(tissue):
    """By hand: a lone cell's variance is larger by 1 - 1 / 50, in each direction."""
    found = range_of(*tissue)
    variance, axes = np.linalg.eigh(found.covariance.double().numpy())
    x = np.array([[2.0, 3, 1, 0]])
    turned = (x - found.means.double().numpy()) @ axes
    expected = np.sqrt((turned**2 / (variance + 1 - 1 / SIZE)).sum(1).min())
    assert score(found, x, size=1)[0] * float(found.limit) == pytest.approx(expected, rel=1e-4)
    by_size = [score(found, x, size=n)[0] for n in (1, 5, SIZE, 200)]
    assert by_size[0] < by_size[1] < by_size[2] == by_size[3]


def test_limit_is_that_of_cells_nobody_learned_from_where_they_lie_farther(tissue):
    """An encoder keeps its own training tissue together."""
    rows, groups = tissue
    held = np.arange(400) % 10 == 0
    spread = np.where(
        held[:, None], 3 * (rows - 8 * groups[:, None] * [0, 1, 0, 0]) + 8 * groups[:, None] * [0, 1, 0, 0], rows
    )
    blind, told = range_of(spread, groups), range_of(spread, groups, held=held)
    assert told.limit > blind.limit
    assert (score(told, spread[held]) > 1).mean() <= 0.1 < (score(blind, spread[held]) > 1).mean()
    assert range_of(rows, groups, held=np.zeros(400, dtype=bool)).limit == range_of(rows, groups).limit


def test_limit_is_that_of_parts_left_out(tissue):
    """Where a part of the tissue is another, tissue is that far from the rest of it."""
    rows, groups = tissue
    parts = np.arange(400) % 4
    apart = rows + 6.0 * (parts[:, None] == 3) * [0, 0, 1, 0]
    together = range_of(apart, groups, parts=np.zeros(400, dtype=int))
    assert range_of(apart, groups, parts=parts).limit > 1.3 * together.limit


def test_covariance_is_that_of_lone_cells(tissue):
    rows, groups = tissue
    lone = np.arange(400) % 5 == 0
    centred = rows - np.stack([rows[groups == k].mean(0) for k in (0, 1)])[groups]
    expected, _ = ledoit_wolf(centred[lone], assume_centered=True)
    np.testing.assert_allclose(range_of(rows, groups, lone=lone).covariance, expected, rtol=1e-4, atol=1e-6)


def test_sections_that_were_learnt_before_stay_in_range(tissue):
    rows, groups = tissue
    elsewhere = rows + [0, 0, 12, 0]
    first = range_of(rows, groups)
    alone, both = range_of(elsewhere, groups), range_of(elsewhere, groups, before=first)
    assert (score(alone, rows) > 1).mean() > 0.99
    assert (score(both, rows) > 1).mean() < 0.1
    assert (score(both, elsewhere) > 1).mean() < 0.1
    assert len(both.means) == 4
    assert both.limit >= first.limit


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), shift=st.floats(-100, 100))
def test_turning_and_shifting_the_components_changes_nothing(tissue, seed, shift):
    rows, groups = tissue
    turn = special_ortho_group.rvs(4, random_state=seed)
    plain, moved = range_of(rows, groups), range_of(rows @ turn + shift, groups)
    np.testing.assert_allclose(score(moved, rows @ turn + shift), score(plain, rows), rtol=1e-2, atol=1e-3)


def test_few_cells_and_niches_without_any(tissue):
    rows, _ = tissue
    found = range_of(rows[:5], np.array([4, 4, 7, 7, 7]))
    assert len(found.means) == 2
    assert np.isfinite(score(found, rows)).all()


def test_cells_that_are_all_alike():
    found = range_of(np.zeros((10, 3)), np.zeros(10, dtype=int))
    assert score(found, np.zeros((2, 3))).tolist() == [0, 0]
    assert np.isfinite(score(found, np.ones((2, 3)))).all()


def test_travels_as_buffers(tissue):
    found = range_of(*tissue)
    other = TrainingRange(4, 2)
    other.load_state_dict(found.state_dict())
    np.testing.assert_array_equal(score(other, tissue[0]), score(found, tissue[0]))
