"""Where the configs are, what their root may hold, and the few functions that they call. Imports nothing heavy."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf

from imago.masking import is_secret, learn_secrets, masked, masked_config, masked_override
from imago.reading import read_yaml
from imago.terminal import fail, say
from imago.writing import write_text

_HERE = Path(__file__).resolve().parent
_CLONE = _HERE.parent.parent
IN_CLONE = not (_HERE / "configs").is_dir()
CONFIG_DIR = str(_CLONE / "configs" if IN_CLONE else _HERE / "configs")
PROJECT_ROOT = _CLONE if IN_CLONE else Path.cwd()
LONGEST_NAME = 60
OF_THE_COMMAND = ("resume", "auto_resume", "replay", "preflight")  # how it is run, not what


@dataclass
class Root:
    """The keys that a config may have at its root; any other is refused with its name and the file it came from."""

    data: Any = None
    model: Any = None
    trainer: Any = None
    strategy: Any = None
    callbacks: Any = None
    logger: Any = None
    paths: Any = None
    task_name: str = "train"
    name: str = "base"
    tags: list[str] = field(default_factory=list)
    seed: int | None = 42
    deterministic: bool = False
    matmul_precision: str = "high"
    train: bool = True
    test: bool = True
    ckpt_path: Any = None  # ml-inference takes several
    resume: str | None = None
    auto_resume: bool = False
    replay: str | None = None
    preflight: Any = True  # or the word only
    trusted_targets: list[str] = field(default_factory=list)
    monitor: str = "val/acc"
    mode: str = "max"
    optimized_metric: str = "val/acc"
    report: Any = None
    plots: Any = None
    params: dict[str, Any] = field(default_factory=dict)


@dataclass
class _KeptRoot(Root):
    """`Root` whose fields leave what was composed before as it is."""

    def __post_init__(self) -> None:
        for each in fields(Root):
            setattr(self, each.name, MISSING)


@dataclass
class EvalRoot(_KeptRoot):
    """What `eval.yaml` has besides."""

    split: Any = "test"
    calibrate: bool = False
    target_accuracy: float = 0.99
    coverage: float = 0.9


@dataclass
class InferenceRoot(_KeptRoot):
    """What `inference.yaml` has besides."""

    source: Any = None
    split: Any = "test"
    weights: Any = None
    tta: str = "none"
    calibrated: bool = False
    format: str = "csv"
    rows: int = 10
    gallery: bool = False


@dataclass
class ExportRoot(_KeptRoot):
    """What `export.yaml` has besides."""

    format: str = "safetensors"
    output: str | None = None


@dataclass
class VisualiseRoot(_KeptRoot):
    """What `visualise.yaml` has besides."""

    mode: str = "launch"
    run: str = "latest"
    logdir: str = "logs"
    port: int = 6006
    samples: int = 8


@dataclass
class DoctorRoot(_KeptRoot):
    """What `doctor.yaml` has besides."""

    clean: bool = False


def name_of_run() -> str:
    """`lr_0.01_batch_size_32`: the last part of each overridden key and its value; `base` without any."""
    if not HydraConfig.initialized():
        return "base"
    parts = []
    learn_secrets({})
    for override in sorted(typed_overrides(), key=lambda word: word in sys.argv):  # what a sweep varies comes first
        key, _, value = masked_override(override).lstrip("+~").partition("=")
        if is_secret(key):
            continue
        if key not in ("name", "ckpt_path", *OF_THE_COMMAND) and not key.startswith(("hydra", "paths")):
            parts.append(f"{key.split('.')[-1].split('/')[-1]}_{value.rstrip('/').split('/')[-1]}")
    return slug(masked("_".join(parts))) or "base"


def slug(text: str) -> str:
    """`text` as a folder name: letters, digits, dots, dashes and underscores, at most 60 characters."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_.")[:LONGEST_NAME].rstrip("_.")


