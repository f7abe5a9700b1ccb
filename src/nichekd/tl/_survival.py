from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nichekd._keys import Keys
from nichekd._record import record
from nichekd._resolve import get_table, require
from nichekd._sections import cells_of_libraries
from nichekd._seeds import check_seed
from nichekd.tl._inputs import features_of, image_rep
from nichekd.tl._slides import value_of_slides

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

log = logging.getLogger(__name__)

FEWEST_EVENTS = 2  # in the slides fitted on: a hazard that one death decides is none


def survival(
    data: AnnData | SpatialData,
    *,
    time_key: str,
    event_key: str,
    library_key: str,
    use_rep: str | None = None,
    weight_key: str | None = None,
    group_key: str | None = None,
    n_components: int = 8,
    penalizer: float = 0.1,
    n_folds: int = 5,
    seed: int = 0,
    key_added: str = Keys.RISK,
    table_key: str = "table",
) -> pd.DataFrame:
    r"""Survival by the image features of a slide: Cox's proportional hazards, judged out of fold by the C-index.

    A slide's features are the mean of its cells', by attention where ``weight_key`` names it; their leading principal
    components x go into :math:`h(t \mid x) = h_0(t) \exp(\beta^\top x)` :cite:`Cox1972`, with an L2 penalty on
    :math:`\beta`. Components and :math:`\beta` are found on the other folds. The C-index :cite:`Harrell1982` is the
    share of the pairs whose order of death is known in which the one with the higher risk died first, ½ by chance.

    Needs lifelines: ``pip install "nichekd[survival]"``.

    Parameters
    ----------
    data
        Cells, or tiles, of all slides in one table.
    time_key, event_key
        Columns of ``obs`` with the time to death or to the last visit, in any unit, and which of both it is (true or
        1: death); the same for all cells of a slide. Slides that miss one are left out.
    library_key
        Column of ``obs`` that tells slides apart.
    use_rep
        ``obsm`` key of the features, e.g. ``"X_rank_by_gene"``; default: those written last.
    weight_key
        Column of ``obs`` that weighs the cells of a slide, e.g. ``"attention"``; default equally.
    group_key
        Column of ``obs`` whose groups stay in one fold, e.g. patients; default each slide is one.
    n_components, penalizer
        Components, and strength of the penalty.
    n_folds
        Folds of slides.
    seed
        Of the folds.
    key_added
        Column of ``obs`` to write.
    table_key
        Table of a ``SpatialData``.

    Returns
    -------
    A row per fold and one, ``"all"``, that pools their risks, each less the mean risk of the slides it was fitted on:
    ``fold``, ``c_index`` (missing where no pair can be compared), ``n_slides`` and ``n_events``. Writes
    ``obs["risk"]``, the log hazard ratio of a cell's slide out of fold, missing for slides left out, and
    ``uns["nichekd"]["survival"]``.

    Raises
    ------
    ImportError
        If lifelines is not installed.
    KeyError
        If the features or a column is missing.
    ValueError
        If no slide has an event, or too few have; if times are not positive, events not 0 or 1, either differs within
        a slide, or there are fewer slides than folds.
    """
    check_seed(seed)
    started = time.perf_counter()
    fitter, concordance = _lifelines()
    adata = get_table(data, table_key)
    slides = cells_of_libraries(adata, library_key)
    clinical = _clinical(adata, slides, time_key, event_key)
    group = _groups(adata, slides, clinical, group_key)
    _check(clinical, group, n_folds, n_components)
    use_rep = image_rep(data, use_rep, table_key=table_key)
    features = features_of(adata, use_rep, run="nk.pp.histology_features")
    means = _slide_means(adata, features, {name: slides[name] for name in clinical.index}, weight_key)
    fold, risk = _folds(group, n_folds, seed), np.empty(len(clinical))
    for one in range(n_folds):
        risk[fold == one] = _risk(fitter, means, clinical, fold != one, fold == one, n_components, penalizer, seed)
    rows = [_row(one, clinical[fold == one], risk[fold == one], concordance) for one in range(n_folds)]
    table = pd.DataFrame([*rows, _row("all", clinical, risk, concordance)])
    column = np.full(adata.n_obs, np.nan)
    for name, value in zip(clinical.index, risk, strict=True):
        column[slides[name]] = value
    adata.obs[key_added] = column
    pooled = float(table["c_index"].iloc[-1])
    record(
        adata, "survival", seconds=time.perf_counter() - started, use_rep=use_rep, time_key=time_key,
        event_key=event_key, library_key=library_key, weight_key=weight_key, group_key=group_key,
        n_components=n_components, penalizer=penalizer, n_folds=n_folds, seed=seed, c_index=pooled,
    )  # fmt: skip
    log.info("%d slides, %d events: C-index %.3f out of fold", len(clinical), clinical["event"].sum(), pooled)
    return table


def _lifelines() -> tuple[Any, Any]:
    try:
        from lifelines import CoxPHFitter
        from lifelines.utils import concordance_index
    except ModuleNotFoundError as err:
        raise ImportError(
            f'nk.tl.survival needs lifelines, and {err.name} is not installed. Run `pip install "nichekd[survival]"`.'
        ) from err
    return CoxPHFitter, concordance_index


