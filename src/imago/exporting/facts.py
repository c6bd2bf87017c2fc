"""Metadata of files that other software runs: what their input and output mean."""

from typing import Any

from imago.definitions import __version__
from imago.evaluation.classifier import Classifier


def facts_of(classifier: Classifier, is_private: bool) -> dict[str, Any]:
    """Entries beside those of the weights, as plain types; of private training nothing that tells of its data."""
    calibration, entry = classifier.calibration, classifier.checkpoint
    return {
        "imago_version": __version__,
        "channels": classifier.channels,
        "white": classifier.decoding.greatest,
        "calibrated": calibration is not None,
        "temperature": 1.0 if calibration is None else calibration.temperature,
        "threshold": None if calibration is None else calibration.threshold,
        "checkpoint": entry["timestamp"],
        **({} if is_private else {"data_fingerprint": entry["data"]["fingerprint"]}),
    }
