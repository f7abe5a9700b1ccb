from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import nichekd as nk

FEW = {"max_epochs": 2}  # epochs; what is tested here is not how well scVI fits, but for one test


@pytest.fixture(autouse=True)
def no_progress(monkeypatch):
    monkeypatch.setattr(nk.settings, "progress", False)


@pytest.fixture(scope="module")
def simulated():
    return nk.datasets.simulate(200, K=3, n_genes=30, image=False)


@pytest.fixture
def sdata(simulated):
    sdata = nk.datasets.simulate(200, K=3, n_genes=30, image=False)
    sdata["table"].obs["split"] = np.where(np.arange(200) < 140, "train", "test")
    return sdata


@pytest.fixture
def adata(sdata):
    return sdata["table"]


@pytest.fixture(scope="module")
def trained(simulated, tmp_path_factory):
    """A model of another slide, as a folder."""
    folder = tmp_path_factory.mktemp("models") / "scvi"
    slide = nk.datasets.simulate(150, K=3, seed=9, n_genes=30, image=False)
    nk.pp.expression_features(slide, n_latent=4, save_model=folder, max_epochs=2)
    return folder


@pytest.fixture(scope="module")
def scvi(trained):  # loaded by then, and with it the warnings of the packages it loads
    import scvi

    return scvi


def user_model(scvi, adata, *, batch_key=None, trained=True, **arguments):
    """As a user would make it."""
    table = adata.copy()
    table.X = table.X.astype(np.float32)
    setup = {key: arguments.pop(key) for key in list(arguments) if key.endswith("_keys")}
    scvi.model.SCVI.setup_anndata(table, batch_key=batch_key, **setup)
    model = scvi.model.SCVI(table, n_latent=3, n_hidden=8, **arguments)
    model.is_trained_ = trained
    return model


