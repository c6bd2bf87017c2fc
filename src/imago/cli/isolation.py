"""What a run changes in its process, and how it is put back where Python calls it."""

import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import rich

from imago.cli.hydra_internals import singletons_kept
from imago.config.own_code import OWN_CODE
from imago.definitions import STOPPING


@contextmanager
def isolated() -> Iterator[None]:
    """Inside, a run may change signals, warning filters, loggers, `sys.path`, `sys.argv`, environment variables and the
    singletons of Hydra and rich; afterwards all of them are as they were."""
    argv, path, meta_path = list(sys.argv), list(sys.path), list(sys.meta_path)
    environment, own_code = dict(os.environ), dict(OWN_CODE.folders)
    filters, show = list(warnings.filters), warnings.showwarning
    loggers, handlers, console = _loggers(), _signal_handlers(), rich._console
    rich._console = None  # it prints to what stdout was when it was made
    try:
        with singletons_kept():
            yield
    finally:
        sys.argv[:], sys.path[:], sys.meta_path[:] = argv, path, meta_path
        os.environ.clear()
        os.environ.update(environment)
        OWN_CODE.folders.clear()
        OWN_CODE.folders.update(own_code)
        warnings.filters[:] = filters  # type: ignore[index]
        warnings.showwarning = show
        for logger, (level, own_handlers) in loggers.items():
            logger.setLevel(level)
            logger.handlers[:] = own_handlers
        for number, handler in handlers.items():
            signal.signal(number, handler)
        rich._console = console


@contextmanager
def isolated_torch() -> Iterator[None]:
    """Inside, a run may change torch's global options, and seed all generators; afterwards they are as they were."""
    import numpy as np
    import torch

    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    precision, threads, cudnn = torch.get_float32_matmul_precision(), torch.get_num_threads(), torch.backends.cudnn
    options = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32
    generators: tuple[Any, Any, Any] = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = options
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])


def _loggers() -> dict[logging.Logger, tuple[int, list[logging.Handler]]]:
    known = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    return {logger: (logger.level, list(logger.handlers)) for logger in known}


def _signal_handlers() -> dict[int, Any]:
    """Those that a run answers; only the main thread may set them."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in (signal.SIGINT, *STOPPING)}
