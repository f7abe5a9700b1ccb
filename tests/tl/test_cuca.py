from __future__ import annotations

import sys
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from spatialdata import SpatialData

import nichekd as nk
from nichekd.models import AbundanceModel, Encoder, LoraSettings, register_encoder
from nichekd.models._encoder_zoo import build_timm
from nichekd.models._lora import MARK
from nichekd.tl import CucaSettings
from nichekd.tl._batches import validation_part
from nichekd.tl._cuca_inputs import log_normalized
from nichekd.tl._cuca_setup import feature_rows
from nichekd.tl._loop import seeded

QUICK = CucaSettings(max_epochs=8, min_steps=0, batch_size=32, width=32, gene_width=32, learning_rate=3e-3)
BRIEF = replace(QUICK, max_epochs=2, batch_size=64, width=16, gene_width=16)  # where it need not have learnt anything


def planted(n=300, seed=0):
    """Spots on a grid whose image features tell of four types, and so does expression."""
    rng = np.random.default_rng(seed)
    abundance = rng.gamma(1.0, [4.0, 2.0, 1.0, 0.2], (n, 4))
    features = abundance @ rng.normal(size=(4, 12)) / 2 + rng.normal(size=(n, 12)) / 2
    counts = rng.poisson(abundance @ rng.gamma(1, 2, (4, 20)) + 0.2)
    names = [f"spot{i}" for i in range(n)]
    side = int(np.ceil(np.sqrt(n)))
    xy = 100.0 * np.column_stack([np.arange(n) % side, np.arange(n) // side])
    split = np.where(xy[:, 1] >= 0.75 * xy[:, 1].max(), "test", "train")
    obs = pd.DataFrame({"split": pd.Categorical(split), "slide": np.resize(list("abc"), n)}, index=names)
    adata = AnnData(counts.astype(np.float32), obs=obs, obsm={"spatial": xy, "X_image": features.astype(np.float16)})
    adata.var_names = [f"gene{i}" for i in range(20)]
    adata.obsm["cell_abundance"] = pd.DataFrame(abundance, index=names, columns=["T", "B", "tumour", "rare"])
    return adata


@pytest.fixture
def spots():
    return planted()


def train(adata, **options):
    options = {"abundance_key": "cell_abundance", "use_rep": "X_image", "fit": BRIEF} | options
    return nk.tl.cuca(adata, **options)


def mean_pearson(adata, **options):
    table = nk.tl.abundance_agreement(adata, truth="cell_abundance", prediction="abundance", subset="test", **options)
    return table["pearson"].mean()


@pytest.mark.parametrize("align", ["infonce", "rmse", "cosine", None])
def test_it_learns_what_images_tell(spots, align):
    model = train(spots, align=align, fit=QUICK)
    assert mean_pearson(spots) > 0.6
    assert model.types == ("T", "B", "tumour", "rare")
    assert len(model.config.genes) == (0 if align is None else 20)


@pytest.mark.filterwarnings("ignore:.*constant truth or prediction")
def test_pairs_that_were_shuffled_teach_nothing(spots):
    test = (spots.obs["split"] == "test").to_numpy()
    level = spots.obsm["cell_abundance"][test].std().to_numpy()  # error of the best constant

    def error():
        train(spots, fit=QUICK)
        table = nk.tl.abundance_agreement(spots, truth="cell_abundance", prediction="abundance", subset="test")
        return (table["RMSE"].to_numpy() / level).mean()

    assert error() < 0.9
    trained = np.flatnonzero(~test)
    spots.obsm["X_image"][trained] = spots.obsm["X_image"][np.random.default_rng(0).permutation(trained)]
    assert error() > 1  # worse than that constant


def test_what_is_written(spots, tmp_path):
    model = train(spots)
    table = spots.obsm["abundance"]
    assert table.columns.tolist() == ["T", "B", "tumour", "rare"]
    assert table.index.equals(spots.obs_names)
    assert (table.to_numpy() >= 0).all()
    assert spots.obsm["X_cuca"].shape == (300, 16)
    assert (spots.obsm["X_cuca"] >= 0).all()
    noted = spots.uns["nichekd"]["cuca"]
    assert noted["align"] == "infonce"
    assert len(noted["history"]["validation_pearson"]) == len(model.history["epoch"])
    spots.write_h5ad(tmp_path / "spots.h5ad")
    again = anndata.read_h5ad(tmp_path / "spots.h5ad")
    assert np.array_equal(again.obsm["abundance"].to_numpy(), table.to_numpy())
    assert np.array_equal(again.obsm["X_cuca"], spots.obsm["X_cuca"])


def test_same_seed_same_model(spots):
    first, again, other = (train(spots.copy(), seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_users_random_numbers_stay(spots):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train(spots)
    assert torch.equal(torch.rand(2), expected)


def test_the_users_random_numbers_on_gpus_stay(spots, monkeypatch):
    """Where CUDA is in use, torch.manual_seed would leave its generators at our seed."""
    states = {0: torch.tensor([1]), 1: torch.tensor([2])}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[int(device)])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: back.update({int(device): state}))
    back = {}
    with seeded(0):
        pass
    assert back == states


def test_test_spots_are_not_looked_at(spots):
    changed = spots.copy()
    test = (spots.obs["split"] == "test").to_numpy()
    changed.X[test] = 7
    changed.obsm["cell_abundance"].loc[test] = 99.0
    changed.obsm["X_image"][test] = 0
    one, other = train(spots).state_dict(), train(changed).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_last_batch_of_one_is_none(spots):
    fit = CucaSettings(max_epochs=1, min_steps=0, batch_size=2, validation=0, width=8, gene_width=8)
    small = spots[:3].copy()
    small.obs["split"] = "train"
    train(small, fit=fit)
    assert np.isfinite(small.obsm["abundance"].to_numpy()).all()


def test_components_are_read_as_well_as_features(spots):
    model = train(spots, fit=replace(QUICK, n_components=6), align=None)
    assert model.config.network.n_components == 6
    assert mean_pearson(spots) > 0.6
    rows = feature_rows(spots.obsm["X_image"], model)
    assert rows.rows.shape == (300, 6), "made once, not in each epoch"
    predicted = rows.predict(model, np.arange(300))
    assert predicted == pytest.approx(spots.obsm["abundance"].to_numpy(), rel=1e-4, abs=1e-5)


def test_there_are_no_more_components_than_features(spots):
    assert train(spots, fit=replace(BRIEF, n_components=99)).config.network.n_components == 12


def test_published_settings_run(spots):
    model = train(spots, align="rmse", fit=CucaSettings.published(max_epochs=2))
    assert model.config.network.gene_width == 1024
    assert torch.equal(model.network.type_scale, torch.ones(4))


def test_several_slides_one_validates(spots, caplog):
    caplog.set_level("INFO", "nichekd")
    train(spots, library_key="slide")
    assert "validates; 2 others train" in caplog.text
    assert (
        spots.uns["nichekd"]["cuca"]["n_validation"]
        == ((spots.obs["split"] == "train") & (spots.obs["slide"] == "a")).sum()
    )


def test_the_best_epoch_is_kept_without_refit(spots):
    model = train(spots, fit=replace(QUICK, refit=False, patience=100))
    scores = model.history["validation_pearson"]
    assert len(scores) == 8
    assert mean_pearson(spots) > 0.5


@pytest.mark.parametrize("refit", [True, False])
def test_a_refit_trains_on_the_margin_around_the_squares_too(spots, refit):
    spots.obsm["spatial"] *= 0.3  # so that the margin holds some
    cells = np.flatnonzero(spots.obs["split"] == "train")
    fitted, held_back = validation_part(spots.obsm["spatial"], cells, share=0.1, margin=50.0)
    margin = np.setdiff1d(cells, np.concatenate([fitted, held_back]))
    assert len(margin) > 10
    changed = spots.copy()
    changed.obsm["cell_abundance"].iloc[margin] *= 3
    # nothing but the training itself reads abundances: none are scaled
    fit = replace(BRIEF, scale=False, refit=refit)
    one, other = (train(adata, fit=fit).network.state_dict() for adata in (spots, changed))
    assert all(torch.equal(one[name], other[name]) for name in one) is not refit


def test_genes_are_those_expressed_most(spots):
    model = train(spots, n_genes=5)
    total = np.asarray(spots[spots.obs["split"] == "train"].X.sum(axis=0)).ravel()
    assert set(model.config.genes) == set(spots.var_names[np.argsort(-total)[:5]])


def test_log_normalization_by_hand():
    adata = AnnData(np.array([[1.0, 3.0], [2.0, 0.0], [0.0, 0.0]]))
    genes = log_normalized(adata, None, np.array([True, True, True]), 2)
    # totals 4, 2 and 0; the median of those above 0 is 3
    assert genes.values.toarray() == pytest.approx(np.log1p([[0.75, 2.25], [3, 0], [0, 0]]))
    assert genes.measured.tolist() == [True, True, False]


def test_spots_without_counts_don_t_train(spots, caplog):
    spots.X[:4] = 0
    train(spots)
    assert "4 of" in caplog.text
    assert "have no counts" in caplog.text


def test_counts_are_not_needed_without_alignment(spots):
    bare = AnnData(obs=spots.obs, obsm=dict(spots.obsm))
    train(bare, align=None)
    assert "abundance" in bare.obsm


def test_types_that_never_vary_are_predicted_as_they_are(spots):
    spots.obsm["cell_abundance"]["none"] = 0.0
    train(spots)
    with pytest.warns(UserWarning, match=r"\d of 5 rows have a constant"):
        table = nk.tl.abundance_agreement(spots, truth="cell_abundance", prediction="abundance", subset="test")
    assert table.set_index("cell_type")["pearson"].isna().to_dict()["none"]


# bad input


def test_missing_keys_say_what_there_is(spots):
    with pytest.raises(
        KeyError, match=r"obsm\['q05'\] is missing; obsm has .*cell_abundance.*neighborhood_composition"
    ):
        train(spots, abundance_key="q05")
    with pytest.raises(KeyError, match=r"obsm\['X_uni2'\] is missing.*X_image.*histology_features"):
        train(spots, use_rep="X_uni2")
    with pytest.raises(TypeError, match="no image"):
        nk.tl.cuca(spots, abundance_key="cell_abundance")
    with pytest.raises(KeyError, match=r"layers\['counts'\] is missing"):
        train(spots, layer="counts")
    with pytest.raises(KeyError, match=r"obs\['patient'\] is missing"):
        train(spots, library_key="patient")
    with pytest.raises(KeyError, match=r"obs\['held'\] is missing"):
        train(spots, validation_key="held")
    with pytest.raises(KeyError, match=r"obs\['strips'\] is missing"):
        train(spots, split_key="strips")


def test_rows_of_other_spots(spots):
    spots.obsm["cell_abundance"].index = spots.obs_names[::-1]
    with pytest.raises(ValueError, match=r"'cell_abundance', is not aligned with the table.*loc\[adata.obs_names\]"):
        train(spots)


def test_names_that_repeat(spots):
    spots.obsm["cell_abundance"].columns = ["T", "B", "T", "rare"]
    with pytest.raises(ValueError, match=r"several columns of the types \['T'\]"):
        train(spots)
    spots = planted()
    spots.obs_names = ["same"] * 300
    with pytest.raises(ValueError, match="299 of 300 obs_names repeat others"):
        train(spots)
    spots = planted()
    spots.var_names = ["gene"] * 20
    with pytest.raises(ValueError, match="19 of 20 var_names repeat"):
        train(spots)


def test_abundances_that_are_none(spots):
    spots.obsm["cell_abundance"].iloc[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite for 1 of 300"):
        train(spots)
    spots.obsm["cell_abundance"].iloc[3, 1] = -0.5
    with pytest.raises(ValueError, match="negative, down to -0.5, for 1 of 300"):
        train(spots)
    spots.obsm["cell_abundance"] = spots.obsm["cell_abundance"].astype(str) + "x"
    with pytest.raises(TypeError, match="not numbers"):
        train(spots)
    spots.obsm["cell_abundance"] = np.zeros((300, 0))
    with pytest.raises(ValueError, match=r"has shape \(300, 0\)"):
        train(spots)
    spots.obsm["cell_abundance"] = np.ones((300, 2))
    with pytest.raises(ValueError, match="All 2 types are constant over the"):
        train(spots)


def test_no_spots(spots):
    with pytest.raises(ValueError, match="no cells or spots"):
        train(spots[:0].copy())


def test_one_training_spot(spots):
    spots.obs["split"] = ["train"] + ["test"] * 299
    with pytest.raises(ValueError, match="1 training cells or spots are not enough"):
        train(spots)


def test_features_with_nan(spots):
    spots.obsm["X_image"][0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite for 1 of 300"):
        train(spots)


def test_expression_that_is_no_counts(spots):
    spots.layers["counts"] = spots.X.copy()
    spots.X = np.log1p(spots.X)
    with pytest.raises(ValueError, match=r"X holds .*layer='counts'"):
        train(spots)
    spots.layers["none"] = np.zeros(spots.shape)
    with pytest.raises(ValueError, match="None of the .* training cells has a count"):
        train(spots, layer="none")


def test_one_group_in_training_and_validation(spots):
    spots.obs["held"] = np.arange(300) % 5 == 0
    with pytest.raises(ValueError, match=r"\['a', 'b', 'c'\] of obs\['slide'\] both in training and in validation"):
        train(spots, library_key="slide", validation_key="held")
    spots.obs["held"] = spots.obs["slide"] == "b"
    train(spots, library_key="slide", validation_key="held")
    spots.obs["held"] = False
    with pytest.raises(ValueError, match="is False for all"):
        train(spots, validation_key="held")
    spots.obs["held"] = 1.5
    with pytest.raises(ValueError, match="has to be bool"):
        train(spots, validation_key="held")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"align": "clip"}, r"align='clip'; there are \['infonce', 'rmse', 'cosine'\]"),
        ({"loss_weights": (0.3, 0.6)}, "three numbers"),
        ({"loss_weights": (0, 0.6, 0.1)}, r"above 0\)"),
        ({"loss_weights": (1, -1, 0.1)}, "not negative"),
        ({"n_genes": 0}, "n_genes=0"),
        ({"encoder": Encoder("m", torch.nn.Flatten())}, "with lora= alone"),
    ],
)
def test_options_that_are_none(spots, options, says):
    with pytest.raises(ValueError, match=says):
        train(spots, **options)


