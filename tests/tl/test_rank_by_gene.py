from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from anndata import AnnData

import nichekd as nk
from nichekd.tl import RankByGeneSettings

FAST = RankByGeneSettings(
    n_out=8, max_epochs=1, min_steps=150, batch_size=64, n_genes=40, learning_rate=3e-3, validation=0.2, margin=5.0
)
QUICK: dict[str, Any] = {"use_rep": "X_image", "fit": FAST, "momentum": 0.9}
TINY = replace(FAST, min_steps=3, validation=0.0)
SHORT = QUICK | {"fit": replace(FAST, min_steps=12)}  # long enough to choose among weights


def section(n: int = 400, seed: int = 0) -> AnnData:
    """Cells whose image features hold the expression, and as many loud, meaningless dimensions."""
    adata = nk.datasets.simulate(n, K=3, seed=seed, image=False)["table"]
    nk.pp.split(adata, mpp=0.25, crop_px=32)
    nk.pp.neighborhoods(adata, radius=45)
    nk.pp.smooth_expression(adata)
    rng = np.random.default_rng(seed)
    x = adata.layers["smoothed"].toarray()
    signal = (x - x.mean(0)) @ np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:4].T
    loud = rng.normal(size=(n, 4)) * 1.5 * signal.std()
    mixing = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0]
    adata.obsm["X_image"] = (np.c_[signal, loud] @ mixing).astype(np.float32)
    return adata


@pytest.fixture(scope="module")
def base() -> AnnData:
    return section()


@pytest.fixture
def cells(base) -> AnnData:
    return base.copy()


@pytest.fixture(scope="module")
def trained(base):
    adata = base.copy()
    model = nk.tl.rank_by_gene(adata, **QUICK)
    nk.tl.embed_histology(adata, model, use_rep="X_image")
    return adata, model


@pytest.fixture(scope="module")
def short(base) -> str:
    """Fingerprint of a short training, for others to be compared with."""
    return nk.tl.rank_by_gene(base.copy(), **SHORT).fingerprint


def agreement(adata, key: str, **kwargs) -> float:
    return nk.tl.rank_agreement(adata, a=key, b="smoothed", n_triplets=20_000, **kwargs)["agreement"].item()


def test_held_out_order_follows_the_genes(trained):
    """Planted: the features know it, but their own order does not show it."""
    adata, _ = trained
    raw, aligned = agreement(adata, "X_image"), agreement(adata, "X_rank_by_gene")
    assert aligned > raw + 0.03


def test_shuffled_pairs_teach_nothing(base):
    adata = base.copy()
    train = np.flatnonzero(adata.obs["split"] == "train")
    order = np.random.default_rng(0).permutation(train)
    smoothed = adata.layers["smoothed"].copy().tolil()
    smoothed[train] = adata.layers["smoothed"][order]
    shuffled = adata.copy()
    shuffled.layers["smoothed"] = smoothed.tocsr()
    model = nk.tl.rank_by_gene(shuffled, **QUICK)
    nk.tl.embed_histology(adata, model, use_rep="X_image")
    assert agreement(adata, "X_rank_by_gene") < agreement(adata, "X_image") + 0.03


def test_held_back_cells_are_judged_on_the_scales_that_are_trained():
    """Features that know a slide's order and nothing of what sets the slides apart."""
    from nichekd.tl._rank_by_gene_data import FeatureViews, Task
    from nichekd.tl._rank_by_gene_fit import HeldBack

    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    library = np.repeat([0, 1], 20)
    target = x + 50 * library[:, None].astype(np.float32)
    task = Task(FeatureViews(x, torch.zeros(3), 0.0), target, target, np.zeros((40, 2)), library)
    found = {}
    for scales in (("slide",), ("across",), ("slide", "across")):
        check = HeldBack(task, np.arange(40), scales, np.random.default_rng(0))
        check.look(SimpleNamespace(teacher=torch.nn.Identity()), torch.device("cpu"))
        found[scales] = check.last
    assert found["slide",] == pytest.approx(1, abs=1e-3)
    assert found["across",] < 0.8
    assert found["slide", "across"] == pytest.approx((found["slide",] + found["across",]) / 2, abs=0.01)


def test_a_slide_whose_cells_express_alike_does_not_judge(cells):
    """Its agreement would be NaN, and no weights better than those at the start."""
    cells.obs["slide"] = np.where(np.arange(400) % 2, "left", "right")
    smoothed = cells.layers["smoothed"].toarray()
    smoothed[cells.obs["slide"] == "left"] = 1
    cells.layers["smoothed"] = smoothed
    options = QUICK | {"library_key": "slide", "scales": "slide", "fit": replace(FAST, min_steps=30)}
    with pytest.warns(UserWarning, match="held-back cells of 'left' all express the same"):
        model = nk.tl.rank_by_gene(cells, **options)
    assert np.isfinite(model.history["validation_agreement"]).all()


