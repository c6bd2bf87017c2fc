"""Between the shell and the task."""

from imago.definitions import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {"entry": ["Command"], "command": ["TaskError"], "start_from": ["resolve_checkpoint_args", "resolve_run_args"]},
)
