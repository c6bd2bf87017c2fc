"""Check every file of a data folder before training: damaged and duplicate images, leaks, missing classes.

ml-doctor data.data_dir=PATH
ml-doctor clean
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from imago.cli.entry import Command
from imago.config.checks import check_settings
from imago.config.invocation import Invocation
from imago.config.root import KeptRoot
from imago.errors import UserError
from imago.run.folder import RunFolder

if TYPE_CHECKING:
    from imago.inspection.issues import Findings


@dataclass
class DoctorRoot(KeptRoot):
    """Settings that `doctor.yaml` adds."""

    clean: bool = False


def check_doctor(cfg: DictConfig, invocation: Invocation) -> None:
    """Raise ValueError for settings that cannot work, such as data that are not a folder of images."""
    check_settings(cfg, invocation, needs_data=not cfg.clean)
    if cfg.clean:
        return
    is_of_shards = "shards" in cfg.data
    if "data_dir" not in cfg.data and not is_of_shards:
        raise UserError("ml-doctor checks files. Type data.data_dir=PATH, data.split_file=FILE or data=shards.")
    if cfg.data.get("fold") is not None or cfg.data.get("folds") is not None:
        raise UserError(
            "ml-doctor checks the folder as it is, before it is divided: remove data.fold= and data.folds=."
        )
    if cfg.data.get("relabel") is not None:
        raise UserError("ml-doctor checks the folder as it is, without corrected labels: type data.relabel=null")


def examine_from_config(cfg: DictConfig, run: RunFolder) -> float:
    """Examine the data, show the findings and write them to the run folder. Returns the exit status."""
    if cfg.clean:
        return _clean(Path(cfg.data.cache_dir))
    from imago.data.split_files import listed_paths
    from imago.evaluation.from_config import eval_transform_of
    from imago.inspection.listed import find_listed_issues
    from imago.inspection.report import show, write
    from imago.inspection.scan import find_issues
    from imago.inspection.shards import find_shard_issues
    from imago.resources import workers

    excluded = listed_paths(Path(cfg.data.exclude).expanduser()) if cfg.data.exclude is not None else set()
    transform = eval_transform_of(cfg.data)
    box = transform.box if transform.is_fixed else None
    threads = workers(cfg.data.num_workers or None, 1)
    if "shards" in cfg.data:
        cache = Path(cfg.data.cache_dir)
        findings: Findings = find_shard_issues(
            cfg.data.shards, threads, cache, cfg.data.get("shard_cache_gb"), excluded, box
        )
    elif cfg.data.get("split_file") is not None:
        folder = Path(cfg.data.data_dir).expanduser() if cfg.data.data_dir is not None else None
        findings = find_listed_issues(Path(cfg.data.split_file).expanduser(), folder, threads, excluded, box)
    else:
        findings = find_issues(_folder(cfg), threads, excluded, box)
    show(findings, run.path)
    write(findings, run.path)
    return findings.exit_status


def _clean(cache_dir: Path) -> float:
    from imago.data.cache import clean

    removed = clean(cache_dir)
    for place, size in removed:
        print(f"Removed {place} ({size / 1e6:.0f} MB)")
    print(f"Removed {len(removed)} caches of decoded images from {cache_dir}")
    return 0


def _folder(cfg: DictConfig) -> Path:
    from hydra.utils import instantiate

    if cfg.data.get("data_dir") is not None:
        return Path(cfg.data.data_dir).expanduser()
    return Path(instantiate(cfg.data.source)())


def main() -> None:
    """Command line of `ml-doctor`. Ends with 0 (nothing found), 1 (warnings) or 2 (errors, or it could not look).

    With several folders (`-m`), the worst counts.
    """
    statuses: list[float] = []

    def examine(cfg: DictConfig, run: RunFolder) -> float:
        statuses.append(examine_from_config(cfg, run))
        return statuses[-1]

    sys.argv[1:] = ["clean=true" if word == "clean" else word for word in sys.argv[1:]]
    try:
        Command("doctor", examine, check_doctor, root=DoctorRoot, one_process=True)()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        sys.exit(2 if isinstance(stop.code, str) or stop.code == 1 else stop.code)
    sys.exit(int(max(statuses, default=0)))


if __name__ == "__main__":
    main()