class TestFit:
    def test_writes_a_latent_for_every_cell(self, sdata):
        assert nk.pp.expression_features(sdata, n_latent=5, **FEW) is None
        latent = sdata["table"].obsm["X_scVI"]
        assert latent.shape == (200, 5)
        assert latent.dtype == np.float32
        assert np.isfinite(latent).all()
        assert latent.std(axis=0).min() > 0
        note = sdata["table"].uns["nichekd"]["expression_features"]
        assert note["n_latent"] == 5
        assert note["n_training_cells"] == 140
        assert note["seed"] == 0
        assert note["epochs"] == 2

    def test_key_added_and_copy(self, adata):
        other = nk.pp.expression_features(adata, key_added="X_mine", copy=True, **FEW)
        assert other.obsm["X_mine"].shape == (200, 10)
        assert "X_mine" not in adata.obsm
        assert "expression_features" not in adata.uns.get("nichekd", {})

    def test_learns_nothing_from_test_cells(self, adata):
        nk.pp.expression_features(adata, **FEW)
        train = (adata.obs["split"] == "train").to_numpy()
        changed = adata.copy()
        counts = changed.X.toarray()
        counts[~train] = counts[~train][:, ::-1] * 3
        changed.X = sparse.csr_matrix(counts)
        nk.pp.expression_features(changed, **FEW)
        np.testing.assert_array_equal(changed.obsm["X_scVI"][train], adata.obsm["X_scVI"][train])
        assert not np.allclose(changed.obsm["X_scVI"][~train], adata.obsm["X_scVI"][~train])

    def test_buffer_cells_are_encoded_but_do_not_train(self, adata):
        adata.obs["split"] = pd.Categorical(np.where(np.arange(200) < 60, "buffer", adata.obs["split"]))
        nk.pp.expression_features(adata, **FEW)
        assert adata.uns["nichekd"]["expression_features"]["n_training_cells"] == 80
        assert np.isfinite(adata.obsm["X_scVI"]).all()

    def test_without_a_split_all_cells_train(self, adata):
        del adata.obs["split"]
        nk.pp.expression_features(adata, **FEW)
        assert adata.uns["nichekd"]["expression_features"]["n_training_cells"] == 200

    def test_cells_without_counts_are_warned_about_and_kept(self, adata):
        counts = adata.X.tolil()
        counts[[3, 5, 190]] = 0
        adata.X = counts.tocsr()
        with pytest.warns(UserWarning, match="3 of 200 cells have no counts"):
            nk.pp.expression_features(adata, **FEW)
        assert adata.uns["nichekd"]["expression_features"]["n_training_cells"] == 138
        assert np.isfinite(adata.obsm["X_scVI"]).all()
        np.testing.assert_allclose(adata.obsm["X_scVI"][3], adata.obsm["X_scVI"][190], rtol=1e-4, atol=1e-6)

    def test_same_seed_same_latent_whatever_the_global_state(self, adata):
        latents = []
        for state, seed in ((1, 0), (2, 0), (1, 1)):
            np.random.seed(state)  # noqa: NPY002
            random.seed(state)
            nk.pp.expression_features(adata, seed=seed, **FEW)
            latents.append(adata.obsm["X_scVI"])
        np.testing.assert_array_equal(latents[0], latents[1])
        assert not np.allclose(latents[0], latents[2])

    def test_device_goes_before_the_setting(self, adata, monkeypatch):
        monkeypatch.setattr(nk.settings, "device", "nowhere")
        nk.pp.expression_features(adata, device="cpu", max_epochs=1)
        assert adata.obsm["X_scVI"].shape == (adata.n_obs, 10)

    def test_global_state_is_left_alone(self, adata, scvi, monkeypatch, tmp_path, capsys):
        import torch

        monkeypatch.chdir(tmp_path)
        before = np.random.get_state()[1].copy(), torch.get_rng_state(), random.getstate(), torch.get_num_threads()  # noqa: NPY002
        nk.pp.expression_features(adata, **FEW)
        np.testing.assert_array_equal(before[0], np.random.get_state()[1])  # noqa: NPY002
        assert torch.equal(before[1], torch.get_rng_state())
        assert before[2:] == (random.getstate(), torch.get_num_threads())
        assert scvi.settings.seed is None
        assert not list(tmp_path.iterdir())
        assert capsys.readouterr().out == ""

    def test_counts_are_not_kept_alive(self, adata, scvi):
        nk.pp.expression_features(adata, **FEW)
        assert not scvi.model.SCVI._setup_adata_manager_store
        assert not any(scvi.model.SCVI._per_instance_manager_store.values())

    def test_progress_goes_to_stderr(self, adata, monkeypatch, capsys):
        monkeypatch.setattr(nk.settings, "progress", True)
        nk.pp.expression_features(adata, **FEW)
        shown = capsys.readouterr()
        assert "scVI: 100%" in shown.err
        assert shown.out == ""

    @pytest.mark.parametrize("form", [np.asarray, sparse.csc_matrix, lambda counts: counts.astype(np.float64)])
    def test_form_of_the_matrix_does_not_matter(self, adata, form):
        nk.pp.expression_features(adata, **FEW)
        other = adata.copy()
        other.layers["counts"] = form(adata.X.toarray())
        other.X = np.log1p(adata.X.toarray())
        nk.pp.expression_features(other, layer="counts", **FEW)
        np.testing.assert_array_equal(other.obsm["X_scVI"], adata.obsm["X_scVI"])
        assert other.uns["nichekd"]["expression_features"]["layer"] == "counts"

    def test_backed_table(self, adata, tmp_path):
        import anndata

        adata.write_h5ad(tmp_path / "cells.h5ad")
        backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
        nk.pp.expression_features(adata, **FEW)
        nk.pp.expression_features(backed, **FEW)
        np.testing.assert_array_equal(backed.obsm["X_scVI"], adata.obsm["X_scVI"])
        backed.file.close()

    def test_survives_h5ad(self, adata, tmp_path):
        import anndata

        nk.pp.expression_features(adata, **FEW)
        adata.write_h5ad(tmp_path / "cells.h5ad")
        back = anndata.read_h5ad(tmp_path / "cells.h5ad")
        np.testing.assert_array_equal(back.obsm["X_scVI"], adata.obsm["X_scVI"])
        assert back.uns["nichekd"]["expression_features"]["gene_likelihood"] == "nb"

    def test_batches(self, adata):
        adata.obs["slide"] = np.where(np.arange(200) % 2, "a", "b")
        nk.pp.expression_features(adata, batch_key="slide", **FEW)
        assert adata.uns["nichekd"]["expression_features"]["batch_key"] == "slide"
        assert adata.obsm["X_scVI"].shape == (200, 10)

    def test_latent_tells_cell_types_apart_on_cells_not_fitted(self):
        from sklearn.neighbors import KNeighborsClassifier

        adata = nk.datasets.simulate(900, K=3, n_genes=100, image=False)["table"]
        adata.obs["split"] = np.where(np.arange(900) < 700, "train", "test")
        nk.pp.expression_features(adata, max_epochs=40)
        latent, cell_type = adata.obsm["X_scVI"], adata.obs["cell_type"].to_numpy()
        assert KNeighborsClassifier(15).fit(latent[:700], cell_type[:700]).score(latent[700:], cell_type[700:]) > 0.8

    def test_real_cells(self):
        """Ten epochs on the bundled crop: test cells of a type lie together."""
        from sklearn.neighbors import KNeighborsClassifier

        adata = nk.datasets.pancreas()["table"]
        y = adata.obsm["spatial"][:, 1]
        adata.obs["split"] = np.where((y > 250) & (y < 500), "test", "train")
        with pytest.warns(UserWarning, match="20 of 5,797 cells have no counts"):
            nk.pp.expression_features(adata, max_epochs=10)
        assert adata.uns["nichekd"]["expression_features"]["held_out_elbo"] < 75
        latent, cell_type, test = adata.obsm["X_scVI"], adata.obs["cell_type"].to_numpy(), adata.obs["split"] == "test"
        assert KNeighborsClassifier(15).fit(latent[~test], cell_type[~test]).score(latent[test], cell_type[test]) > 0.7

    @pytest.mark.parametrize("n_cells", [20, 21, 141, 142, 143, 144, 145])
    def test_any_number_of_training_cells(self, adata, n_cells):
        """A last batch of a single cell would break batch norm."""
        adata.obs["split"] = np.where(np.arange(200) < n_cells, "train", "test")
        nk.pp.expression_features(adata, max_epochs=1)
        assert np.isfinite(adata.obsm["X_scVI"]).all()

    def test_epochs_shrink_as_sections_grow(self):
        from nichekd.pp._scvi_fit import schedule

        assert schedule(4_000, None) == (256, 100)
        assert schedule(50_000, None)[1] < 20
        assert schedule(1_000_000, None) == (1024, 15)
        assert schedule(100, None)[1] == 200
        assert schedule(4_000, 7) == (256, 7)


