"""Settings: their location, their valid values, and their sources."""

from imago.definitions import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "root": ["CONFIG_DIR", "PROJECT_ROOT", "KeptRoot", "Root"],
        "resolvers": ["register"],
        "checks": ["check", "check_settings"],
        "allow_list": ["check_targets"],
        "targets": ["TARGETS", "Family"],
    },
)
