import dask.array as da
import igraph
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from scipy.sparse import csr_array
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import KNeighborsTransformer, NearestNeighbors

import nichekd as nk
from nichekd.tl._histology_leiden import leiden_with_k

N_CLOUDS = 4


@pytest.fixture
def clouds():
    """400 cells whose features lie in four clouds, three quarters of them for training."""
    rng = np.random.default_rng(0)
    cloud = rng.integers(N_CLOUDS, size=400)
    features = 8 * np.eye(N_CLOUDS, 10)[cloud] + rng.normal(size=(400, 10))
    obs = pd.DataFrame(
        {"cloud": cloud, "split": pd.Categorical(np.where(np.arange(400) % 4 == 0, "test", "train"))},
        index=[f"cell{i}" for i in range(400)],
    )
    return AnnData(obs=obs, obsm={"X_image": features.astype(np.float32), "spatial": rng.uniform(0, 500, (400, 2))})


def test_finds_the_clouds(clouds):
    nk.tl.histology_leiden(clouds, N_CLOUDS, use_rep="X_image")
    labels = clouds.obs["niche_histology_leiden"]
    assert labels.cat.categories.tolist() == ["0", "1", "2", "3"]
    assert adjusted_rand_score(clouds.obs["cloud"], labels) == 1  # training and test cells alike
    about = clouds.uns["nichekd"]["histology_leiden"]
    assert about["K"] == about["n_clusters"] == N_CLOUDS
    assert about["resolution"] > 0


class DescentIntoAnArray(KNeighborsTransformer):
    """pynndescent's transformer without its minute of compilation; newer releases give an array, not a matrix."""

    def __init__(self, n_neighbors=15, random_state=None, n_trees=None, n_iters=None):
        super().__init__(n_neighbors=n_neighbors)
        self.random_state, self.n_trees, self.n_iters = random_state, n_trees, n_iters

    def fit_transform(self, X, y=None):
        self.index_ = Index(X)
        return csr_array(super().fit_transform(X, y))


class Index:
    """What pynndescent searches new points in."""

    def __init__(self, rows):
        self.rows = NearestNeighbors().fit(rows)

    def query(self, rows, k):
        return self.rows.kneighbors(rows, k)[::-1]


def test_large_sections_have_approximate_neighbors(clouds, monkeypatch):
    monkeypatch.setattr("nichekd.tl._histology_leiden.APPROXIMATE_FROM", 0)
    monkeypatch.setattr("pynndescent.PyNNDescentTransformer", DescentIntoAnArray)
    nk.tl.histology_leiden(clouds, N_CLOUDS, use_rep="X_image")
    assert adjusted_rand_score(clouds.obs["cloud"], clouds.obs["niche_histology_leiden"]) == 1


@pytest.mark.slow
def test_the_true_descent_is_as_good(clouds, monkeypatch):
    monkeypatch.setattr("nichekd.tl._histology_leiden.APPROXIMATE_FROM", 0)
    nk.tl.histology_leiden(clouds, N_CLOUDS, use_rep="X_image")
    assert adjusted_rand_score(clouds.obs["cloud"], clouds.obs["niche_histology_leiden"]) > 0.98


@pytest.mark.parametrize("enough", [0, 10**6])
def test_test_cells_take_the_majority_of_their_nearest_training_cells(cells, monkeypatch, enough):
    monkeypatch.setattr("nichekd.tl._histology_leiden.APPROXIMATE_FROM", enough)
    monkeypatch.setattr("pynndescent.PyNNDescentTransformer", DescentIntoAnArray)
    nk.tl.histology_leiden(cells, 4, use_rep="X_image", n_pcs=16)
    train = (cells.obs["split"] == "train").to_numpy()
    # with as many components as features, distances are those of the standardised features
    features = cells.obsm["X_image"].astype(float)
    features = (features - features[train].mean(0)) / features[train].std(0)
    _, nearest = NearestNeighbors(n_neighbors=15).fit(features[train]).kneighbors(features[~train])
    label = cells.obs["niche_histology_leiden"].cat.codes.to_numpy()
    votes = (label[train][nearest][..., None] == np.arange(4)).sum(1)
    np.testing.assert_array_equal(votes.argmax(1), label[~train])


def test_nothing_is_learnt_from_test(clouds):
    nk.tl.histology_leiden(clouds, N_CLOUDS, use_rep="X_image")
    other = clouds.copy()
    test = (other.obs["split"] == "test").to_numpy()
    other.obsm["X_image"][test] = 30
    nk.tl.histology_leiden(other, N_CLOUDS, use_rep="X_image")
    key = "niche_histology_leiden"
    assert (other.obs.loc[~test, key] == clouds.obs.loc[~test, key]).all()


@pytest.mark.parametrize("K", [2, 6, 12])
def test_finds_the_resolution_for_k(cells, K):
    nk.tl.histology_leiden(cells, K, use_rep="X_image")
    assert cells.obs["niche_histology_leiden"].nunique() == K


