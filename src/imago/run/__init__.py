"""One run on the disk: its folder, lock, log and provenance."""

from imago.definitions import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "folder": ["RunFolder", "RunFolderError", "find_run", "read_status"],
        "logs": ["logging_to"],
        "provenance": ["environment", "git_state", "versions"],
    },
)