# the encoder in the loop

LORA = LoraSettings(r=2, alpha=4, dropout=0.1, blocks=1)
FEW = CucaSettings(max_epochs=2, min_steps=0, batch_size=32, width=16, gene_width=16)


def tiny_vit():
    torch.manual_seed(0)
    module = build_timm("vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=2, num_heads=2)
    return Encoder("tiny", module, crop_px=32)


@pytest.fixture(scope="module")
def slide():
    """120 cells of a drawn slide, with a small ViT's features."""
    sdata = nk.datasets.simulate(n_cells=120, K=2, seed=0, mpp=0.5)
    nk.pp.neighborhood_composition(sdata, cell_type_key="cell_type", radius=12)
    nk.pp.histology_features(sdata, encoder=tiny_vit(), crop_px=32, precision="32")
    return sdata


def test_only_adapters_and_heads_change_bit_for_bit(slide):
    base = tiny_vit()
    before = {name: value.clone() for name, value in base.module.state_dict().items()}
    model = nk.tl.cuca(slide, abundance_key="cell_abundance", use_rep="X_tiny", lora=LORA, encoder=base, fit=FEW)
    assert all(torch.equal(value, before[name]) for name, value in base.module.state_dict().items())
    trained = model.encoder.module.state_dict()
    frozen = {name.replace(".base_layer", ""): value for name, value in trained.items() if MARK not in name}
    assert frozen.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in frozen.items())
    ups = [value for name, value in trained.items() if "lora_B" in name]
    assert len(ups) == 4
    assert all(value.any() for value in ups), "each adapter learnt something"