def _clinical(adata: AnnData, slides: dict[str, NDArray[np.intp]], time_key: str, event_key: str) -> pd.DataFrame:
    """``time`` and ``event`` of each slide that has both."""
    found = pd.DataFrame(
        {"time": value_of_slides(adata, time_key, slides), "event": value_of_slides(adata, event_key, slides)}
    )
    missing = found.isna().any(axis=1)
    if missing.any():
        log.warning("%d of %d slides miss a time or an event and are left out", missing.sum(), len(found))
    found = found[~missing]
    for key, name in ((time_key, "time"), (event_key, "event")):
        try:
            found[name] = found[name].astype(float)
        except (TypeError, ValueError) as err:
            raise ValueError(
                f"obs[{key!r}] holds {list(found[name].unique()[:3])}; {name} has to be a number."
            ) from err
    if not (np.isfinite(found["time"]) & (found["time"] > 0)).all():
        bad = found.index[~(np.isfinite(found["time"]) & (found["time"] > 0))].tolist()
        raise ValueError(f"obs[{time_key!r}] is not above 0 for the slides {bad[:5]}; leave them out.")
    if not found["event"].isin([0, 1]).all():
        raise ValueError(f"obs[{event_key!r}] holds {sorted(found['event'].unique())[:5]}; it has to be 0 or 1.")
    return found


def _groups(
    adata: AnnData, slides: dict[str, NDArray[np.intp]], clinical: pd.DataFrame, group_key: str | None
) -> NDArray[np.int64]:
    if group_key is None:
        return np.arange(len(clinical))
    values = value_of_slides(adata, group_key, {name: slides[name] for name in clinical.index})
    if none := [name for name, value in values.items() if value is None]:
        raise ValueError(f"obs[{group_key!r}] is missing for the slides {none[:5]}. Fill it in.")
    return pd.factorize(pd.Series([str(values[name]) for name in clinical.index]))[0].astype(np.int64)


def _check(clinical: pd.DataFrame, group: NDArray[np.int64], n_folds: int, n_components: int) -> None:
    n_events = int(clinical["event"].sum()) if len(clinical) else 0
    if n_events == 0:
        raise ValueError(
            f"None of the {len(clinical)} slides has an event: nobody is known to have died, so no order of deaths can "
            "be learned or judged. Check event_key=, where 1 or true is a death."
        )
    if not 2 <= n_folds <= len(set(group)) or n_components < 1:
        raise ValueError(
            f"n_folds={n_folds}, n_components={n_components}, for {len(set(group))} groups of slides; there have to be "
            "from 2 folds to as many as groups, and a component at least."
        )


def _slide_means(
    adata: AnnData, features: Any, slides: dict[str, NDArray[np.intp]], weight_key: str | None
) -> NDArray[np.float64]:
    """(n_slides, F)."""
    weights = np.ones(adata.n_obs)
    if weight_key is not None:
        weights = require(adata, "obs", weight_key, run="nk.tl.predict_slides").to_numpy(dtype=np.float64)
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError(f"obs[{weight_key!r}] is negative or missing for some cells; weights are neither.")
    means = np.empty((len(slides), features.shape[1]))
    for i, (name, cells) in enumerate(slides.items()):
        if weights[cells].sum() <= 0:
            raise ValueError(f"obs[{weight_key!r}] is 0 for all cells of slide {name!r}.")
        order = np.sort(cells)
        means[i] = np.average(np.asarray(features[order], dtype=np.float64), axis=0, weights=weights[order])
    return means


def _folds(group: NDArray[np.int64], n_folds: int, seed: int) -> NDArray[np.int64]:
    """Fold of each slide; groups at random, equally many a fold."""
    n_groups = int(group.max()) + 1
    of_group = np.random.default_rng(seed).permutation(np.arange(n_groups) % n_folds)
    return of_group[group]


def _risk(
    fitter: Any,
    means: NDArray[np.float64],
    clinical: pd.DataFrame,
    train: NDArray[np.bool_],
    test: NDArray[np.bool_],
    n_components: int,
    penalizer: float,
    seed: int,
) -> NDArray[np.float64]:
    """Log hazard of the test slides less the mean of the training slides', by what the latter teach."""
    from sklearn.decomposition import PCA

    n_events = int(clinical["event"][train].sum())
    if n_events < FEWEST_EVENTS:
        raise ValueError(
            f"A fold leaves {n_events} events of {int(clinical['event'].sum())} to fit on; it needs {FEWEST_EVENTS}. "
            "Take fewer folds (n_folds=), or more slides with events."
        )
    spread = means[train].std(axis=0)
    scaled = (means - means[train].mean(axis=0)) / np.where(spread > 1e-9, spread, 1)
    n = min(n_components, int(train.sum()) - 1, means.shape[1])
    components = PCA(n, random_state=seed).fit(scaled[train])
    x = components.transform(scaled)
    x = x / np.maximum(x[train].std(axis=0), 1e-9)
    names = [f"component_{i}" for i in range(n)]
    table = pd.DataFrame(x, columns=names).assign(
        duration=clinical["time"].to_numpy(), event=clinical["event"].to_numpy()
    )
    model = fitter(penalizer=penalizer).fit(table[train], duration_col="duration", event_col="event")
    beta = model.params_.loc[names].to_numpy(dtype=np.float64)
    return (x[test] - x[train].mean(axis=0)) @ beta


def _row(fold: int | str, clinical: pd.DataFrame, risk: NDArray[np.float64], concordance: Any) -> dict[str, Any]:
    try:
        c_index = float(concordance(clinical["time"], -risk, clinical["event"]))
    except ZeroDivisionError:  # lifelines' way to say that no pair can be compared
        c_index = float("nan")
    return {"fold": str(fold), "c_index": c_index, "n_slides": len(clinical), "n_events": int(clinical["event"].sum())}
