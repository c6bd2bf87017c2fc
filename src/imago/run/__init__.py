"""One run on the disk: its folder, lock, log and provenance."""

from imago.definitions import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "find": ["find_run"],
        "folder": ["RunFolder", "RunFolderError", "read_status"],
        "logs": ["logging_to"],
        "provenance": ["environment", "git_state", "versions"],
    },
)