def unused_folder(path: str) -> str:
    """Makes the folder `path`, or `path`_2, `path`_3, … if it is taken; two processes never get the same."""
    candidate, number = Path(path), 1
    while True:
        try:
            candidate.mkdir(parents=True)
            return str(candidate)
        except FileExistsError:
            number += 1
            candidate = Path(f"{path}_{number}")
        except OSError as error:
            fail(f"the run folder cannot be made: {error}. Give another paths.log_dir=")


def best_mode(metric: str) -> str:
    """`min` for losses, `max` for everything else."""
    return "min" if "loss" in metric else "max"


def share_of_fit(fit: str) -> float:
    """Of `data.eval_transform.box`: the usual 224 of 256 pixels, but with margins, or squashed, the whole picture."""
    return 0.875 if fit == "crop" else 1.0


def direction(mode: str) -> str:
    """`mode` in Optuna's words."""
    return {"min": "minimize", "max": "maximize"}.get(mode, mode)


def without_stage(metric: str) -> str:
    """`val/acc` -> `acc`."""
    return metric.partition("/")[2] or metric


def typed_overrides() -> list[str]:
    """What the user typed on the command line, but Hydra's own keys; interpolations stay what they are."""
    return cast(list[str], OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False))


def for_hydra(value: str) -> str:
    """`value` in the quotes that Hydra's grammar needs for unusual characters."""
    return value if re.fullmatch(r"[\w./:-]+", value) else "'" + value.replace("'", "\\'") + "'"


def config_changes(cfg: DictConfig) -> list[dict[str, Any]]:
    """What differs from the command's defaults: `key`, `default` and `value`, as they are written in YAML."""
    loader, name = GlobalHydra.instance().config_loader(), HydraConfig.get().job.config_name
    try:
        plain = loader.load_configuration(config_name=name, overrides=[], run_mode=RunMode.RUN)
    except HydraException:  # a config of one's own that needs an override
        return []
    before, after = (dict(leaves(masked_config(OmegaConf.to_container(each, resolve=False)))) for each in (plain, cfg))
    keys = [key for key in {**before, **after} if key.partition(".")[0] not in ("hydra", "paths", "name", "task_name")]
    return [
        {"key": key, "default": before.get(key), "value": after.get(key)}
        for key in keys
        if before.get(key) != after.get(key)
    ]


def with_data(cfg: DictConfig) -> DictConfig:
    """`cfg`, with the embedded digits where no data is chosen."""
    typed = typed_overrides()
    is_chosen = any(cfg.data.get(key) for key in ("data_dir", "split_file", "source")) if cfg.data else True
    asked = any(word.lstrip("+").startswith(("data=", "data.data_dir=")) for word in typed)
    if is_chosen or asked or "data_dir" not in cfg.data:
        return cfg
    say("No data is chosen: the embedded digits are used. For a folder of your own type data.data_dir=PATH")
    loader, name = GlobalHydra.instance().config_loader(), HydraConfig.get().job.config_name
    digits = loader.load_configuration(name, overrides=["data=digits", *typed], run_mode=RunMode.RUN)
    OmegaConf.set_struct(cfg, False)
    cfg.data = digits.data
    OmegaConf.set_struct(cfg, True)
    return cfg


def settings_changed(cfg: DictConfig, folder: Path) -> list[str]:
    """`KEY BEFORE -> NOW` for each setting that differs from the `config.yaml` of a run folder."""
    file = folder / "config.yaml"
    if not file.is_file():
        return []
    before = dict(leaves(OmegaConf.to_container(read_yaml(file))))
    now = dict(leaves(masked_config(OmegaConf.to_container(cfg, resolve=True))))  # as config.yaml has it
    moved = str(before.get("paths.output_dir")), str(now.get("paths.output_dir"))
    before = {key: value.replace(*moved) if isinstance(value, str) else value for key, value in before.items()}
    not_settings = (*OF_THE_COMMAND, "name", "paths", "ckpt_path")
    return [
        f"{key} {before.get(key)} -> {now.get(key)}"
        for key in {**before, **now}
        if before.get(key) != now.get(key) and key.partition(".")[0] not in not_settings
    ]


