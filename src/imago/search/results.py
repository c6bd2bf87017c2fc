"""Results of a search: `optimization_results.yaml`, and the best trial as an experiment."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from imago.config.invocation import override_key
from imago.config.resolvers import unique_slug
from imago.config.root import COMMAND_KEYS, CONFIG_DIR
from imago.files import write_text
from imago.masking import masked, masked_override
from imago.search.settings import SearchSettings
from imago.search.study import TrialRecord

FILE = "optimization_results.yaml"
NOT_IN_EXPERIMENT = ("hydra", "hparams_search", "paths", "name", *COMMAND_KEYS)
"""Settings that say where and how a run is made."""


def write_results(
    folder: Path,
    settings: SearchSettings,
    records: Sequence[TrialRecord],
    best: Sequence[TrialRecord],
    receipt: Mapping[str, Any],
) -> Path:
    """Write what came out, with the keys of hydra-optuna-sweeper, and a row for each trial."""
    content: dict[str, Any] = {"name": "optuna"}
    if len(settings.objectives) == 1:
        content |= {"best_params": dict(best[0].params), "best_value": best[0].values[0]} if best else {}
    else:
        content["solutions"] = [{"params": dict(record.params), "values": list(record.values)} for record in best]
    content |= {
        "objectives": dict(zip(settings.objectives, settings.directions, strict=True)),
        "best_trials": [record.number for record in best],
        "pruning": dict(receipt),
        "trials": [_row(record) for record in records],
    }
    write_text(folder / FILE, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return folder / FILE


def _row(record: TrialRecord) -> dict[str, Any]:
    known = {key: record.attributes.get(key) for key in ("folder", "epochs", "seconds", "message")}
    row = {"number": record.number, "state": record.state, "params": dict(record.params)}
    row |= {"values": list(record.values)} if record.values else {}
    row |= {"last_reported": record.last} if record.state == "pruned" else {}
    return row | {key: masked(value) if isinstance(value, str) else value for key, value in known.items() if value}


def write_experiment(
    folder: Path, study: str, words: Sequence[str], program: str, record: TrialRecord
) -> tuple[Path, str] | None:
    """Write the settings of a trial as an experiment, below `configs/` in the folder of the search.

    Returns:
        The file, and the command that runs it; None if an override of the trial cannot stand in a file.
    """
    name = f"{unique_slug(study)}_best"
    lines = experiment_of(words)
    if lines is None:
        return None
    value = ", ".join(f"{value:.6g}" for value in record.values)
    paths = [word for word in words if override_key(word) == "hydra.searchpath"]
    command = f"{program} {shlex.join([f'--config-dir={folder}/configs', *paths, f'experiment={name}'])}"
    head = [
        "# @package _global_",
        f"# Trial {record.number + 1} of the search {study}: {value}",
        f"# {command}",
    ]
    path = folder / "configs" / "experiment" / f"{name}.yaml"
    write_text(path, "\n".join([*head, *lines]) + "\n")
    return path, command


def experiment_of(words: Sequence[str]) -> list[str] | None:
    """Lines of an experiment that sets what overrides set; None if one removes something, or holds a secret."""
    experiments: list[Any] = []
    options: list[Any] = []
    content = OmegaConf.create()
    for word, override in zip(words, OverridesParser.create().parse_overrides(list(words)), strict=True):
        key = override_key(word)
        if key.partition(".")[0] in NOT_IN_EXPERIMENT:
            continue
        if override.is_delete() or masked_override(word) != word:
            return None
        value: Any = override.value()
        if not Path(CONFIG_DIR, key).is_dir() or isinstance(value, dict):
            OmegaConf.update(content, key, _plain(value), force_add=True)
        elif key == "experiment":
            experiments += value if isinstance(value, list) else [value]
        else:
            options.append({f"override /{key}": _plain(value) if value != [] else None})  # Hydra takes no empty list
    defaults = [*map(_plain, experiments), "_self_", *options]  # Hydra wants those that override at the end
    parts = [yaml.safe_dump({"defaults": defaults}, sort_keys=False)] if experiments or options else []
    settings = OmegaConf.to_yaml(content) if len(content) else ""
    return "\n".join([*parts, settings]).splitlines()


def _plain(value: Any) -> Any:
    """A value as YAML has it: Hydra keeps quoted strings apart."""
    if isinstance(value, dict):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value.text)