def test_a_trained_encoder_travels_as_adapters(slide, tmp_path):
    register_encoder("tiny", lambda weights: tiny_vit(), overwrite=True)
    model = nk.tl.cuca(slide, abundance_key="cell_abundance", use_rep="X_tiny", lora=LORA, fit=FEW)
    expected = slide["table"].obsm["abundance"].to_numpy()
    again = AbundanceModel.load(model.save(tmp_path / "model"))
    assert (tmp_path / "model" / "abundance.safetensors").stat().st_size < 60_000
    assert again.config.lora == LORA
    other = nk.tl.predict_abundance(slide, again, copy=True)
    assert other["table"].obsm["abundance"].to_numpy() == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ValueError, match="encoder of this model was trained along"):
        nk.tl.predict_abundance(slide, again, use_rep="X_tiny")
    with pytest.raises(TypeError, match="has no image"):
        nk.tl.predict_abundance(slide["table"].copy(), again)


def test_crops_come_from_the_image_of_the_features(slide):
    """Of two images that are both RGB, it is the recorded one."""
    from nichekd.tl._cuca_images import crop_reader

    sdata = SpatialData(
        images={"other": slide["he"], "he": slide["he"]}, shapes=dict(slide.shapes), tables=dict(slide.tables),
        attrs=slide.attrs,
    )  # fmt: skip
    described = sdata["table"].uns["nichekd"]["features"]["X_tiny"]
    assert described["image"] == "he"
    assert crop_reader(sdata, described, table_key="table").crop_px == 32
    with pytest.raises(ValueError, match="Name the H&E by image_key="):
        crop_reader(sdata, described | {"image": "elsewhere"}, table_key="table")


