"""The page of a run, and figures, made from the files in its folder."""

from imago.definitions import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "page": ["refresh_report", "write_report"],
        "content": ["history"],
        "plots": ["confusion_matrix_figure", "curves_figure"],
        "tensorboard": ["serve_tensorboard"],
        "thumbnails": ["thumbnail"],
    },
)
