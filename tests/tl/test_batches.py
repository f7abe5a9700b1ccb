from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nichekd.tl._batches import prediction_order, spatial_batches, validation_part


@given(n=st.integers(1, 400), batch=st.integers(1, 100), seed=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_an_epoch_visits_each_cell_once(n, batch, seed):
    rng = np.random.default_rng(seed)
    xy, cells = rng.uniform(0, 500, (2 * n, 2)), rng.choice(2 * n, n, replace=False)
    visited = np.concatenate(list(spatial_batches(xy, cells, batch, rng)))
    assert sorted(visited) == sorted(cells)


def test_batches_are_of_neighbors_from_all_over():
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 1000, (20_000, 2))
    batch = next(iter(spatial_batches(xy, np.arange(len(xy)), 256, rng)))
    here = xy[batch]
    nearest = np.sort(np.linalg.norm(here[:, None] - here, axis=-1), axis=1)[:, 1]
    scattered = rng.uniform(0, 1000, (256, 2))
    expected = np.sort(np.linalg.norm(scattered[:, None] - scattered, axis=-1), axis=1)[:, 1]
    assert np.median(nearest) < 0.4 * np.median(expected)
    assert np.ptp(here, axis=0).min() > 500


def test_validation_squares_keep_their_distance():
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 1000, (5000, 2))
    train = np.arange(4000)
    fitted, held_back = validation_part(xy, train, share=0.1, margin=30)
    assert set(fitted) | set(held_back) <= set(train)
    assert len(held_back) == pytest.approx(400, abs=100)
    gap = np.abs(xy[fitted][:, None] - xy[held_back][None]).max(-1).min()
    assert gap > 30


def test_nothing_is_held_back_where_little_would_be_left():
    xy = np.random.default_rng(0).uniform(0, 50, (200, 2))
    fitted, held_back = validation_part(xy, np.arange(200), share=0.1, margin=40)
    assert len(fitted) == 200
    assert len(held_back) == 0


def test_prediction_order_is_a_permutation_that_stays_near():
    xy = np.random.default_rng(0).uniform(0, 1000, (5000, 2))
    order = prediction_order(xy)
    assert sorted(order) == list(range(5000))
    step = np.linalg.norm(np.diff(xy[order], axis=0), axis=1)
    assert np.median(step) < 0.6 * np.median(np.linalg.norm(np.diff(xy, axis=0), axis=1))
