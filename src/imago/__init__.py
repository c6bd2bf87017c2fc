"""Imago trains, evaluates and ships image classifiers."""

from imago.definitions import __version__, lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "api": ["RunResult", "evaluate", "load_config"],
        "checkpoint.read": ["read_checkpoint"],
        "cli.command": ["TaskError"],
        "data.decode": ["BadImageError"],
        "errors": ["UserError"],
        "evaluation.classifier": ["Classifier"],
        "evaluation.loading": ["load_classifier"],
        "evaluation.prediction": ["Prediction"],
        "evaluation.functions": ["classification_report", "confusion_matrix"],
        "train": [],  # a module that can be called
    },
    instead={
        **dict.fromkeys(
            ("predict", "classify", "infer", "inference"), 'imago.load_classifier("RUN").predict("photo.jpg")'
        ),
        **dict.fromkeys(("load", "load_model", "load_checkpoint"), 'imago.load_classifier("RUN")'),
        **dict.fromkeys(("fit", "run", "Trainer"), 'imago.train("experiment=digits")'),
        **dict.fromkeys(("test", "validate", "val", "score", "eval"), 'imago.evaluate("RUN")'),
        **dict.fromkeys(("config", "get_config", "compose"), 'imago.load_config("experiment=digits")'),
    },
)
__all__ += ["__version__", "train"]