class TestModelHandedIn:
    def test_folder_gives_what_the_fit_gave(self, adata, tmp_path):
        nk.pp.expression_features(adata, save_model=tmp_path / "scvi", **FEW)
        fitted = adata.obsm.pop("X_scVI")
        nk.pp.expression_features(adata, model=tmp_path / "scvi")
        np.testing.assert_array_equal(adata.obsm["X_scVI"], fitted)

    def test_brings_its_own_dimensions_and_fits_nothing(self, adata, trained):
        nk.pp.expression_features(adata, model=str(trained))
        assert adata.obsm["X_scVI"].shape == (200, 4)
        note = adata.uns["nichekd"]["expression_features"]
        assert note["n_latent"] == 4
        assert note["model"] == str(trained)
        assert "n_training_cells" not in note

    def test_needs_no_training_cells(self, adata, trained):
        adata.obs["split"] = "test"
        nk.pp.expression_features(adata, model=trained)
        assert np.isfinite(adata.obsm["X_scVI"]).all()

    def test_folder_opens_in_scvi_too(self, adata, trained, scvi):
        nk.pp.expression_features(adata, model=trained)
        mine = adata.obsm["X_scVI"]
        table = adata.copy()
        table.X = table.X.astype(np.float32)
        model = scvi.model.SCVI.load(trained, table, accelerator="cpu")
        np.testing.assert_allclose(model.get_latent_representation(), mine, atol=1e-5)
        nk.pp.expression_features(adata, model=model, key_added="X_again")
        np.testing.assert_array_equal(adata.obsm["X_again"], mine)

    def test_other_order_of_genes_and_further_genes(self, adata, trained):
        nk.pp.expression_features(adata, model=trained)
        other = adata[:, ::-1].copy()
        import anndata

        extra = anndata.AnnData(np.full((200, 2), 7.0), obs=adata.obs, var=pd.DataFrame(index=["new_1", "new_2"]))
        wider = anndata.concat([extra, other], axis=1, merge="same")
        nk.pp.expression_features(wider, model=trained)
        np.testing.assert_array_equal(wider.obsm["X_scVI"], adata.obsm["X_scVI"])

    def test_new_slide_is_no_unknown_batch(self, adata, scvi):
        adata.obs["slide"] = np.where(np.arange(200) % 2, "a", "b")
        model = user_model(scvi, adata, batch_key="slide")
        nk.pp.expression_features(adata, model=model)
        before = adata.obsm["X_scVI"]
        adata.obs["slide"] = "c"
        nk.pp.expression_features(adata, model=model)
        np.testing.assert_array_equal(adata.obsm["X_scVI"], before)

    def test_covariates_that_the_encoder_reads(self, adata, scvi):
        rng = np.random.default_rng(0)
        adata.obs["slide"] = pd.Categorical(rng.choice(["a", "b"], 200))
        adata.obs["run"] = pd.Categorical(rng.choice(["x", "y", "z"], 200))
        adata.obs["depth"] = rng.normal(size=200)
        model = user_model(
            scvi,
            adata,
            batch_key="slide",
            categorical_covariate_keys=["run"],
            continuous_covariate_keys=["depth"],
            encode_covariates=True,
            deeply_inject_covariates=False,
        )
        model.module.eval()
        expected = model.get_latent_representation()
        model.module.train()  # as some leave it
        nk.pp.expression_features(adata, model=model)
        np.testing.assert_allclose(adata.obsm["X_scVI"], expected, atol=1e-5)
        del adata.obs["depth"]
        with pytest.raises(KeyError, match="'depth'"):
            nk.pp.expression_features(adata, model=model)
        adata.obs["slide"] = "c"
        with pytest.raises(ValueError, match=r"holds \['c'\], which model= has not seen; it knows \['a', 'b'\]"):
            nk.pp.expression_features(adata, model=model)

    def test_missing_genes_are_named(self, adata, trained):
        few = adata[:, 2:].copy()
        with pytest.raises(ValueError, match="2 of the 30 genes .* missing in the cell table: gene_0, gene_1"):
            nk.pp.expression_features(few, model=trained)

    def test_duplicate_genes(self, adata, trained):
        adata.var_names = ["gene_0", *adata.var_names[:-1]]
        with pytest.raises(ValueError, match="1 duplicates.*var_names_make_unique"):
            nk.pp.expression_features(adata, model=trained)

    def test_untrained(self, adata, scvi):
        with pytest.raises(ValueError, match="not trained"):
            nk.pp.expression_features(adata, model=user_model(scvi, adata, trained=False))

    def test_something_else(self, adata):
        with pytest.raises(TypeError, match="model= is a dict"):
            nk.pp.expression_features(adata, model={})

    def test_no_such_folder(self, adata, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such folder"):
            nk.pp.expression_features(adata, model=tmp_path / "nowhere")
        (tmp_path / "weights.bin").touch()
        with pytest.raises(FileNotFoundError, match=r"holds no model.pt \(\['weights.bin'\]\)"):
            nk.pp.expression_features(adata, model=tmp_path)

    def test_nothing_is_unpickled(self, adata, tmp_path):
        import torch

        class Trap:
            def __reduce__(self):
                return Path.touch, (tmp_path / "sprung",)

        torch.save({"model_state_dict": {}, "attr_dict": {"registry_": Trap()}}, tmp_path / "model.pt")
        with pytest.raises(ValueError, match="does not unpickle.*SCVI.load"):
            nk.pp.expression_features(adata, model=tmp_path)
        assert not (tmp_path / "sprung").exists()

    def test_file_of_another_kind(self, adata, tmp_path):
        import torch

        (tmp_path / "model.pt").write_bytes(b"not a model")
        with pytest.raises(ValueError, match="is no torch file"):
            nk.pp.expression_features(adata, model=tmp_path)
        torch.save({"weights": torch.zeros(3)}, tmp_path / "model.pt")
        with pytest.raises(ValueError, match="not laid out as scvi-tools"):
            nk.pp.expression_features(adata, model=tmp_path)

    @pytest.mark.parametrize(
        ("registry", "arguments", "match"),
        [
            ({"model_name": "TOTALVI"}, {}, "holds a TOTALVI model"),
            ({"model_name": "SCVI"}, {"use_observed_lib_size": False}, "use_observed_lib_size=False"),
        ],
    )
    def test_model_of_another_class(self, adata, tmp_path, registry, arguments, match):
        import torch

        attributes = {"registry_": registry, "init_params_": {"non_kwargs": arguments, "kwargs": {"kwargs": {}}}}
        torch.save({"model_state_dict": {}, "attr_dict": attributes}, tmp_path / "model.pt")
        with pytest.raises(ValueError, match=match):
            nk.pp.expression_features(adata, model=tmp_path)


class TestBadInput:
    @pytest.mark.parametrize(
        ("spoil", "match"),
        [
            (lambda x: x - 1.5, "negative values, down to -1.5"),
            (np.log1p, "fractional values, such as"),
            (lambda x: np.where(x > 3, np.nan, x), "NaN or infinite"),
        ],
    )
    def test_what_is_no_count_names_the_layer_that_is(self, adata, spoil, match):
        adata.layers["counts"] = adata.X.copy()
        adata.X = spoil(adata.X.toarray().astype(float))
        with pytest.raises(ValueError, match=f"X holds .*{match}") as error:
            nk.pp.expression_features(adata)
        assert "pass layer='counts'" in str(error.value)

    def test_where_else_counts_may_be(self, adata):
        adata.layers["scaled"] = np.log1p(adata.X.toarray())
        with pytest.raises(ValueError, match=r"layers\['scaled'\] holds .*X seems to hold raw counts"):
            nk.pp.expression_features(adata, layer="scaled")
        adata.raw = adata.copy()
        adata.X = adata.layers["scaled"]
        with pytest.raises(ValueError, match="adata.raw seems to hold raw counts"):
            nk.pp.expression_features(adata)
        adata.raw = None
        with pytest.raises(ValueError, match="before normalisation"):
            nk.pp.expression_features(adata)

    def test_no_matrix_at_all(self, adata):
        import anndata

        bare = anndata.AnnData(obs=adata.obs, obsm={"spatial": adata.obsm["spatial"]})
        with pytest.raises(ValueError, match="no genes in X"):
            nk.pp.expression_features(bare)

    def test_types_of_values(self, adata):
        adata.layers["detected"] = np.full(adata.shape, True)
        nk.pp.expression_features(adata, layer="detected", max_epochs=1)  # 0 or 1 is a count too
        adata.layers["complex"] = adata.X.toarray().astype(complex)
        with pytest.raises(ValueError, match="values of type complex128"):
            nk.pp.expression_features(adata, layer="complex")

    def test_absent_layer_lists_those_there_are(self, adata):
        adata.layers["raw_counts"] = adata.X.copy()
        with pytest.raises(KeyError, match=r"layers\['counts'\] is missing; layers has \['raw_counts'\]"):
            nk.pp.expression_features(adata, layer="counts")

    @pytest.mark.parametrize("name", ["n_latent", "max_epochs"])
    def test_numbers(self, adata, name):
        with pytest.raises(ValueError, match=f"{name} is 0; it has to be at least 1"):
            nk.pp.expression_features(adata, **{name: 0})
        for wrong in (2.5, True, "3"):
            with pytest.raises(TypeError, match=f"{name} is .* whole number"):
                nk.pp.expression_features(adata, **{name: wrong})

    def test_too_few_training_cells(self, adata):
        adata.obs["split"] = np.where(np.arange(200) < 19, "train", "test")
        with pytest.raises(ValueError, match="19 of 19 training cells have counts; scVI needs at least 20"):
            nk.pp.expression_features(adata)

    def test_split_that_is_absent_or_empty(self, adata):
        with pytest.raises(KeyError, match="fold"):
            nk.pp.expression_features(adata, split_key="fold")
        adata.obs["split"] = "test"
        with pytest.raises(ValueError, match="no 'train' cell"):
            nk.pp.expression_features(adata)

    def test_batches_that_are_absent_or_missing(self, adata):
        with pytest.raises(KeyError, match=r"obs\['slide'\] is missing"):
            nk.pp.expression_features(adata, batch_key="slide")
        adata.obs["slide"] = pd.Categorical(["a"] * 190 + [None] * 10)
        with pytest.raises(ValueError, match="missing for 10 of 200 cells"):
            nk.pp.expression_features(adata, batch_key="slide")

    def test_saving(self, adata, trained, tmp_path):
        with pytest.raises(FileExistsError, match="exists already"):
            nk.pp.expression_features(adata, save_model=tmp_path)
        with pytest.raises(ValueError, match="Leave one of them out"):
            nk.pp.expression_features(adata, save_model=tmp_path / "new", model=trained)

    def test_data(self, sdata):
        with pytest.raises(KeyError, match="no table 'cells'"):
            nk.pp.expression_features(sdata, table_key="cells")
        with pytest.raises(TypeError, match="list"):
            nk.pp.expression_features([])