def test_lora_needs_an_image_and_known_features(slide, spots):
    with pytest.raises(KeyError, match="were not noted.*histology_features"):
        train(spots, lora=LORA)
    with pytest.raises(TypeError, match="has no image"):
        nk.tl.cuca(
            slide["table"].copy(), abundance_key="cell_abundance", use_rep="X_tiny", lora=LORA, encoder=tiny_vit()
        )


def test_lora_needs_a_vision_transformer(slide):
    sdata = nk.pp.histology_features(slide, encoder="color", crop_px=32, copy=True)
    with pytest.raises(ValueError, match="ColorStatistics has no transformer blocks"):
        nk.tl.cuca(sdata, abundance_key="cell_abundance", use_rep="X_color", lora=LORA)


def test_lora_without_peft(slide, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r'pip install "nichekd\[lora\]"'):
        nk.tl.cuca(slide, abundance_key="cell_abundance", use_rep="X_tiny", lora=LORA, encoder=tiny_vit(), fit=FEW)


def test_too_few_cells_to_select_by(spots):
    spots.obs["chosen"] = np.arange(len(spots)) == 0
    with pytest.raises(ValueError, match="True for 1 training cells; a correlation takes 3"):
        train(spots, validation_key="chosen")


def test_a_section_of_few_cells_does_not_validate(spots):
    spots.obs["slide"] = np.where(np.arange(len(spots)) < 2, "tiny", np.where(np.arange(len(spots)) % 2, "a", "b"))
    for seed in range(4):
        train(spots, library_key="slide", seed=seed)
        assert spots.uns["nichekd"]["cuca"]["n_validation"] > 20


@pytest.mark.parametrize("key", ["cell_abundance", "X_image", "spatial"])
def test_what_is_read_is_not_written_over(spots, key):
    with pytest.raises(ValueError, match=f"key_added='{key}' holds"):
        train(spots, key_added=key)


def test_names_that_no_file_can_hold(spots):
    spots.obsm["cell_abundance"] = spots.obsm["cell_abundance"].rename(columns={"T": "CD4/CD8"})
    with pytest.raises(ValueError, match=r"Types are named \['CD4/CD8'\]"):
        train(spots)
