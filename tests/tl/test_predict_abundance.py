from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from anndata import AnnData

import nichekd as nk
from nichekd.tl import CucaSettings

FEW = CucaSettings(max_epochs=2, min_steps=0, batch_size=32, width=16, gene_width=16)


@pytest.fixture(scope="module")
def trained():
    """A slide of 150 cells, and a model that was trained on its colours."""
    sdata = nk.datasets.simulate(n_cells=150, K=2, seed=0, mpp=0.5)
    nk.pp.neighborhood_composition(sdata, cell_type_key="cell_type", radius=12)
    nk.pp.histology_features(sdata, encoder="color", crop_px=32)
    return sdata, nk.tl.cuca(sdata, abundance_key="cell_abundance", use_rep="X_color", fit=FEW)


@pytest.fixture
def new_slide():
    """Another slide, without expression or types."""
    sdata = nk.datasets.simulate(n_cells=80, K=2, seed=5, mpp=0.5)
    bare = AnnData(obs=sdata["table"].obs[[]], obsm={"spatial": sdata["table"].obsm["spatial"]})
    return nk.io.paired(bare, np.asarray(sdata["he"].data), mpp=0.5)


def with_features(model, **changed):
    """The model, as if it had been trained on features of another record."""
    config = replace(model.config, features=model.config.features | changed)
    other = nk.models.AbundanceModel(config)
    other.load_state_dict(model.state_dict())
    return other.eval()


def test_h_and_e_alone_is_enough(trained, new_slide, tmp_path):
    model = nk.models.AbundanceModel.load(trained[1].save(tmp_path / "model"))
    nk.tl.predict_abundance(new_slide, model)
    table = new_slide["table"]
    assert table.obsm["abundance"].columns.tolist() == list(model.types)
    assert (table.obsm["abundance"].to_numpy() >= 0).all()
    assert table.obsm["abundance"].index.equals(table.obs_names)
    assert table.obsm["X_cuca"].shape == (80, 16)
    assert table.uns["nichekd"]["features"]["X_color"]["crop_px"] == 32
    assert table.uns["nichekd"]["predict_abundance"]["use_rep"] == "X_color"


def test_same_features_same_abundances(trained):
    sdata, model = trained
    again = nk.tl.predict_abundance(sdata, model, copy=True)
    expected = sdata["table"].obsm["abundance"].to_numpy()
    assert np.array_equal(again["table"].obsm["abundance"].to_numpy(), expected)


def test_result_survives_writing(trained, new_slide, tmp_path):
    import spatialdata

    nk.tl.predict_abundance(new_slide, trained[1])
    new_slide.write(tmp_path / "slide.zarr")
    again = spatialdata.read_zarr(tmp_path / "slide.zarr")["table"]
    assert np.array_equal(again.obsm["abundance"].to_numpy(), new_slide["table"].obsm["abundance"].to_numpy())


def test_other_keys(trained, new_slide):
    nk.tl.predict_abundance(new_slide, trained[1], key_added="old")
    assert {"old", "X_cuca_old"} <= set(new_slide["table"].obsm)
    assert "abundance" not in new_slide["table"].obsm


def test_order_of_cells_does_not_matter(trained):
    sdata, model = trained
    table = sdata["table"]
    turned = table[::-1].copy()
    nk.tl.predict_abundance(turned, model)
    expected = table.obsm["abundance"].loc[turned.obs_names].to_numpy()
    assert turned.obsm["abundance"].to_numpy() == pytest.approx(expected, abs=1e-5)


def test_features_of_another_encoder(trained, new_slide):
    _, model = trained
    nk.pp.histology_features(new_slide, encoder="random", crop_px=32)
    with pytest.raises(ValueError, match=r"encoder 'random'; the model was trained on 'color'.*Leave use_rep out"):
        nk.tl.predict_abundance(new_slide, model, use_rep="X_random")


def test_features_of_other_crops(trained, new_slide):
    _, model = trained
    nk.pp.histology_features(new_slide, encoder="color", crop_px=48)
    with pytest.raises(ValueError, match="crop_px 48; the model was trained on 32"):
        nk.tl.predict_abundance(new_slide, model, use_rep="X_color")
    nk.pp.histology_features(new_slide, encoder="color", crop_px=32, mpp=1.0)
    with pytest.raises(ValueError, match="made at 1 µm per pixel; the model was trained at 0.5"):
        nk.tl.predict_abundance(new_slide, model, use_rep="X_color")


def test_features_of_another_length(trained, new_slide):
    new_slide["table"].obsm["X_own"] = np.ones((80, 7))
    with pytest.raises(ValueError, match="has 7 features; the model reads 42"):
        nk.tl.predict_abundance(new_slide, trained[1], use_rep="X_own")


def test_weights_of_another_machine(trained, new_slide):
    """The path was right where the model was trained; here the encoder is found by its name."""
    model = with_features(trained[1], weights="/elsewhere/color.safetensors")
    nk.tl.predict_abundance(new_slide, model)
    assert "X_color" in new_slide["table"].obsm


def test_other_weights_are_found_out_before_anything_is_encoded(trained, new_slide):
    model = with_features(trained[1], fingerprint="0123456789abcdef")
    with pytest.raises(
        ValueError, match=r"model reads features of encoder 'color' with other weights.*0123456789abcdef"
    ):
        nk.tl.predict_abundance(new_slide, model)
    assert not new_slide["table"].obsm.keys() - {"spatial"}
    model = with_features(trained[1], encoder="gone")
    with pytest.raises(ValueError, match=r"encoder 'gone', which is not here.*use_rep="):
        nk.tl.predict_abundance(new_slide, model)


def test_missing_features(trained, new_slide):
    with pytest.raises(KeyError, match=r"obsm\['X_none'\] is missing"):
        nk.tl.predict_abundance(new_slide, trained[1], use_rep="X_none")
    with pytest.raises(TypeError, match="nk.io.paired"):
        nk.tl.predict_abundance(new_slide["table"], trained[1])


def test_no_cells(trained):
    empty = trained[0]["table"][:0].copy()
    with pytest.raises(ValueError, match="no cells or spots"):
        nk.tl.predict_abundance(empty, trained[1])


def test_not_a_model(trained):
    with pytest.raises(TypeError, match="is a dict.*AbundanceModel.load"):
        nk.tl.predict_abundance(trained[0], {})


def test_normalised_stain_is_repeated(new_slide):
    sdata = nk.datasets.simulate(300, K=2, seed=0)
    nk.pp.neighborhood_composition(sdata, cell_type_key="cell_type", radius=15)
    nk.pp.histology_features(sdata, encoder="color", crop_px=32, stain="reinhard")
    few = {"abundance_key": "cell_abundance", "use_rep": "X_color"}
    model = nk.tl.cuca(sdata, **few, fit=nk.tl.CucaSettings(max_epochs=1, min_steps=0))
    nk.tl.predict_abundance(new_slide, model)
    assert new_slide["table"].uns["nichekd"]["features"]["X_color"]["stain"] == "reinhard"
    nk.pp.histology_features(new_slide, encoder="color", crop_px=32)
    with pytest.raises(ValueError, match=r"has stain None; the model was trained on 'reinhard'"):
        nk.tl.predict_abundance(new_slide, model, use_rep="X_color")
