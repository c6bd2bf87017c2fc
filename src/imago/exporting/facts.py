"""Metadata of files that other software runs: what their input and output mean."""

from typing import Any

from imago.definitions import __version__
from imago.evaluation.calibration import Calibration
from imago.evaluation.classifier import Classifier


def facts_of(classifier: Classifier, is_private: bool, is_exact: bool) -> dict[str, Any]:
    """Entries beside those of the weights, as plain types; of private training nothing that tells of its data. Only a
    file with the numbers of the checkpoint (`is_exact`) has the threshold that was tested on these."""
    calibration, entry = classifier.calibration, classifier.checkpoint
    return {
        "imago_version": __version__,
        "channels": classifier.channels,
        "white": classifier.decoding.greatest,
        "calibrated": calibration is not None,
        "temperature": 1.0 if calibration is None else calibration.temperature,
        **_acceptance(calibration, is_exact),
        "checkpoint": entry["timestamp"],
        **({} if is_private else {"data_fingerprint": entry["data"]["fingerprint"]}),
    }


def _acceptance(calibration: Calibration | None, is_exact: bool) -> dict[str, Any]:
    """Threshold of accepted predictions, and `acceptance`: whether it is `promised` or `estimated`, or why there is
    none."""
    if calibration is None or not is_exact:
        return {"acceptance": "uncalibrated" if calibration is None else "untested", "threshold": None}
    known = "estimated" if calibration.confidence is None else "promised"
    return {
        "acceptance": "nothing" if calibration.threshold is None else known,
        "threshold": calibration.threshold,
        "target_accuracy": calibration.target_accuracy,
        "confidence": calibration.confidence,
    }
