from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._keys import Keys
from nichekd._record import record
from nichekd._resolve import get_table
from nichekd._sections import cells_of_libraries
from nichekd._seeds import check_seed
from nichekd.tl._inputs import features_of, image_rep
from nichekd.tl._recorded_features import record_of
from nichekd.tl._settings_ranges import WithRanges
from nichekd.tl._slides import training_slides, value_of_slides

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd.models import SlideClassifier
    from nichekd.tl._loop import History

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlideSettings(WithRanges):
    """How a slide classifier is trained.

    Attributes
    ----------
    d_model, d_attention, dropout
        Sizes, see :class:`nichekd.models.SlideClassifierConfig`.
    max_epochs, slides_per_step
        Passes over the slides, and slides whose gradients are added up before a step.
    max_cells
        Cells of a slide that a pass sees at most, drawn anew each time.
    learning_rate, weight_decay, clip, warmup
        AdamW's.
    """

    d_model: int = 128
    d_attention: int = 64
    dropout: float = 0.25
    max_epochs: int = 50
    slides_per_step: int = 8
    max_cells: int = 4096
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    clip: float = 3.0
    warmup: float = 0.1


def slide_classifier(
    data: AnnData | SpatialData,
    *,
    label_key: str,
    library_key: str,
    use_rep: str | None = None,
    split_key: str = Keys.SPLIT,
    seed: int = 0,
    fit: SlideSettings | None = None,
    device: str | None = None,
    table_key: str = "table",
) -> SlideClassifier:
    r"""Learn a property of slides from the image features of their cells, none of which is labelled.

    A slide is a bag. Attention :cite:`Ilse2018` says how much each of its cells counts, and the class is predicted
    from their weighted mean. Classes weigh alike in the cross-entropy, however many slides they have.

    Parameters
    ----------
    data
        Cells, or tiles, of all slides in one table, with image features.
    label_key
        Column of ``obs`` with the class of a cell's slide; slides without one don't teach.
    library_key
        Column of ``obs`` that tells slides apart.
    use_rep
        ``obsm`` key of the features, e.g. ``"X_rank_by_gene"``; default: those written last.
    split_key
        Column of ``obs`` with ``train`` slides; absent by its default name, all of them train. Keep all slides of a
        patient on one side.
    seed
        Same seed, same CPU, same classifier.
    fit
        Training settings.
    device
        Fabric's accelerator; default ``nk.settings.device``.
    table_key
        Table of a ``SpatialData``.

    Returns
    -------
    The classifier, for :func:`nichekd.tl.predict_slides`. Writes ``uns["nichekd"]["slide_classifier"]`` with the
    history.

    Raises
    ------
    KeyError
        If the features or a column is missing.
    ValueError
        If training slides are of fewer than two classes, label or split differ within a slide, or features are NaN.
    """
    from nichekd.models import SlideClassifier
    from nichekd.models._attention_mil import SlideClassifierConfig
    from nichekd.tl._loop import seeded
    from nichekd.tl._slide_fit import fit_slides

    check_seed(seed)
    started = time.perf_counter()
    fit = fit or SlideSettings()
    adata = get_table(data, table_key)
    slides = cells_of_libraries(adata, library_key)
    labels = value_of_slides(adata, label_key, slides, run="your reading of the slides' classes")
    train = {
        name: cells for name, cells in training_slides(adata, slides, split_key).items() if labels[name] is not None
    }
    classes = tuple(sorted({str(labels[name]) for name in train}))
    if len(classes) < 2:
        raise ValueError(
            f"The {len(train)} training slides with obs[{label_key!r}] are of the classes {list(classes)}; there have "
            "to be two at least."
        )
    use_rep = image_rep(data, use_rep, device=device, table_key=table_key)
    features = features_of(adata, use_rep, run="nk.pp.histology_features")
    target = {name: classes.index(str(labels[name])) for name in train}
    config = SlideClassifierConfig(
        n_features=features.shape[1],
        classes=classes,
        d_model=fit.d_model,
        d_attention=fit.d_attention,
        dropout=fit.dropout,
        features=record_of(adata, use_rep) | {"use_rep": use_rep},
        training={"n_slides": len(train), "seed": seed, "label_key": label_key},
    )
    with seeded(seed):
        model = SlideClassifier(config)
        model.standardize.fit(*_moments(features, train))
        history = fit_slides(model, features, train, target, fit=fit, seed=seed, device=device)
    model.history = history.columns
    _record(adata, started, history, use_rep=use_rep, label_key=label_key, library_key=library_key, seed=seed)
    log.info("slide classifier: %d slides, classes %s", len(train), ", ".join(classes))
    return model


def _record(adata: AnnData, started: float, history: History, **parameters: Any) -> None:
    seconds = time.perf_counter() - started
    record(adata, "slide_classifier", seconds=seconds, history=history.arrays(), **parameters)


def _moments(features: Any, slides: dict[str, NDArray[np.intp]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each feature, each slide counting alike, slide by slide in memory."""
    mean, square = np.zeros(features.shape[1]), np.zeros(features.shape[1])
    for cells in slides.values():
        rows = np.asarray(features[np.sort(cells)], dtype=np.float64)
        mean += rows.mean(axis=0) / len(slides)
        square += (rows**2).mean(axis=0) / len(slides)
    if not np.isfinite(square).all():
        raise ValueError("Image features of the training slides are NaN or infinite; run nk.pp.histology_features.")
    return mean, np.sqrt(np.maximum(square - mean**2, 0))
