import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from nichekd.tl._consensus import consensus_partition


@pytest.fixture
def members():
    """Truth of 300 cells, and cosines of five teachers that each know it but for 25 % and number it as they like."""
    rng = np.random.default_rng(0)
    truth = rng.integers(4, size=300)
    logits = []
    for _ in range(5):
        said = np.where(rng.random(300) < 0.25, rng.integers(4, size=300), truth)
        logits.append(0.8 * np.eye(4)[rng.permutation(4)[said]] + rng.uniform(0, 0.1, (300, 4)))
    return truth, logits


def test_consensus_is_nearer_to_the_truth_than_any_member(members):
    truth, logits = members
    alone = max(adjusted_rand_score(truth, member.argmax(1)) for member in logits)
    together = consensus_partition(logits, 0.04, seed=0)
    assert adjusted_rand_score(truth, together) > max(0.9, alone)


def test_numbering_does_not_matter(members):
    _, logits = members
    renamed = [member[:, ::-1] for member in logits]
    first, second = consensus_partition(logits, 0.04, seed=0), consensus_partition(renamed, 0.04, seed=0)
    assert adjusted_rand_score(first, second) == 1


def test_one_member_is_its_own_consensus(members):
    member = members[1][0]
    assert adjusted_rand_score(member.argmax(1), consensus_partition([member], 0.04, seed=0)) == 1
