"""A seed that is none is found before anything is read or made."""

import numpy as np
import pytest

import nichekd as nk

CALLS = {
    "estimate_radius": lambda seed: nk.pp.estimate_radius(None, seed=seed),
    "expression_features": lambda seed: nk.pp.expression_features(None, seed=seed),
    "nolan": lambda seed: nk.tl.nolan(None, seed=seed),
    "distill": lambda seed: nk.tl.distill(None, seed=seed),
    "gene_aware_encoder": lambda seed: nk.tl.gene_aware_encoder(None, seed=seed),
    "histology_nolan": lambda seed: nk.tl.histology_nolan(None, seed=seed),
    "histology_leiden": lambda seed: nk.tl.histology_leiden(None, seed=seed),
    "composition_divergence": lambda seed: nk.tl.composition_divergence(None, cell_type_key="cell_type", seed=seed),
    "pathology_probe": lambda seed: nk.tl.pathology_probe(None, annotation_key="region", seed=seed),
    "evaluate": lambda seed: nk.tl.evaluate(None, seeds=(seed,)),
    "cuca": lambda seed: nk.tl.cuca(None, abundance_key="abundance", seed=seed),
    "colocalization": lambda seed: nk.tl.colocalization(None, key="cell_type", seed=seed),
    "rank_by_gene": lambda seed: nk.tl.rank_by_gene(None, seed=seed),
    "rank_agreement": lambda seed: nk.tl.rank_agreement(None, a="X_scVI", b="X_image", seed=seed),
    "slide_classifier": lambda seed: nk.tl.slide_classifier(None, label_key="label", library_key="slide", seed=seed),
    "survival": lambda seed: nk.tl.survival(None, library_key="slide", time_key="time", event_key="event", seed=seed),
    "pl.rank_agreement": lambda seed: nk.pl.rank_agreement(None, seed=seed),
    "simulate": lambda seed: nk.datasets.simulate(100, seed=seed),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("seed", ["0", 1.5, True, None], ids=repr)
def test_a_seed_is_a_whole_number(call, seed):
    with pytest.raises(TypeError, match="seed.*whole number"):
        call(seed)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_seed_is_not_negative(call):
    with pytest.raises(ValueError, match="seed"):
        call(-1)


def test_numpys_whole_numbers_are_seeds():
    one, other = (nk.datasets.simulate(100, K=2, seed=seed, image=False)["table"] for seed in (3, np.int64(3)))
    np.testing.assert_array_equal(one.obsm["spatial"], other.obsm["spatial"])
