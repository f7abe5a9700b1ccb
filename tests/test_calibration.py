import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from nichekd._calibration import best_temperature, brier_score, expected_calibration_error


def drawn(n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from the probabilities they stand for."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, k))
    cumulative = softmax(logits, axis=1).cumsum(1)
    return logits, (rng.random((n, 1)) > cumulative[:, :-1]).sum(1)


def test_error_worked_by_hand():
    proba = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    truth = np.array([0, 1, 1, 1])
    # the bin of 0.9: half are right; that of 0.6: all are
    assert expected_calibration_error(proba, truth) == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)


def test_brier_worked_by_hand():
    assert brier_score(np.array([[0.8, 0.2], [0.0, 1.0]]), np.array([0, 0])) == pytest.approx((0.08 + 2.0) / 2)


def test_sure_and_right():
    proba = np.eye(3)[[0, 1, 2]]
    assert expected_calibration_error(proba, np.array([0, 1, 2])) == 0
    assert brier_score(proba, np.array([0, 1, 2])) == 0


def test_labels_drawn_from_the_probabilities_are_calibrated():
    logits, truth = drawn(40_000, 4)
    assert expected_calibration_error(softmax(logits, axis=1), truth) < 0.015
    assert best_temperature(logits, truth) == pytest.approx(1, abs=0.03)


@given(factor=st.floats(0.1, 20))
def test_temperature_undoes_a_factor(factor):
    logits, truth = drawn(3000, 3)
    assert best_temperature(logits * factor, truth) == pytest.approx(factor * best_temperature(logits, truth), rel=0.01)