def test_what_is_recorded(trained):
    adata, model = trained
    entry = adata.uns["nichekd"]["rank_by_gene"]
    assert entry["rank_loss"] == "hinge"
    assert entry["n_genes"] == 40
    assert {"train_loss", "contrastive", "rank", "distill", "validation_agreement"} < set(entry["history"])
    assert model.config.n_features == 8
    assert len(model.config.genes) == 40
    assert not any(parameter.requires_grad for parameter in model.branch.parameters()) or not model.training
    assert adata.obsm["X_rank_by_gene"].shape == (400, 8)
    assert adata.obsm["X_rank_by_gene"].dtype == np.float32
    about = adata.uns["nichekd"]["features"]["X_rank_by_gene"]
    assert about["fingerprint"] == model.fingerprint


def test_same_seed_same_model_and_the_users_random_state_stays(cells, short):
    before = torch.get_rng_state()
    assert nk.tl.rank_by_gene(cells, **SHORT).fingerprint == short
    assert torch.equal(before, torch.get_rng_state())
    assert nk.tl.rank_by_gene(cells, seed=1, **SHORT).fingerprint != short


def test_test_cells_play_no_part(cells, short):
    test = np.flatnonzero(cells.obs["split"] == "test")
    cells.obsm["X_image"][test] = 100
    smoothed = cells.layers["smoothed"].tolil()
    smoothed[test] = 3
    cells.layers["smoothed"] = smoothed.tocsr()
    assert nk.tl.rank_by_gene(cells, **SHORT).fingerprint == short


def test_saved_and_embedded_on_a_slide_without_genes(trained, tmp_path):
    adata, model = trained
    slide = AnnData(obsm={"X_image": adata.obsm["X_image"], "spatial": adata.obsm["spatial"]})
    loaded = nk.models.AlignedEncoder.load(model.save(tmp_path / "model"))
    nk.tl.embed_histology(slide, loaded, use_rep="X_image")
    assert np.array_equal(slide.obsm["X_rank_by_gene"], adata.obsm["X_rank_by_gene"])
    slide.write_h5ad(tmp_path / "slide.h5ad")
    again = anndata.read_h5ad(tmp_path / "slide.h5ad")
    assert np.array_equal(again.obsm["X_rank_by_gene"], adata.obsm["X_rank_by_gene"])


def test_cells_are_rows_not_names(cells, short):
    """Spots of two slides may have the same name; nothing is looked up by it."""
    cells.obs_names = [f"spot{i % 7}" for i in range(cells.n_obs)]
    assert nk.tl.rank_by_gene(cells, **SHORT).fingerprint == short


@pytest.mark.parametrize(
    "options",
    [
        {"rank_loss": "soft_rank"},
        {"rank_loss": "published"},
        {"rank_weight": 0, "distill_weight": 0},
        {"scales": ("neighborhood", "slide")},
        {"scales": "across"},
        {"fit": replace(TINY, queue_size=100, accumulate=2, dropout=0.1)},
        {"genes": ["gene_0", "gene_3", "gene_7", "gene_5", "gene_9"]},
        {"layer": "counts"},
    ],
)
def test_every_option_trains(cells, options):
    cells.layers["counts"] = cells.X
    if "genes" in options:
        options = options | {"genes": list(cells.var_names[[0, 3, 7, 5, 9]])}
    model = nk.tl.rank_by_gene(cells, use_rep="X_image", **{"fit": TINY, **options})
    assert np.isfinite(model.history["train_loss"]).all()
    if "genes" in options:
        assert model.config.genes == tuple(options["genes"])


def test_slides_side_by_side(cells):
    cells.obs["slide"] = np.where(np.arange(400) % 2, "left", "right")
    model = nk.tl.rank_by_gene(
        cells, use_rep="X_image", library_key="slide", scales=("neighborhood", "slide", "across"), fit=TINY
    )
    assert model.config.training["scales"] == ["neighborhood", "slide", "across"]


