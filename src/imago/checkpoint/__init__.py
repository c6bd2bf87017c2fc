"""Checkpoint files: written atomically, and read without executing anything in them."""

from imago.definitions import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "read": ["find_checkpoint", "last_readable", "read_checkpoint"],
        "fits": ["check_fits", "load_weights"],
        "write": ["WholeFileCheckpointIO"],
        "signing": ["is_signed", "key_file", "sign"],
    },
)
