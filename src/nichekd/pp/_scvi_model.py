"""Trained scVI models: loads them without unpickling, encodes cells with them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nichekd.pp._scvi_fit import few_threads, quiet, random_state_kept

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from anndata import AnnData
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix
    from scvi.model import SCVI
    from torch import Tensor

FILE = "model.pt"
N_ENCODED_AT_ONCE = 4_096
HISTORY_PACKAGES = ("pandas", "pyarrow")  # what scvi-tools keeps the training history in
LOAD_YOURSELF = "If you trust it, load it by model = scvi.model.SCVI.load(folder, adata) and pass model=model."


class _Inert:
    """Stands for the pandas objects of a saved training history, which is not needed: takes its state, drops it."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def encode(model: SCVI, counts: csr_matrix, adata: AnnData) -> NDArray[np.float32]:
    """Means of the latent posterior of every cell, (n_cells, n_latent); memory does not grow with the section."""
    genes = pd.Index(model.registry["field_registries"]["X"]["state_registry"]["column_names"]).astype(str)
    counts = _take_genes(counts, adata.var_names.astype(str), genes)
    covariates = _covariates(model, adata)
    model.module.eval()  # no dropout, whatever its owner did with it last
    with quiet(), random_state_kept(), few_threads(len(genes)):
        latent = model.get_latent_representation(dataloader=_minibatches(counts, covariates))
    return np.asarray(latent, dtype=np.float32)


def _minibatches(counts: csr_matrix, covariates: dict[str, NDArray[Any]]) -> Iterator[dict[str, Tensor]]:
    """What the encoder reads, ``N_ENCODED_AT_ONCE`` cells at a time."""
    import torch

    for start in range(0, counts.shape[0], N_ENCODED_AT_ONCE):
        rows = slice(start, start + N_ENCODED_AT_ONCE)
        block = {"X": torch.from_numpy(counts[rows].toarray().astype(np.float32))}
        yield block | {name: torch.from_numpy(values[rows]) for name, values in covariates.items()}


def resolve_model(model: SCVI | str | Path) -> SCVI:
    """``model``, or the one in the folder it names."""
    with quiet():
        from scvi.model import SCVI
    if isinstance(model, (str, Path)):
        return _load(Path(model))
    if not isinstance(model, SCVI):
        raise TypeError(f"model= is a {type(model).__name__}; it has to be a trained scvi.model.SCVI or its folder.")
    if not model.is_trained:
        raise ValueError("model= is an scVI model that is not trained. Run model.train() first, or leave model= out.")
    return model


def _load(folder: Path) -> SCVI:
    """The scVI model saved in ``folder``; see :meth:`scvi.model.SCVI.save`."""
    saved = _read(folder)
    try:
        registry, init = saved["attr_dict"]["registry_"], saved["attr_dict"]["init_params_"]
        arguments = {**init["non_kwargs"], **{k: v for group in init["kwargs"].values() for k, v in group.items()}}
        state = {name: value for name, value in saved["model_state_dict"].items() if name != "pyro_param_store"}
    except (KeyError, TypeError, AttributeError) as err:
        raise ValueError(
            f"{folder / FILE} is not laid out as scvi-tools >= 0.15 saves a model ({err!r}). {LOAD_YOURSELF}"
        ) from err
    if registry.get("model_name") != "SCVI":
        raise ValueError(f"{folder} holds a {registry.get('model_name')} model; model= has to be an scvi.model.SCVI.")
    if not arguments.get("use_observed_lib_size", True):
        raise ValueError(f"{folder} holds a model with use_observed_lib_size=False. {LOAD_YOURSELF}")
    with quiet(), random_state_kept():
        from scvi.model import SCVI

        model = SCVI(registry=registry, **arguments)
        model.module.load_state_dict(state)
    model.is_trained_ = True
    model.module.eval()
    return model


def _read(folder: Path) -> dict[str, Any]:
    """The content of ``folder/model.pt`` by torch's weights-only reader: plain values and arrays, no code."""
    path = folder / FILE
    if not path.is_file():
        found = sorted(p.name for p in folder.iterdir())[:10] if folder.is_dir() else "no such folder"
        raise FileNotFoundError(
            f"{folder} holds no {FILE} ({found}). model= names the folder that scvi.model.SCVI.save or save_model= wrote."
        )
    from torch import load
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    try:
        # read off the file's text, nothing is run
        history = [name for name in get_unsafe_globals_in_checkpoint(path) if name.split(".")[0] in HISTORY_PACKAGES]
        with safe_globals([*_harmless(), *((_Inert, name) for name in history)]):
            return load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, ValueError) as err:
        raise ValueError(
            f"{path} holds more than weights and plain values, or is no torch file; nichekd does not unpickle. "
            f"{LOAD_YOURSELF}"
        ) from err


