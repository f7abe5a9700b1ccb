import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from nichekd.models import NeighborhoodIndex
from nichekd.models._neighborhood_batch import random_rotations


@st.composite
def graphs(draw):
    """A radius graph of up to 30 cells, some of them alone, and some of its cells in some order."""
    n = draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    upper = np.triu(rng.random((n, n)) < draw(st.floats(0, 0.5)), k=1)
    cells = rng.permutation(n)[: draw(st.integers(1, n))]
    index = NeighborhoodIndex.from_graph(csr_matrix(upper | upper.T), rng.uniform(-100, 100, (n, 2)), 5.0)
    return index, cells


def members(index: NeighborhoodIndex, cell: int) -> list[int]:
    """Centre first, then its row of the graph."""
    return [cell, *index.indices[index.indptr[cell] : index.indptr[cell + 1]].tolist()]


@given(graphs())
def test_tokens_are_the_centre_and_its_neighbors(case):
    index, cells = case
    token, mask = index.tokens(cells)
    for row, cell in enumerate(cells):
        assert token[row, mask[row]].tolist() == members(index, cell)
        assert (token[row, ~mask[row]] == cell).all()  # padding brings no cell along
    assert token.shape[1] == mask.sum(1).max() == index.sizes[cells].max()


@given(graphs())
@settings(max_examples=50)
def test_batch_holds_each_cell_once(case):
    index, cells = case
    features = np.arange(len(index.xy) * 3, dtype=np.float16).reshape(-1, 3)  # row i holds 3i
    batch = index.batch(cells, features)
    there = {cell for centre in cells for cell in members(index, centre)}
    assert (batch.features[:, 0] / 3).tolist() == sorted(there)
    for row, cell in enumerate(cells):
        theirs = batch.features[batch.token[row, batch.mask[row]], 0] / 3
        assert theirs.tolist() == members(index, cell)


@given(graphs())
@settings(max_examples=50)
def test_offsets_are_in_radii_from_the_centre(case):
    index, cells = case
    batch = index.batch(cells, np.zeros((len(index.xy), 1)))
    assert not batch.offset[:, 0].any()
    for row, cell in enumerate(cells):
        expected = (index.xy[members(index, cell)] - index.xy[cell]) / 5.0
        assert batch.offset[row, batch.mask[row]].numpy() == pytest.approx(expected, abs=1e-5)


def test_offsets_are_exact_far_from_the_origin():
    # 0.1 µm apart, 10 cm from the origin: more digits than float32 has
    xy = np.array([[1e5, 1e5], [1e5 + 0.1, 1e5]])
    index = NeighborhoodIndex.from_graph(csr_matrix([[0, 1], [1, 0]]), xy, 1.0)
    assert index.batch(np.array([0]), np.zeros((2, 1))).offset[0, 1, 0].item() == pytest.approx(0.1, rel=1e-5)


def test_dtypes_and_lazy_features():
    import dask.array as da

    index = NeighborhoodIndex.from_graph(csr_matrix([[0, 1], [1, 0]]), np.array([[0, 0], [1, 0]]), 2.0)
    features = np.array([[1, 2], [3, 4]], dtype=np.float16)
    for rows in (features, da.from_array(features, chunks=1)):
        batch = index.batch(np.array([1]), rows)
        assert batch.features.tolist() == [[1, 2], [3, 4]]
        assert batch.features.dtype == batch.offset.dtype == torch.float32
        assert batch.token.dtype == torch.int64
        assert batch.mask.dtype == torch.bool


def test_other_features_and_another_device_keep_the_rest():
    index = NeighborhoodIndex.from_graph(csr_matrix([[0, 1], [1, 0]]), np.array([[0, 0], [1, 0]]), 2.0)
    batch = index.batch(np.array([0, 1]), np.zeros((2, 3)))
    other = batch.with_features(torch.ones(2, 5)).to(torch.device("cpu"))
    assert other.features.equal(torch.ones(2, 5))
    for name in ("token", "offset", "mask"):
        assert getattr(other, name).equal(getattr(batch, name))


def test_rotations_are_orthogonal_and_half_of_them_mirror():
    rotation = random_rotations(2000, torch.Generator().manual_seed(0))
    assert rotation @ rotation.transpose(1, 2) == pytest.approx(torch.eye(2).expand(2000, 2, 2), abs=1e-6)
    sign = torch.linalg.det(rotation)
    assert sign.abs() == pytest.approx(torch.ones(2000), abs=1e-5)
    assert (sign > 0).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_rotations_cover_the_circle():
    right = random_rotations(4000, torch.Generator().manual_seed(1))[:, 0]  # where (1, 0) goes
    angle = torch.atan2(right[:, 1], right[:, 0])
    count = torch.histc(angle, bins=8, min=-np.pi, max=np.pi)
    assert count.min() > 0.8 * 4000 / 8
