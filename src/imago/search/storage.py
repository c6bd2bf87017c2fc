"""Where a study is kept, in Optuna 2.10 and 4; Optuna is imported by these functions alone."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imago.errors import DiskError, MissingModuleError, UserError
from imago.search.space import Choice, Interval

SQLITE, JOURNAL = "study.db", "study.journal"


@contextmanager
def quiet_optuna() -> Iterator[Any]:
    """Yield the module of Optuna; inside, neither it nor what it imports says what is no news.

    Raises:
        UserError: It is not installed.
        DiskError: The storage of a study fails inside.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental features, and what 2.10 uses of NumPy, SciPy and SQLAlchemy
        try:
            import optuna
        except ImportError as error:
            raise MissingModuleError(
                f"A search needs a package that is not installed ({error}): pip install 'imago[optuna]'"
            ) from error
        optuna.logging.disable_default_handler()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        for name in ("alembic", "sqlalchemy"):
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            yield optuna
        except Exception as error:
            if not _is_of_storage(error):
                raise
            why = _first_line(error.__cause__ or error)  # Optuna's own words do not say
            raise DiskError(f"The study could not be read or written: {why}") from error


def _is_of_storage(error: Exception) -> bool:
    """Whether a storage fails, be it a file or a database."""
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    is_database = kinds & {"optuna.StorageInternalError", "sqlalchemy.SQLAlchemyError"}
    return bool(is_database) or (isinstance(error, OSError) and not isinstance(error, UserError))


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def open_storage(optuna: Any, storage: str | None, folder: Path) -> Any:
    """Storage of a study: `auto` is a file in `folder`, None memory; anything else is a URL, or the path of a file.

    A journal takes each write in one line, and 4 has it; 2.10 has SQLite alone, whose file is used on wherever it is.
    """
    if storage is None:
        return optuna.storages.InMemoryStorage()
    has_journal = hasattr(optuna.storages, "JournalStorage")
    if storage == "auto":
        is_journal = has_journal and not (folder / SQLITE).is_file()
        storage = str(folder / JOURNAL) if is_journal else f"sqlite:///{(folder / SQLITE).absolute()}"
    if "://" not in storage:
        if not has_journal:
            storage = f"sqlite:///{Path(storage).absolute()}"
        else:
            return optuna.storages.JournalStorage(_journal_file(optuna, storage))
    try:
        return optuna.storages.RDBStorage(storage)
    except ImportError as error:
        raise UserError(f"hydra.sweeper.storage={storage} needs a package: {error}") from error
    except Exception as error:  # of SQLAlchemy, or of an older schema
        raise UserError(f"The study {storage} cannot be opened: {_first_line(error)}") from error


def _journal_file(optuna: Any, path: str) -> Any:
    journal = getattr(optuna.storages, "journal", None)  # since 4.0
    if journal is not None and hasattr(journal, "JournalFileBackend"):
        return journal.JournalFileBackend(path)
    return optuna.storages.JournalFileStorage(path)


def remove_stale_lock(folder: Path) -> None:
    """Remove the lock of a journal whose process was killed while it wrote: the study has a lock of its own."""
    for suffix in (".lock", ".lock.rename"):
        path = folder / f"{JOURNAL}{suffix}"
        if os.path.lexists(path):
            path.unlink()


def suggest(trial: Any, key: str, kind: Choice | Interval) -> Any:
    """Value of a setting in a trial of Optuna: the one that it has, or a new one from its sampler."""
    if isinstance(kind, Choice):
        return trial.suggest_categorical(key, list(kind.texts))
    draw = trial.suggest_int if kind.is_integer else trial.suggest_float
    step = {} if kind.is_log or kind.step is None else {"step": kind.step}
    return draw(key, kind.low, kind.high, log=kind.is_log, **step)
