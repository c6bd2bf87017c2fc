"""Serve the predictions of one or several checkpoints over HTTP.

ml-serve ckpt_path=RUN
ml-serve ckpt_path=RUN host=0.0.0.0 port=8080
"""

import importlib.util
import logging
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from imago.cli.entry import Command
from imago.cli.orders import end
from imago.cli.start_from import resolve_checkpoint_args
from imago.cli.typed_words import check_choice
from imago.config.checks import check_from_checkpoint
from imago.config.ensemble import TTA, check_ensemble, checkpoints_of
from imago.config.invocation import Invocation, override_key
from imago.config.root import KeptRoot
from imago.config.trainer import FULL_PRECISION, check_as_tested
from imago.errors import UserError
from imago.run.folder import RunFolder
from imago.serving.address import is_local, listen, url_of
from imago.terminal import counted

if TYPE_CHECKING:
    from imago.evaluation.calibration import Calibration
    from imago.evaluation.classifier import Classifier

log = logging.getLogger(__name__)

PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
LEAST = {"port": 0, "max_batch_size": 1, "max_images": 1, "max_pixels": 1, "max_in_flight": 1, "batch_wait_ms": 0}
ABOVE_0 = ("max_body_mb", "timeout_s")
WITHOUT_USE = ("trainer", "logger", "callbacks", "strategy", "data.batch_size", "data.num_workers", "data.data_dir")
SHORTEST_KEY = 16


@dataclass
class ServeRoot(KeptRoot):
    """Settings that `serve.yaml` adds."""

    host: str = "127.0.0.1"
    port: int = 8000
    device: str = "auto"
    weights: Any = None
    tta: str = "none"
    calibrated: Any = "auto"
    max_batch_size: int = 32
    batch_wait_ms: float = 10
    max_body_mb: float = 16
    max_images: int = 32
    max_pixels: int = 50_000_000
    max_in_flight: int = 32
    timeout_s: float = 30
    api_key: Any = None
    allowed_hosts: list[str] = field(default_factory=list)


