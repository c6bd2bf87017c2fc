"""Look at every file of a data folder before it is trained on: damaged and doubled images, leaks, strange classes.

ml-doctor data.data_dir=PATH
ml-doctor clean
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from imago.checks import check_doctor
from imago.command import run_command, type_as_usual
from imago.config import CONFIG_DIR
from imago.run_folder import RunFolder

if TYPE_CHECKING:
    from imago.data.faults import Findings


def main() -> None:
    """The command line of looking at data; ends with 0 (nothing), 1 (warnings) or 2 (errors, or it could not look).

    Of several folders (`-m`), the worst counts.
    """
    _found.clear()
    sys.argv[1:] = ["clean=true" if word == "clean" else word for word in sys.argv[1:]]
    try:
        _main()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        sys.exit(2 if isinstance(stop.code, str) or stop.code == 1 else stop.code)
    sys.exit(int(max(_found, default=0)))


@type_as_usual
@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="doctor")
def _main(cfg: DictConfig) -> None:
    _found.append(run_command(examine_from_config, cfg, check_doctor, one_process=True) or 0)


_found: list[float] = []


def examine_from_config(cfg: DictConfig, run: RunFolder) -> float:
    """Looks, shows what was found, writes it to the run folder; returns the exit status."""
    if cfg.clean:
        return _clean(Path(cfg.data.cache_dir))
    from imago.data.faults import find_faults
    from imago.data.folders import listed_paths
    from imago.data.loading import workers
    from imago.doctor_report import show, write
    from imago.image_settings import eval_transform_of

    root = _folder(cfg)
    excluded = listed_paths(Path(cfg.data.exclude).expanduser()) if cfg.data.exclude is not None else set()
    transform = eval_transform_of(cfg.data)
    box = transform.box if transform.is_fixed else None
    findings: Findings = find_faults(root, workers(cfg.data.num_workers or None, 1), excluded, box)
    show(findings, run.path)
    write(findings, run.path)
    return findings.exit_status


def _clean(cache_dir: Path) -> float:
    from imago.data.cache import clean

    removed = clean(cache_dir)
    for place, size in removed:
        print(f"removed {place}: {size / 1e6:.0f} MB")
    print(f"{len(removed)} caches of decoded images were in {cache_dir}")
    return 0


def _folder(cfg: DictConfig) -> Path:
    from hydra.utils import instantiate

    if cfg.data.get("data_dir") is not None:
        return Path(cfg.data.data_dir).expanduser()
    return Path(instantiate(cfg.data.source)())


if __name__ == "__main__":
    main()
