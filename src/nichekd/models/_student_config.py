"""What a student carries besides its weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from nichekd.models._folder import CONFIG, check_values, values_of_format
from nichekd.models._metrics import are_metric_rows, metric_rows
from nichekd.models._neighborhood_transformer import NeighborhoodConfig

FORMAT = 4  # with the range of stains
ADDED = {"training_range": 2, "metrics": 3}  # values of the config, by the format that they came with


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
        _check_values(values)
        check_values(values["network"], NeighborhoodConfig, f"network of {CONFIG}")
        network = NeighborhoodConfig(**values.pop("network"))
        names, colors = tuple(values.pop("niche_names")), tuple(values.pop("niche_colors"))
        return cls(network=network, niche_names=names, niche_colors=colors, **values)


def _check_values(values: dict[str, Any]) -> None:
    """Refuse what no student was saved with; the checksum is of the weights alone."""
    names, colors = values["niche_names"], values["niche_colors"]
    are_lists = isinstance(names, (list, tuple)) and isinstance(colors, (list, tuple))
    right = {
        "n_features": isinstance(values["n_features"], int) and values["n_features"] > 0,
        "niche_names": isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names),
        "niche_colors": are_lists and len(colors) == len(names),
        "metrics": are_metric_rows(values.get("metrics", [])),
    }
    for key in ("radius", "temperature", "calibration"):
        right[key] = isinstance(values[key], (int, float)) and math.isfinite(values[key]) and values[key] > 0
    right |= {key: isinstance(values.get(key, {}), dict) for key in ("features", "training", "training_range")}
    if wrong := {key: values[key] for key, is_right in right.items() if not is_right}:
        raise ValueError(f"{CONFIG} holds {wrong}, as no student does; it is damaged. Fetch the folder again.")