def test_cells_that_express_nothing_are_left_out(cells, caplog):
    train = np.flatnonzero(cells.obs["split"] == "train")[:3]
    smoothed = cells.layers["smoothed"].tolil()
    smoothed[train] = 0
    cells.layers["smoothed"] = smoothed.tocsr()
    with caplog.at_level(logging.WARNING, "nichekd"):
        nk.tl.rank_by_gene(cells, use_rep="X_image", fit=TINY)
    assert "3 of" in caplog.text
    assert "express no gene" in caplog.text
    n_train = int((cells.obs["split"] == "train").sum())
    assert cells.uns["nichekd"]["rank_by_gene"]["n_train"] == n_train - 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": 0}, ValueError, r"temperature=0; it has to be above 0"),
        ({"temperature": -1.0}, ValueError, r"temperature=-1"),
        ({"temperature": float("nan")}, ValueError, r"temperature=nan"),
        ({"momentum": 1.0}, ValueError, r"momentum=1.0; it has to be in \[0, 1\)"),
        ({"momentum": -0.1}, ValueError, r"momentum=-0.1"),
        ({"rank_loss": "hing"}, ValueError, r"rank_loss='hing'; choose one of \['hinge'"),
        ({"rank_weight": -1}, ValueError, "rank_weight=-1"),
        ({"distill_weight": float("inf")}, ValueError, "distill_weight=inf"),
        ({"scales": ()}, ValueError, r"scales=\(\)"),
        ({"scales": ("organ",)}, ValueError, r"name one or more of \['neighborhood'"),
        ({"fit": replace(TINY, batch_size=3)}, ValueError, "batch_size=3"),
        ({"genes": ["gene_0", "Xist", "Tp53"]}, KeyError, r"genes of the panel are missing: \[.*'Xist', 'Tp53'\]"),
        ({"genes": []}, ValueError, "names no gene"),
        ({"layer": "norm"}, KeyError, r"layers\['norm'\] is missing; layers has \['smoothed'\]"),
        ({"use_rep": "X_none"}, KeyError, r"obsm\['X_none'\] is missing.*histology_features"),
        ({"library_key": "slide"}, KeyError, r"obs\['slide'\] is missing"),
        ({"split_key": "fold"}, KeyError, r"obs\['fold'\] is missing"),
        ({"encoder": "color"}, ValueError, "Give one of them"),
        ({"encoder": "color", "use_rep": None}, TypeError, "an AnnData has no image"),
    ],
)
def test_bad_input(cells, options, error, message):
    with pytest.raises(error, match=message):
        nk.tl.rank_by_gene(cells, **{"use_rep": "X_image", "fit": TINY, **options})


def test_a_gene_named_twice(cells):
    gene = cells.var_names[0]
    with pytest.raises(ValueError, match="more than once"):
        nk.tl.rank_by_gene(cells, use_rep="X_image", genes=[gene, gene], fit=TINY)


def test_fewer_than_four_cells_of_a_slide(cells):
    train = np.flatnonzero(cells.obs["split"] == "train")
    cells.obs["slide"] = "one"
    cells.obs.iloc[train[:3], cells.obs.columns.get_loc("slide")] = "two"
    with pytest.raises(ValueError, match=r"Too few cells to put in order: \{'two': 3\}; each slide needs 4"):
        nk.tl.rank_by_gene(cells, use_rep="X_image", library_key="slide", fit=TINY)


def test_rows_without_direction(cells):
    train = np.flatnonzero(cells.obs["split"] == "train")
    cells.obsm["X_image"][train[:2]] = 0
    with pytest.raises(ValueError, match=r"obsm\['X_image'\] is 0 throughout for 2 of"):
        nk.tl.rank_by_gene(cells, use_rep="X_image", fit=TINY)
    cells.obsm["X_image"][train[:2]] = np.nan
    with pytest.raises(ValueError, match=r"obsm\['X_image'\] is NaN"):
        nk.tl.rank_by_gene(cells, use_rep="X_image", fit=TINY)


