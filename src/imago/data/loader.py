"""The loader of a split, and its workers."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from imago.data.dataset import ImageDataset, collate
from imago.data.decode import BadImageError, damaged_files
from imago.data.samplers import SkipBatches
from imago.definitions import STOPPING, Batch

SECONDS_TO_LOOK = 1  # from look to look of a worker at whether the run lives


class Loader:
    """Iterable over the batches of a split.

    No subclass of DataLoader, so that Lightning leaves it as it is; lazy, so that `position` (the epoch, and the batch
    to begin with) is called with the first batch and not when Lightning, ahead of time, asks for the iterator.
    `prepare` then gets the dataset and the number of workers, and returns those to use: it fills caches.
    `on_damage` gets the JPEGs that are damaged inside: path -> what is wrong.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_sampler: Any,
        num_workers: int,
        position: Callable[[], tuple[int, int]] = lambda: (0, 0),
        prepare: Callable[[ImageDataset, int], tuple[ImageDataset, int]] = lambda dataset, workers: (dataset, workers),
        on_damage: Callable[[dict[str, str]], object] = lambda damaged: None,
        pin_memory: bool | None = None,
        prefetch_factor: int | None = None,
        persistent_workers: bool = True,
    ) -> None:
        self.dataset = dataset
        self.batch_sampler = batch_sampler
        self.num_workers = num_workers
        self.position = position
        self.prepare = prepare
        self.on_damage = on_damage
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.prefetch_factor = prefetch_factor
        self.persistent_workers = persistent_workers
        self.loaded = dataset.images
        """The images that are read, perhaps from a cache."""
        self._rest = SkipBatches(batch_sampler)
        self._batches: DataLoader[Batch] | None = None

    def __len__(self) -> int:
        return max(1, len(self.batch_sampler))  # with 0, Lightning would skip hooks in which processes synchronise

    def __iter__(self) -> Iterator[Batch]:
        self.batch_sampler.epoch, self._rest.first = self.position()
        if self._batches is None:
            self._batches = self._start()
        is_cached = self.loaded is not self.dataset.images
        self.batch_sampler.announced_from = None if is_cached else self._rest.first
        for batch in self._batches:
            if "error" in batch:
                raise BadImageError(batch["error"])
            if "damaged" in batch:
                self.on_damage(batch.pop("damaged"))
            yield batch

    @property
    def of_run(self) -> int:
        """Number of batches of the run; `len` is that of this process."""
        return getattr(self.batch_sampler, "of_run", len(self))

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state: `position` knows where to resume. Without it, Lightning would warn that it cannot."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accept the empty `state_dict()`."""

    def close(self) -> None:
        """End the workers, since the garbage collector may take five seconds for each. The loader stays usable."""
        self._batches = None

    def _start(self) -> DataLoader[Batch]:
        dataset, num_workers = self.prepare(self.dataset, self.num_workers)
        self.on_damage(damaged_files())
        self.loaded = dataset.images
        return DataLoader(
            dataset,
            batch_sampler=self._rest,
            num_workers=num_workers,
            persistent_workers=self.persistent_workers and num_workers > 0,
            prefetch_factor=self.prefetch_factor if num_workers > 0 else None,
            collate_fn=collate,
            pin_memory=self.pin_memory,
            worker_init_fn=_leave_signals_to_the_run,
            generator=torch.Generator(),  # private: nothing is drawn from the global one
        )


def _leave_signals_to_the_run(worker: int) -> None:
    """Ignore signals in a worker: schedulers send them to all processes of a job, terminals to a group, but the run
    handles them, and needs its workers until it has saved. Only a SIGTERM of the run itself ends a worker, and the end
    of the run."""
    del worker
    for number in (signal.SIGINT, *STOPPING):
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # elsewhere SIGTERM ends a worker, as usual in torch
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_run, args=[os.getppid()], daemon=True).start()


def _end_with_the_run(parent: int) -> None:
    """End this worker with the run, also in the middle of a batch: it holds connections of the run, and the pipes
    whose end tells the other processes that the run is gone."""
    run = multiprocessing.parent_process()
    assert run is not None
    while os.getppid() == parent and run.is_alive():  # workers forked later keep `is_alive` true
        sent = signal.sigtimedwait({signal.SIGTERM}, SECONDS_TO_LOOK)
        if sent is not None and sent.si_pid == run.pid:
            break
    os._exit(0)
