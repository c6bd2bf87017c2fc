"""What a run changes in its process, and how it is put back where Python calls it.

Signal handlers are not here: cli/command.py puts them back at the end of each run, those of a sweep too.
"""

import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import rich

from imago.cli.hydra_internals import singletons_kept
from imago.config.own_code import OWN_CODE
from imago.errors import UserError

_ONE_CALL = threading.RLock()


@contextmanager
def isolated() -> Iterator[None]:
    """Inside, a run may change warning filters, loggers, hooks, `sys.path`, `sys.argv`, environment variables and the
    singletons of Hydra and rich; afterwards all of them are as they were, and the run's own modules are forgotten.

    Raises:
        UserError: Another thread is inside.
    """
    if not _ONE_CALL.acquire(blocking=False):
        raise UserError("Another thread of this process is running Imago. Wait for it, or use several processes.")
    argv, path, meta_path, excepthook = list(sys.argv), list(sys.path), list(sys.meta_path), sys.excepthook
    environment = dict(os.environ)
    filters, show = list(warnings.filters), warnings.showwarning
    loggers, console = _loggers(), rich._console
    rich._console = None  # it prints to what stdout was when it was made
    try:
        with singletons_kept(), OWN_CODE.forgetting():
            yield
    finally:
        sys.argv[:], sys.path[:], sys.meta_path[:], sys.excepthook = argv, path, meta_path, excepthook
        os.environ.clear()
        os.environ.update(environment)
        warnings.filters[:] = filters  # type: ignore[index]
        warnings.showwarning = show
        for logger, (level, handlers, propagate) in loggers.items():
            logger.setLevel(level)
            logger.handlers[:], logger.propagate = handlers, propagate
        rich._console = console
        _ONE_CALL.release()


@contextmanager
def isolated_torch() -> Iterator[None]:
    """Inside, a run may change torch's global options, and seed all generators; afterwards they are as they were."""
    import numpy as np
    import torch

    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    precision, threads, cudnn = torch.get_float32_matmul_precision(), torch.get_num_threads(), torch.backends.cudnn
    options, has_gradients = (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32), torch.is_grad_enabled()
    generators: tuple[Any, Any, Any] = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        if torch.get_float32_matmul_precision() != precision:
            torch.set_float32_matmul_precision(precision)
        torch.set_grad_enabled(has_gradients)
        torch.set_num_threads(threads)
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = options
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])


def _loggers() -> dict[logging.Logger, tuple[int, list[logging.Handler], bool]]:
    known = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    return {logger: (logger.level, list(logger.handlers), logger.propagate) for logger in known}
