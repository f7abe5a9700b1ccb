"""What a student is, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nichekd.models import NicheStudent


def student_facts(student: NicheStudent) -> dict[str, str]:
    """What its model card says, and what it remembers of its training; by name, in the order to be read."""
    config = student.config
    facts = {"niches": f"{student.n_niches}: {', '.join(config.niche_names)}", **_features(student)}
    facts["neighborhood radius"] = f"{config.radius:.2f} µm"
    calibrated = config.calibration != 1
    facts["probabilities"] = (
        f"calibrated, factor {config.calibration:.3g}"
        if calibrated
        else "as trained: nk.tl.calibrate has not run, or found no factor that helps"
    ) + f"; temperature {config.temperature:.3g}"
    facts["training"] = _training(config.training) or "not recorded"
    known = config.training_range
    if student.training_range is None or not known:
        facts["training tissue"] = "not remembered: no out-of-distribution score, no warnings of another stain"
        return facts
    parts = [f"{_span(known['n_neighbors'], '.1f')} neighbors on average"]
    if "mpp" in known:
        parts.append(f"images of {_span(known['mpp'], '.4g')} µm per pixel")
    facts["training tissue"] = ", ".join(parts)
    return facts


def license_notice(student: NicheStudent) -> str | None:
    """What a non-commercial licence of the encoder's weights asks; ``None`` where it is no such."""
    from nichekd.models._card_features import is_non_commercial

    features = student.config.features
    if not is_non_commercial(features):
        return None
    encoder = features.get("encoder")
    name, licence = ("UNI2-h", "CC-BY-NC-ND 4.0") if encoder == "uni2" else (encoder, features["license"])
    return (
        f"The image encoder {name} is licensed {licence}: a student of its features is a derivative, for non-commercial "
        "research only, and so is what it maps."
    )


def _features(student: NicheStudent) -> dict[str, str]:
    features = student.config.features
    if "encoder" not in features:
        return {"image encoder": "not recorded"}
    where = "; travels with the student" if student.encoder is not None else ""
    facts = {
        "image encoder": f"{features.get('encoder', 'not recorded')} ({student.config.n_features} features{where})",
        "encoder's licence": str(features.get("license", "not recorded")),
    }
    if "crop_px" in features and "mpp" in features:
        side, mpp = int(features["crop_px"]), float(features["mpp"])
        facts["crop"] = f"{side} px at {mpp:.4g} µm per pixel, {side * mpp:.0f} µm wide"
    if features.get("mode") == "dense":
        facts["mode"] = f"dense, tiles {features.get('stride_px')} px apart"
    if features.get("stain"):
        facts["stain normalisation"] = str(features["stain"])
    return facts


def _training(training: Mapping[str, Any]) -> str:
    parts = []
    for name, value in training.items():
        shown = f"({_training(value)})" if isinstance(value, dict) else f"{value:,}" if _is_count(value) else str(value)
        parts.append(f"{name} {shown}")
    return ", ".join(parts)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _span(ends: Any, form: str) -> str:
    low, high = (format(float(end), form) for end in ends)
    return low if low == high else f"{low} to {high}"
