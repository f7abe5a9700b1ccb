import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import entropy

from nichekd.models._distillation import distillation_loss, matched_temperature, normalized_entropy


@pytest.fixture
def logits():
    """Of a student and a teacher, 6 cells, K = 4."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(6, 4)), rng.normal(size=(6, 4))


@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
def test_loss_against_scipy(logits, temperature):
    student, teacher = logits
    p, q = softmax(teacher / temperature, axis=1), softmax(student / temperature, axis=1)
    expected = temperature**2 * np.mean([entropy(a, b) for a, b in zip(p, q, strict=True)])  # KL(teacher ‖ student)
    found = distillation_loss(torch.from_numpy(student), torch.from_numpy(teacher), temperature)
    assert found.item() == pytest.approx(expected)


def test_loss_by_hand():
    # τ = 2: the teacher says 3/4, 1/4; the student 1/2, 1/2
    teacher, student = torch.tensor([[2 * math.log(3), 0.0]]), torch.tensor([[5.0, 5.0]])
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert distillation_loss(student, teacher, 2.0).item() == pytest.approx(expected)


def test_equal_logits_lose_nothing_wherever_they_start(logits):
    teacher = torch.from_numpy(logits[1])
    assert distillation_loss(teacher, teacher, 0.3).item() == pytest.approx(0, abs=1e-12)
    assert distillation_loss(teacher + 9, teacher, 0.3).item() == pytest.approx(0, abs=1e-12)


def test_loss_is_not_symmetric(logits):
    student, teacher = map(torch.from_numpy, logits)
    assert distillation_loss(student, teacher, 1).item() != pytest.approx(distillation_loss(teacher, student, 1).item())


def test_gradient_is_tau_times_the_difference_of_probabilities(logits):
    for tau in (0.5, 1.0, 4.0):
        student, teacher = torch.from_numpy(logits[0]).requires_grad_(), torch.from_numpy(logits[1])
        distillation_loss(student, teacher, tau).backward()
        expected = tau * (torch.softmax(student / tau, 1) - torch.softmax(teacher / tau, 1)) / len(student)
        torch.testing.assert_close(student.grad, expected.detach())


def test_gradient_keeps_its_size_at_high_temperatures(logits):
    norms = []
    for tau in (50.0, 5000.0):
        student = torch.from_numpy(logits[0]).requires_grad_()
        distillation_loss(student, torch.from_numpy(logits[1]), tau).backward()
        norms.append(student.grad.norm().item())
    assert norms[1] == pytest.approx(norms[0], rel=0.05)


def test_entropy_is_in_units_of_its_maximum():
    logits = torch.tensor([[0.0, 0, 0], [100.0, 0, 0], [math.log(2), 0, -1e9]])
    third = entropy([2 / 3, 1 / 3]) / math.log(3)
    assert normalized_entropy(logits).tolist() == pytest.approx([1, 0, third], abs=1e-6)


@given(st.integers(2, 20), st.floats(0.05, 0.9), st.floats(0.1, 50), st.integers(0, 2**31 - 1))
def test_matched_temperature_hits_the_entropy(n_niches, target, scale, seed):
    logits = scale * torch.randn(200, n_niches, generator=torch.Generator().manual_seed(seed))
    tau = matched_temperature(logits, target_entropy=target)
    assert normalized_entropy(logits, tau).mean().item() == pytest.approx(target, abs=1e-3)


@given(st.floats(0.01, 20))
def test_temperature_grows_with_the_logits(factor):
    logits = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    expected = factor * matched_temperature(logits)
    assert matched_temperature(factor * logits) == pytest.approx(expected, rel=1e-3)


def test_cosines_get_a_low_temperature():
    cosines = torch.rand(100, 10, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert matched_temperature(cosines) < 0.3


def test_temperature_stays_in_its_bounds():
    assert matched_temperature(torch.zeros(3, 4)) == pytest.approx(1e-3)  # never below the wanted entropy
