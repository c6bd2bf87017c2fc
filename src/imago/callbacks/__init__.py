"""Callbacks: those of the config group `callbacks`, and those that every run has."""

from imago.definitions import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "metrics": ["MetricsCallback"],
        "confusion_matrix": ["ConfusionMatrixCallback"],
        "best_checkpoint": ["RunCheckpoint"],
        "last_checkpoint": ["ResumeCheckpoint"],
        "progress": ["PlainProgress", "TimedBar", "progress_bar"],
        "no_dropout": ["NoDropout"],
        "ema": ["EMA"],
        "swa": ["SWA"],
        "unfreeze": ["GradualUnfreezing"],
        "label_margins": ["LabelMargins"],
        "preflight": ["Preflight"],
        "pruning": ["Pruning"],
        "run_status": ["RunStatus"],
        "carried_state": ["CarriedState"],
        "epoch_log": ["EpochLog", "LRMonitor"],
        "timing": ["Timing"],
        "profiler": ["PartsProfiler"],
    },
)
