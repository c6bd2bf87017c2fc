"""What every command does around its work: claim the run folder, log, turn errors into one message and a status."""

import functools
import logging
import os
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from imago.config import save_config, typed_overrides
from imago.logs import logging_to
from imago.run_folder import RunFolder, RunFolderError

log = logging.getLogger(__name__)

INTERRUPTED, TERMINATED = 130, 143  # 128 + number of the signal, as shells report it
NULL_GROUPS = {"logger=null": "logger=[]", "callbacks=null": "callbacks=none"}
Task = Callable[[DictConfig, RunFolder], float | None]


def type_as_usual(main: Callable[[], Any]) -> Callable[[], Any]:
    """Lets people type `-m` between the overrides, answers `logger=null`, and ends at Ctrl-C without a traceback."""

    @functools.wraps(main)
    def command() -> Any:
        for word, instead in NULL_GROUPS.items():
            if word in sys.argv:
                sys.exit(f"Error: Hydra takes no null for a group. Type {instead} for {word}")
        sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))
        try:
            return main()
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)

    return command


def run_command(task: Task, cfg: DictConfig) -> float | None:
    """Runs `task` in its run folder and returns its value for the sweeper; exits with a status unless it succeeds."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    sys.path.append(os.getcwd())  # `my.module.MyNet` stands beside the person who types it
    try:
        run = RunFolder.claim(folder)
    except (RunFolderError, OSError) as error:
        sys.exit(f"Error: {error}")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)
    with logging_to(folder / f"{cfg.task_name}.log", verbose=bool(HydraConfig.get().verbose)):
        try:
            if cfg.seed is None:
                cfg.seed = random.SystemRandom().randrange(2**31)
                log.info("seed=null: drew seed=%d", cfg.seed)
            _describe(run, cfg)
            value = task(cfg, run)
        except SystemExit as stop:
            if stop.code == TERMINATED:
                _give_up(run, "preempted", f"Terminated by SIGTERM.{_go_on(run)}", TERMINATED)
            _give_up(run, "interrupted", f"Stopped by Ctrl-C.{_go_on(run)}", INTERRUPTED)  # as Lightning answers it
        except KeyboardInterrupt:
            _give_up(run, "interrupted", f"Stopped by Ctrl-C.{_go_on(run)}", INTERRUPTED)
        except Exception as error:
            log.debug("The run failed", exc_info=True)
            _give_up(run, "failed", _message(error), 1)
        run.update(status="completed")
    return value


def _describe(run: RunFolder, cfg: DictConfig) -> None:
    save_config(cfg, run.path)
    run.sections["Run"] = {
        "name": cfg.name,
        "folder": run.path,
        "tags": ", ".join(cfg.tags) or None,
        "typed": " ".join(typed_overrides()) or "nothing",
    }
    run.sections["Configuration"] = {"config.yaml": "\n" + OmegaConf.to_yaml(cfg, resolve=True).rstrip()}
    run.update()
    log.debug("Command line: %s", " ".join(sys.argv))


def _message(error: Exception) -> str:
    """The cause in words: what our own classes raise speaks for itself, of the rest the kind is named."""
    key = None
    while isinstance(error, InstantiationException) and isinstance(error.__cause__, Exception):
        key = next((line.split(":", 1)[1].strip() for line in str(error).splitlines() if "full_key:" in line), key)
        error = error.__cause__
    speaks = _raised_by_us(error) and isinstance(error, ValueError | OSError | FloatingPointError)
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    kind = "" if speaks and text else f"{type(error).__name__}: "
    where = f"\n(while making {key})" if key is not None and not speaks else ""
    return f"{kind}{text}{where}"


def _raised_by_us(error: Exception) -> bool:
    """Whether it comes from a `raise` in this package, and so with whole sentences."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parent)


def _give_up(run: RunFolder, status: str, error: str, code: int) -> NoReturn:
    log.info("The run folder is %s", run.path)
    log.error("%s", error)
    try:
        run.update(status=status, error=error)
    except OSError as unwritable:  # a full disk, say, must not hide what went wrong
        log.error("status.json could not be written: %s", unwritable)
    sys.exit(code)


def _terminated(*_: Any) -> NoReturn:
    raise SystemExit(TERMINATED)


def _go_on(run: RunFolder) -> str:
    last = run.path / "checkpoints" / "last.ckpt"
    return (
        f" Go on from it in a new folder with ckpt_path={last}" if last.is_file() else " No checkpoint was written yet."
    )