def _harmless() -> list[Any]:
    """What a model file of scvi-tools names beside tensors and training history: numpy arrays and containers."""
    from numpy._core.multiarray import _reconstruct

    dtypes = {type(np.dtype(code)) for code in "?bBhHiIlLqQefdgFDOSUmM"}
    arrays = [(_reconstruct, f"{package}.multiarray._reconstruct") for package in ("numpy.core", "numpy._core")]
    return [np.ndarray, np.dtype, *dtypes, *arrays, slice, dict, bytes, (_dict, "collections.defaultdict")]


def _dict(*_: object) -> dict[Any, Any]:
    """A plain dict in place of a ``defaultdict``, which the weights-only reader can't fill."""
    return {}


def _take_genes(counts: csr_matrix, have: pd.Index, want: pd.Index) -> csr_matrix:
    """Columns of ``counts`` in the order of ``want``."""
    if have.equals(want):
        return counts
    if not have.is_unique:
        raise ValueError(
            f"var_names has {have.duplicated().sum():,} duplicates, so the genes of model= can't be told apart. "
            "Run adata.var_names_make_unique()."
        )
    missing = want.difference(have)
    if len(missing):
        shown = ", ".join(missing[:20]) + (", ..." if len(missing) > 20 else "")
        raise ValueError(
            f"{len(missing):,} of the {len(want):,} genes that model= was trained on are missing in the cell table: "
            f"{shown}. Use the table's gene names as in training, or leave model= out to fit a new one."
        )
    return counts[:, have.get_indexer(want)]


def _covariates(model: SCVI, adata: AnnData) -> dict[str, NDArray[Any]]:
    """Covariates as the encoder reads them, (n_cells, n_covariates) each.

    It reads none unless the model was made with ``encode_covariates=True``: its latent is corrected for batches
    by the decoder that it was trained against, so that new batches need no place in the model.
    """
    if not model.module.encode_covariates:
        return {"batch": np.zeros((adata.n_obs, 1), dtype=np.int64)}
    setup, fields = model.registry["setup_args"], model.registry["field_registries"]
    batch_key = setup.get("batch_key")
    known = fields["batch"]["state_registry"]["categorical_mapping"]
    none = np.zeros((adata.n_obs, 1), dtype=np.int64)
    read = {"batch": none if batch_key is None else _codes(adata, {batch_key: known})}
    if setup.get("categorical_covariate_keys"):
        mappings = fields["extra_categorical_covs"]["state_registry"]["mappings"]
        read["extra_categorical_covs"] = _codes(adata, mappings)
    if setup.get("continuous_covariate_keys"):
        columns = [_column(adata, key).to_numpy(dtype=np.float32) for key in setup["continuous_covariate_keys"]]
        read["extra_continuous_covs"] = np.column_stack(columns)
    return read


def _codes(adata: AnnData, known: Mapping[str, Any]) -> NDArray[np.int64]:
    """Columns of ``obs`` as the numbers the model gave their categories in training, (n_cells, n_columns)."""
    codes = []
    for key, categories in known.items():
        code = pd.Index(np.asarray(categories)).get_indexer(pd.Index(_column(adata, key).to_numpy()))
        if (code < 0).any():
            seen = set(map(str, adata.obs[key].unique())) - set(map(str, categories))
            raise ValueError(
                f"obs[{key!r}] holds {sorted(seen)}, which model= has not seen; it knows {list(categories)}. "
                "Use a model made without encode_covariates, or leave model= out to fit a new one."
            )
        codes.append(code.astype(np.int64))
    return np.column_stack(codes)


def _column(adata: AnnData, key: str) -> pd.Series:
    if key not in adata.obs:
        raise KeyError(
            f"obs[{key!r}], which model= reads, is missing; obs has {sorted(map(str, adata.obs))}. Add the column, or "
            "leave model= out to fit a new one."
        )
    return adata.obs[key]
