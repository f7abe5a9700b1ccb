"""What a student carries besides its weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from nichekd.models._folder import CONFIG, check_values, values_of_format
from nichekd.models._metrics import are_metric_rows, metric_rows
from nichekd.models._neighborhood_transformer import NeighborhoodConfig

FORMAT = 4  # with the range of stains
ADDED = {"training_range": 2, "metrics": 3}  # values of the config, by the format that they came with
POSITIVE = ("radius", "temperature", "calibration")
RULES = (
    "niche_names are different strings, niche_colors as many colours; radius, temperature and calibration are above 0; "
    "features, training and training_range are dicts"
)


@dataclass(frozen=True)
class StudentConfig:
    """What a student carries, so that nothing has to be remembered at inference.

    Attributes
    ----------
    n_features
        Length of a cell's image features.
    network
        Sizes of its neighborhood network, which reads their principal components.
    niche_names, niche_colors
        K names and hex colours; a niche's place is its column in the logits.
    radius
        Of a neighborhood, µm.
    temperature
        Of the distillation; probabilities are ``softmax(logits / (temperature * calibration))``.
    calibration
        Factor set by :func:`nichekd.tl.calibrate`; 1 where it has not run.
    features
        Encoder, fingerprint, crop and mpp of the image features, as :func:`nichekd.pp.histology_features` records them;
        of features that it did not make, ``use_rep``, their key.
    training
        Facts for the model card: data, split, seeds.
    training_range
        What the training tissue was like, lowest and highest over its sections: ``mpp`` of the images, mean
        ``n_neighbors``, and ``color`` of the crops; and how many means, ``n_groups`` and ``n_stains``, the two
        :class:`nichekd.models.TrainingRange` have, of tissue and of stain. Empty where it is not known.
    metrics
        For the model card, how well it did, and its floors and ceiling: a table of :func:`nichekd.tl.agreement` or
        :func:`nichekd.tl.evaluate`, a row a method; kept as rows of plain values, those of another K left out.

    Raises
    ------
    TypeError
        If ``metrics`` is no table.
    ValueError
        If two niches have one name, colours are none or not as many, a number is not above 0, or ``metrics`` name no
        methods, have no scores, or are of another number of niches.
    """

    n_features: int
    network: NeighborhoodConfig
    niche_names: tuple[str, ...]
    niche_colors: tuple[str, ...]
    radius: float
    temperature: float = 1.0
    calibration: float = 1.0
    features: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    training_range: dict[str, Any] = field(default_factory=dict)
    metrics: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if wrong := _wrong_values(vars(self)):
            raise ValueError(f"A student's config can't have {wrong}: {RULES}.")
        for name in ("niche_names", "niche_colors"):
            object.__setattr__(self, name, tuple(map(str, getattr(self, name))))
        for name in POSITIVE:  # numpy's become Python's, which JSON takes
            object.__setattr__(self, name, float(getattr(self, name)))
        object.__setattr__(self, "metrics", metric_rows(self.metrics, n_niches=len(self.niche_names)))

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for ``config.json``."""
        return {"format": FORMAT} | asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StudentConfig:
        """Back from ``config.json``.

        Raises
        ------
        ValueError
            If the values are of a later format, or some are missing or unknown.
        """
        values, written = values_of_format(values, FORMAT)
        later = {name for name, since in ADDED.items() if since > written}
        check_values(values, cls, CONFIG, but=later)
        wrong = _wrong_values(values)
        if not are_metric_rows(values.get("metrics", [])):
            wrong["metrics"] = values["metrics"]
        if wrong:
            raise ValueError(f"{CONFIG} holds {wrong}, as no student does; it is damaged. Fetch the folder again.")
        check_values(values["network"], NeighborhoodConfig, f"network of {CONFIG}")
        network = NeighborhoodConfig(**values.pop("network"))
        names, colors = tuple(values.pop("niche_names")), tuple(values.pop("niche_colors"))
        return cls(network=network, niche_names=names, niche_colors=colors, **values)


def _wrong_values(values: dict[str, Any]) -> dict[str, Any]:
    """Those that no student has: given, or in a file, whose checksum is of the weights alone."""
    from matplotlib.colors import is_color_like

    names, colors = values["niche_names"], values["niche_colors"]
    are_lists = [isinstance(either, (list, tuple)) for either in (names, colors)]
    are_names = are_lists[0] and all(isinstance(name, str) for name in names)
    right = {
        "n_features": isinstance(values["n_features"], int) and values["n_features"] > 0,
        "niche_names": are_names and len(set(names)) == len(names),
        "niche_colors": all(are_lists) and len(colors) == len(names) and all(map(is_color_like, colors)),
    }
    right |= {name: _is_positive(values[name]) for name in POSITIVE}
    right |= {name: isinstance(values.get(name, {}), dict) for name in ("features", "training", "training_range")}
    return {name: values[name] for name, is_right in right.items() if not is_right}


def _is_positive(value: Any) -> bool:
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return bool(is_number and math.isfinite(value) and value > 0)