def test_embedding_needs_a_model_and_its_features(cells, trained):
    model = trained[1]
    with pytest.raises(TypeError, match=r"model is a str.*AlignedEncoder\.load"):
        nk.tl.embed_histology(cells, "folder")
    without = cells.copy()
    del without.obsm["X_image"]
    with pytest.raises(KeyError, match=r"trained on obsm\['X_image'\].*use_rep=. obsm has"):
        nk.tl.embed_histology(without, model)
    with pytest.raises(KeyError, match="X_none"):
        nk.tl.embed_histology(cells, model, use_rep="X_none")
    with pytest.raises(ValueError, match=r"has 2 features; the model reads 8"):
        nk.tl.embed_histology(cells, model, use_rep="spatial")
    cells.obsm["X_image"][0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        nk.tl.embed_histology(cells, model, use_rep="X_image")


@pytest.fixture(scope="module")
def slide():
    """300 cells with an image, and colour features of it."""
    sdata = nk.datasets.simulate(300, K=2, seed=0, mpp=0.5)
    nk.pp.histology_features(sdata, encoder="color", crop_px=32)
    nk.pp.neighborhoods(sdata, radius=45)
    nk.pp.smooth_expression(sdata)
    return sdata


def test_a_new_slide_gets_features_of_the_models_encoder(slide, tmp_path):
    import spatialdata

    model = nk.tl.rank_by_gene(slide, fit=TINY)
    assert model.config.features["encoder"] == "color"
    other = nk.datasets.simulate(300, K=2, seed=1, mpp=0.5)
    done = nk.tl.embed_histology(other, model, copy=True)
    assert "X_color" in done["table"].obsm
    assert "X_rank_by_gene" not in other["table"].obsm
    done.write(tmp_path / "slide.zarr")
    again = spatialdata.read_zarr(tmp_path / "slide.zarr")["table"]
    assert np.array_equal(again.obsm["X_rank_by_gene"], done["table"].obsm["X_rank_by_gene"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"fingerprint": "x"}, "has fingerprint 'x'"), ({"mpp": 2.0}, "at 2 µm per pixel"), ({"crop_px": 9}, "crop_px 9")],
)
def test_features_of_another_kind_are_refused(slide, changed, message):
    model = nk.tl.rank_by_gene(slide, fit=TINY)
    other = slide["table"].copy()
    other.uns["nichekd"]["features"]["X_color"].update(changed)
    with pytest.raises(ValueError, match=message):
        nk.tl.embed_histology(other, model, use_rep="X_color")


def build_mean() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, stride=2), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
    )  # fmt: skip


def test_the_encoder_itself_is_trained_and_travels_along(slide, tmp_path, monkeypatch):
    from nichekd.models._architectures import _ARCHITECTURES

    monkeypatch.setitem(_ARCHITECTURES, "test_conv", build_mean)
    torch.manual_seed(0)
    start = nk.models.Encoder("conv", build_mean(), architecture="test_conv")
    before = start.fingerprint
    fit = replace(TINY, batch_size=16, accumulate=2, backbone_learning_rate=1e-3)
    model = nk.tl.rank_by_gene(slide, encoder=start, crop_px=32, momentum=0.5, fit=fit)
    assert start.fingerprint == before, "what was handed in is left alone"
    assert model.encoder is not None
    assert model.encoder.fingerprint not in {before, None}
    assert not any(p.requires_grad for p in model.encoder.module.parameters())
    statistics = {name: value for name, value in model.encoder.module.state_dict().items() if "running" in name}
    assert all(torch.equal(value, start.module.state_dict()[name]) for name, value in statistics.items())

    loaded = nk.models.AlignedEncoder.load(model.save(tmp_path / "model"))
    other = nk.datasets.simulate(300, K=2, seed=1, mpp=0.5)
    nk.tl.embed_histology(other, loaded)
    assert other["table"].obsm["X_rank_by_gene"].shape == (300, 8)
    assert "X_rank_by_gene_encoder" in other["table"].obsm


def test_crops_that_reach_into_the_test_strip_are_warned_of():
    sdata = nk.datasets.simulate(300, K=2, seed=0, mpp=0.5)
    nk.pp.split(sdata, crop_px=8)
    start = nk.models.Encoder("conv", build_mean())
    with pytest.warns(UserWarning, match=r"some of the same tissue is in both.*crop_px=32") as warned:
        nk.tl.rank_by_gene(sdata, encoder=start, crop_px=32, fit=TINY)
    assert warned[0].filename == __file__


def test_the_model_leaves_the_device_after_an_error(slide, monkeypatch):
    model = nk.tl.rank_by_gene(slide, fit=TINY)
    moves = []
    monkeypatch.setattr(model, "to", lambda where: moves.append(str(where)) or model)

    def broken(rows):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "forward", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        nk.tl.embed_histology(slide, model, device="cpu", copy=True)
    assert len(moves) == 2
    assert moves[-1] == "cpu"


def test_missing_parts_of_a_student_are_found_by_it(slide):
    """The niche student reads the aligned features as any other."""
    model = nk.tl.rank_by_gene(slide, fit=TINY)
    sdata = nk.tl.embed_histology(slide, model, copy=True)
    student = nk.tl.distill(
        sdata, use_rep="X_rank_by_gene", teacher="niche_true", fit=nk.tl.FitSettings(max_epochs=1, min_steps=1)
    )
    assert student.config.features["encoder"] == "rank_by_gene"
    nk.tl.predict_niches(sdata, student)