def drawn_seed(folder: Path) -> int | None:
    """The seed in the `config.yaml` of a run folder, where there is one."""
    file = folder / "config.yaml"
    seed = read_yaml(file).get("seed") if file.is_file() else None
    return seed if isinstance(seed, int) else None


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Key and value of each setting in plain containers; a list is a value, an empty dictionary is None."""
    if isinstance(value, dict) and value:
        for name, entry in value.items():
            yield from leaves(entry, f"{key}.{name}" if key else str(name))
    else:
        yield key, None if value == {} else value


def save_config(cfg: Any, folder: Path) -> None:
    """Writes `config.yaml` (what ran) and Hydra's own `.hydra/` files."""
    hydra_files = folder / ".hydra"
    hydra_files.mkdir(exist_ok=True)
    write_text(folder / "config.yaml", yaml_of(cfg, resolve=True))
    write_text(hydra_files / "config.yaml", yaml_of(cfg))
    write_text(hydra_files / "hydra.yaml", yaml_of(OmegaConf.create({"hydra": HydraConfig.get()})))
    write_text(hydra_files / "overrides.yaml", yaml_of(OmegaConf.create(typed_overrides())))


def yaml_of(cfg: Any, resolve: bool = False) -> str:
    """The config as YAML, without its secrets."""
    content: Any = masked_config(OmegaConf.to_container(cfg, resolve=resolve))
    return OmegaConf.to_yaml(OmegaConf.create(content))


def mask_sweep(folder: Path) -> None:
    """Takes the secrets out of `multirun.yaml`, which Hydra writes at the start of a sweep."""
    file = folder / "multirun.yaml"
    if file.is_file():
        write_text(file, yaml_of(OmegaConf.load(file)))


def config_order(cfg: DictConfig) -> dict[str, str]:
    """The config and Hydra's own as text, secrets and all, for another process of the same run."""
    return {
        "config": OmegaConf.to_yaml(cfg),
        "hydra": OmegaConf.to_yaml(OmegaConf.create({"hydra": HydraConfig.get()})),
    }


def restore_config(order: dict[str, str]) -> DictConfig:
    """The config of `config_order`, with Hydra as it was."""
    setup_globals()
    saved = cast(DictConfig, OmegaConf.create(order["hydra"]))
    hydra = OmegaConf.structured(HydraConf)
    OmegaConf.set_struct(hydra, False)  # Hydra itself keeps more there than its own class has
    hydra.merge_with(saved.hydra)
    HydraConfig.instance().set_config(OmegaConf.create({"hydra": hydra}))
    cfg = cast(DictConfig, OmegaConf.create(order["config"]))
    OmegaConf.set_struct(cfg, True)
    return cfg


def register() -> None:
    """Makes the root schema and the resolvers known to Hydra; may be called again."""
    # Hydra copies the store of all schemas with each of the 130 questions of --help; what it loads, it copies anyway
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]
    ConfigStore.instance().store(name="root_schema", node=Root)
    for name, schema in (
        ("eval", EvalRoot),
        ("inference", InferenceRoot),
        ("export", ExportRoot),
        ("doctor", DoctorRoot),
    ):
        ConfigStore.instance().store(name=f"{name}_schema", node=schema())
    ConfigStore.instance().store(name="visualise_schema", node=VisualiseRoot())
    OmegaConf.register_new_resolver("project_root", lambda: str(PROJECT_ROOT), replace=True)
    OmegaConf.register_new_resolver("name_of_run", name_of_run, replace=True)
    OmegaConf.register_new_resolver("slug", slug, replace=True)
    OmegaConf.register_new_resolver("unused_folder", unused_folder, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("best_mode", best_mode, replace=True)
    OmegaConf.register_new_resolver("direction", direction, replace=True)
    OmegaConf.register_new_resolver("share_of_fit", share_of_fit, replace=True)
    OmegaConf.register_new_resolver("joined", ", ".join, replace=True)
    OmegaConf.register_new_resolver("without_stage", without_stage, replace=True)


register()
