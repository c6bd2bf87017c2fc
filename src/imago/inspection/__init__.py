"""What `ml-doctor` looks for in a data folder."""

from imago.definitions import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "issues": ["Findings", "Issue"],
        "scan": ["find_issues"],
    },
)
