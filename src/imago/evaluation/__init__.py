"""Scores, predictions, calibration, and the classifier in a checkpoint."""

from imago.definitions import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "score": ["Predictions", "Score"],
        "calibration": ["Calibration"],
        "classifier": ["Classifier"],
        "loading": ["load_classifier"],
        "prediction": ["Prediction"],
        "functions": ["classification_report", "confusion_matrix"],
        "evaluate": ["Result"],
    },
)
