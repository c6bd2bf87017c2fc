"""Find the run, or the file of one, that a setting names."""

import glob
from pathlib import Path

from imago.definitions import CHECKED
from imago.errors import UserError
from imago.files import did_you_mean
from imago.run.folder import read_status
from imago.terminal import shortened

LATEST = "latest"
PLACES = ("*/runs/*", "*/multiruns/*/*", "cv/*/*", "slurm/*", "slurm/*/*")
"""Where runs are below `paths.log_dir`: the jobs of `scripts/train.slurm` are in `slurm/`."""


def path_of(name: str) -> Path:
    """Absolute path of a file or folder. `name` may be a pattern (`*`, `?`) with one match, as `ml-status` prints it.

    Raises:
        ValueError: Several match.
    """
    path = Path(name).expanduser().absolute()
    matches = sorted(glob.glob(str(path))) if not path.exists() and glob.has_magic(name) else []
    if len(matches) > 1:
        raise UserError(f"{name} matches {len(matches)} paths: {shortened(matches, 5)}. Type one of them.")
    return Path(matches[0]) if matches else path


def find_run(name: str, log_dir: Path, holding: str = "status.json") -> Path:
    """Find the run folder `name`, which may be a pattern; `latest` is the newest in `log_dir` that has the file
    `holding` and was not only checked.

    Raises:
        ValueError: There is none.
    """
    if name != LATEST:
        folder = path_of(name)
        if not (folder / "status.json").is_file():
            meant = did_you_mean(name, LATEST) if not folder.exists() else ""
            raise UserError(
                f"{name} is not a run folder. Type the path of one (it contains status.json), or latest.{meant}"
            )
        return folder
    runs = [run for places in PLACES for run in log_dir.glob(places)]
    trained = [run for run in runs if (run / "metrics.jsonl").is_file() and (run / holding).is_file()]
    for run in sorted(trained, key=_began, reverse=True):
        if read_status(run / "status.json").get("status") != CHECKED:
            return run
    raise UserError(f"latest: no run in {log_dir} has {holding}. Train first, or type the path of a run folder.")


def _began(run: Path) -> float:
    """Time when the run began and its config was written; 0 if unknown."""
    try:
        return (run / ".hydra" / "config.yaml").stat().st_mtime
    except OSError:
        return 0.0