def check_serve(cfg: DictConfig, invocation: Invocation) -> None:
    """Raise UserError for settings that cannot work, a package that is missing, and a port in use."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"ml-serve needs {', '.join(missing)}, not installed here: pip install 'imago[serve]'")
    check_from_checkpoint(cfg, invocation, needs_data=False)
    for word in invocation.overrides:
        key = override_key(word)
        if any(f"{key}.".startswith(f"{name}.") for name in WITHOUT_USE):
            raise UserError(f"{word} has no use in ml-serve: remove it. device= and max_batch_size= are its own.")
    check_ensemble(cfg, invocation)
    if cfg.calibrated is True:
        check_as_tested(cfg, invocation, "calibrated")
    check_choice("tta", cfg.tta, TTA)
    if not isinstance(cfg.calibrated, bool) and cfg.calibrated != "auto":
        raise UserError(f"calibrated must be true, false or auto, got {cfg.calibrated}.")
    for option, least in LEAST.items():
        if not least <= cfg[option] < float("inf"):
            raise UserError(f"{option} must be a number of {least} or more, got {cfg[option]}.")
    for option in ABOVE_0:
        if not 0 < cfg[option] < float("inf"):
            raise UserError(f"{option} must be a number above 0, got {cfg[option]}.")
    if cfg.port > 65535:
        raise UserError(f"port must be 65535 or less, got {cfg.port}.")
    _check_key(_key(cfg))
    listen(cfg.host, cfg.port).close()


def _key(cfg: DictConfig) -> Any:
    """The key that was typed, or that of the environment, which no config contains."""
    return cfg.api_key if cfg.api_key is not None else os.environ.get("IMAGO_API_KEY")


def _check_key(key: Any) -> None:
    """Raise UserError for a key that is easy to guess, or that no header can hold. The message does not contain it."""
    if key is None:
        return
    if not isinstance(key, str):
        raise UserError(
            "api_key is a number, which can be written in several ways. Put it into quotes: 'api_key=\"…\"'"
        )
    if len(key) < SHORTEST_KEY or not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(
            f"api_key must have {SHORTEST_KEY} characters or more, of ASCII and without spaces. To draw one, type "
            "export IMAGO_API_KEY=\"$(python -c 'import secrets; print(secrets.token_urlsafe())')\""
        )


def serve_from_config(cfg: DictConfig, run: RunFolder) -> None:
    """Load the checkpoints, and serve until SIGTERM or Ctrl-C."""
    from imago.evaluation.loading import members_of
    from imago.serving.gate import host_of
    from imago.serving.limits import Limits
    from imago.serving.predictor import Predictor
    from imago.serving.server import serve
    from imago.serving.service import Service

    files = checkpoints_of(cfg)
    members = members_of(cfg, files)
    if len(members) == 1:
        members[0].calibration = _calibration(cfg, members[0], files[0])
    for member in members:
        member.model.to(_device(cfg.device))
    precision = cfg.trainer.get("precision")
    if precision not in FULL_PRECISION:
        log.info("Computing in float32. ml-inference takes trainer.precision=%s, and differs by about 1e-3", precision)
    limits = Limits(int(cfg.max_body_mb * 2**20), cfg.max_images, cfg.max_pixels, cfg.max_in_flight, cfg.timeout_s)
    predictor = Predictor(members, cfg.weights, cfg.tta)
    threads = _network_threads(members[0].model.device.type)
    service = Service(predictor, limits, cfg.max_batch_size, cfg.batch_wait_ms, threads, _key(cfg))
    with listen(cfg.host, cfg.port) as listener:
        if not is_local(listener.getsockname()[0]) and service.api_key is None:
            log.warning(
                "host=%s without api_key=: everybody who reaches this machine can use the server, and so can "
                "pages that are open in their browsers, unless allowed_hosts= is typed",
                cfg.host,
            )
        allowed = [host_of(name) for name in cfg.allowed_hosts]
        serve(service, listener, allowed, partial(_announce, members, url_of(listener)))
    log.info("Stopped. %s answered", counted(service.metrics.total, "request"))
    run.sections["Results"] = {"requests": service.metrics.total}


def _announce(members: "list[Classifier]", url: str) -> None:
    for member in members:
        log.info("%r", member)
    log.info("Serving at %s (Ctrl-C ends it)", url)


def _calibration(cfg: DictConfig, member: "Classifier", file: Path) -> "Calibration | None":
    """The calibration of the checkpoint. For `auto`, None if it has none, or one for another transform."""
    from imago.evaluation.calibration_file import calibration_if_any, calibration_of

    if cfg.calibrated is True:
        return calibration_of(member.checkpoint, cfg.data, file)
    if cfg.calibrated is False or cfg.tta != "none":
        return None
    return calibration_if_any(member.checkpoint, cfg.data, file, "Predictions are not calibrated")


def _network_threads(device: str) -> int:
    """Number of threads for the network. On a CPU there are two, which divide the cores: a single one waits at the end
    of every layer for the slowest core."""
    import torch

    if device != "cpu" or torch.get_num_threads() == 1:
        return 1
    torch.set_num_threads(torch.get_num_threads() // 2)
    return 2


def _device(name: str) -> str:
    """Name of the device, which is tried.

    Raises:
        UserError: There is no such device.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"device={name}: {reason}. Type device=cpu, cuda, cuda:1, … or auto") from error
    return name


main = Command(
    "serve",
    serve_from_config,
    check_serve,
    root=ServeRoot,
    arguments=partial(resolve_checkpoint_args, predicts=True),
    choices={"tta": TTA},
    one_process=True,
)
"""Command line of `ml-serve`."""


def program() -> None:
    """Run `ml-serve`, and end its process at once: Python would wait for images that are being decoded, and take
    seconds to free what was imported."""
    main()
    logging.shutdown()
    with suppress(OSError):
        sys.stdout.flush()
    end(0)


if __name__ == "__main__":
    program()