def test_same_seed_same_labels_and_copy_leaves_the_input(cells):
    first = nk.tl.histology_leiden(cells, 5, use_rep="X_image", copy=True)
    assert "niche_histology_leiden" not in cells.obs
    second = nk.tl.histology_leiden(cells, 5, use_rep="X_image", copy=True)
    assert (first.obs["niche_histology_leiden"] == second.obs["niche_histology_leiden"]).all()


def test_unreachable_k_warns_and_takes_the_nearest():
    # four clouds without a link between them: never fewer clusters than four
    graph = igraph.Graph.Erdos_Renyi(n=20, p=1)
    graph = igraph.disjoint_union([graph] * 4)
    graph.es["weight"] = 1.0
    labels, resolution = leiden_with_k(graph, 2, seed=0)
    assert labels.max() + 1 == 4
    assert resolution > 0


def test_unreachable_k_is_told(clouds, monkeypatch):
    nearest = np.arange(300) % 3, 0.7
    monkeypatch.setattr("nichekd.tl._histology_leiden.leiden_with_k", lambda *_: nearest)
    with pytest.warns(UserWarning, match=r"No resolution gave 5 Leiden clusters; 3 at 0\.7 is the nearest"):
        nk.tl.histology_leiden(clouds, 5, use_rep="X_image")
    assert clouds.obs["niche_histology_leiden"].cat.categories.tolist() == ["0", "1", "2", "3", "4"]
    assert clouds.uns["nichekd"]["histology_leiden"]["n_clusters"] == 3


def test_bisection_goes_both_ways():
    rng = np.random.default_rng(0)
    near = rng.normal(size=(300, 2))
    distance = np.linalg.norm(near[:, None] - near, axis=-1)
    i, j = np.nonzero(np.triu(distance < 0.4, k=1))
    graph = igraph.Graph(n=300, edges=np.column_stack([i, j]), edge_attrs={"weight": 1 - distance[i, j]})
    at_one = leiden_with_k(graph, 30, seed=0)[0].max() + 1
    assert at_one == 30
    fewer, low = leiden_with_k(graph, 25, seed=0)
    more, high = leiden_with_k(graph, 60, seed=0)
    assert fewer.max() + 1 == 25
    assert more.max() + 1 == 60
    assert low < high


def test_survives_h5ad(clouds, tmp_path):
    nk.tl.histology_leiden(clouds, N_CLOUDS, use_rep="X_image", key_added="mine")
    clouds.write_h5ad(tmp_path / "cells.h5ad")
    back = read_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_series_equal(back.obs["niche_mine"], clouds.obs["niche_mine"])
    assert back.uns["nichekd"]["histology_leiden"]["resolution"] > 0


def test_lazy_features_give_the_same(clouds):
    nk.tl.histology_leiden(clouds, N_CLOUDS, use_rep="X_image")
    lazy = clouds.copy()
    lazy.obsm["X_image"] = da.from_array(lazy.obsm["X_image"], chunks=(100, 10))
    nk.tl.histology_leiden(lazy, N_CLOUDS, use_rep="X_image")
    assert (lazy.obs["niche_histology_leiden"] == clouds.obs["niche_histology_leiden"]).all()


def test_no_split_clusters_all(clouds):
    del clouds.obs["split"]
    nk.tl.histology_leiden(clouds, N_CLOUDS, use_rep="X_image")
    assert adjusted_rand_score(clouds.obs["cloud"], clouds.obs["niche_histology_leiden"]) == 1


def test_fewer_cells_than_neighbors_and_components(clouds):
    few = clouds[:12].copy()  # nine of them for training
    nk.tl.histology_leiden(few, 2, use_rep="X_image", n_neighbors=15, n_pcs=50)
    assert few.obs["niche_histology_leiden"].notna().all()


@pytest.mark.parametrize(
    ("K", "error", "message"),
    [(1, ValueError, "K=1"), (301, ValueError, "K=301 niches for 300 training cells"), (True, TypeError, "K is True")],
)
def test_impossible_number_of_niches(clouds, K, error, message):
    with pytest.raises(error, match=message):
        nk.tl.histology_leiden(clouds, K, use_rep="X_image")


def test_bad_features(clouds):
    with pytest.raises(KeyError, match=r"obsm\['X_uni2'\] is missing.*Run nk.pp.histology_features"):
        nk.tl.histology_leiden(clouds, 3, use_rep="X_uni2")
    clouds.obsm["X_image"][:2] = np.inf
    with pytest.raises(ValueError, match="NaN or infinite for 2 of 400 cells"):
        nk.tl.histology_leiden(clouds, 3, use_rep="X_image")


def test_no_training_cell(clouds):
    clouds.obs["split"] = pd.Categorical(["buffer"] * 400)
    with pytest.raises(ValueError, match="no 'train' cell"):
        nk.tl.histology_leiden(clouds, 3, use_rep="X_image")
