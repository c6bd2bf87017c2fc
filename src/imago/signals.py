"""The signals that end a run, and the exit statuses that tell of them."""

import signal

STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Those of schedulers; Ctrl-C comes besides."""
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # as shells report it
