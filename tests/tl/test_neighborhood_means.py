import numpy as np
import pytest
from scipy.sparse import csr_matrix

from nichekd.models import NeighborhoodIndex
from nichekd.tl._neighborhood_means import neighborhood_means


@pytest.fixture
def index():
    """Cells 0 - 1 - 2 in a row, 3 alone."""
    graph = csr_matrix([[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    return NeighborhoodIndex.from_graph(graph, np.zeros((4, 2)), 1.0)


def test_by_hand(index):
    means = neighborhood_means(index, np.array([[0.0], [3.0], [6.0], [5.0]]))
    assert means.ravel().tolist() == [1.5, 3, 4.5, 5]
    assert means.dtype == np.float32


def test_some_cells_in_their_order(index):
    values = np.random.default_rng(0).normal(size=(4, 3))
    some = np.array([3, 1])
    np.testing.assert_allclose(
        neighborhood_means(index, values, some), neighborhood_means(index, values)[some], rtol=1e-6
    )
