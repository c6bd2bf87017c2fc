"""The order of rank 0 to another process of its run, and how that process carries it out."""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NoReturn, cast

from omegaconf import DictConfig, OmegaConf

from imago.cli.hydra_internals import restore_hydra
from imago.config.invocation import Invocation
from imago.config.launcher import Launch
from imago.config.own_code import OWN_CODE, allow_imports
from imago.config.resolvers import register
from imago.errors import UserError
from imago.run.folder import RunFolder
from imago.run.search_place import Trial

SECONDS_TO_SEE = 90  # for a new file to be seen on another node: NFS looks again after up to 60


def order_of(task: Callable[..., Any], cfg: DictConfig, run: RunFolder, mark: str | None = None) -> dict[str, Any]:
    """Order for another process to do the task of rank 0, in plain types; `mark` is a file in the run folder."""
    return {
        "task": _address(task),
        "run": str(run.path),
        "mark": mark,
        "resume_from": str(run.resume_from) if run.resume_from is not None else None,
        "processes": run.processes,
        "port": run.port,
        "prunes": run.trial is not None and run.trial.prunes,
        "config": OmegaConf.to_yaml(cfg),
        "invocation": run.invocation.to_plain(),
        "own_code": {name: str(folder) for name, folder in OWN_CODE.folders.items()},
    }


def do_order(order: dict[str, Any], rank: int, launch: Launch | None = None) -> None:
    """Do the task of rank 0 in this process.

    Raises:
        UserError: This machine does not see the run folder, or has too few GPUs.
    """
    for name, place in order["own_code"].items():
        allow_imports([name], Path(place))
    folder = Path(order["run"])
    _check_folder(folder, order["mark"])
    run = RunFolder(folder, rank=rank, processes=order["processes"], port=order["port"], launch=launch)
    run.resume_from = Path(order["resume_from"]) if order["resume_from"] is not None else None
    run.invocation = Invocation.from_plain(order["invocation"])
    if order["prunes"]:
        run.trial = Trial(str(run.invocation.sweep_dir), prunes=True)  # rank 0 reports
    cfg = _restore_config(order["config"], run.invocation.hydra)
    if launch is not None:
        from imago.cli.devices import check_gpus

        check_gpus(cfg.trainer, launch)
    _at(*order["task"])(cfg, run)
    leave_group()


def _check_folder(folder: Path, mark: str | None) -> None:
    """Raise UserError unless this is the run folder of rank 0, which has left a `mark` in it if it is on another node:
    a folder of that name may be left over on a disk of this one."""
    seen = folder if mark is None else folder / mark
    deadline = time.monotonic() + (0 if mark is None else SECONDS_TO_SEE)
    while not seen.exists():
        if time.monotonic() >= deadline:
            what = "has another" if folder.is_dir() else "does not see the"
            raise UserError(
                f"{socket.gethostname()} {what} run folder {folder}. Type paths.log_dir= (or hydra.run.dir=) with a "
                "folder that all nodes share."
            )
        time.sleep(0.2)


def _address(task: Callable[..., Any]) -> tuple[str | None, str, str]:
    """Module (None: a script that was started by its path), file and name of `task`."""
    module = sys.modules[task.__module__]
    if module.__name__ == "__main__":
        spec = module.__spec__
        return (spec.name if spec is not None else None), str(module.__file__), task.__name__
    return module.__name__, str(module.__file__), task.__name__


def _at(module: str | None, file: str, name: str) -> Callable[..., Any]:
    if module is not None:
        return getattr(import_module(module), name)
    spec = spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    assert spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    return getattr(script, name)


def _restore_config(text: str, hydra_settings: str) -> DictConfig:
    """The config of rank 0."""
    restore_hydra(hydra_settings)
    register()
    cfg = cast(DictConfig, OmegaConf.create(text))
    OmegaConf.set_struct(cfg, True)
    return cfg


def leave_group(abort: bool = False) -> None:
    """Leave the process group, if there is one."""
    if "torch" in sys.modules:  # else there is none, and --help stays light
        from imago.distributed import leave_process_group

        leave_process_group(abort)


def end(code: int) -> NoReturn:
    """End this process at once, with the loader's workers: threads of a broken process group would wait for others."""
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(code)
