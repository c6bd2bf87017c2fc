"""The config in a checkpoint: written as text, and read as possibly untrusted text."""

import copy
import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf

from imago.config.invocation import override_key
from imago.config.targets import families_of
from imago.config.tree import all_keys, all_leaves, all_texts
from imago.errors import UserError
from imago.masking import SECRET, is_secret, masked, masked_config

log = logging.getLogger(__name__)

OPTION = "from_checkpoint"
GROUPS = ("data", "model", "trainer", "strategy", "callbacks")
ROOT_KEYS = ("seed", "deterministic", "matmul_precision", "monitor", "mode", "optimized_metric", "report", "params")
TRAINER_COMMAND_KEYS = (
    *("accelerator", "devices", "num_nodes", "strategy", "sync_batchnorm", "plugins", "profiler"),
    *("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches", "fast_dev_run"),
)
"""Options of the Trainer that say where and how much a command runs: a checkpoint has none of them."""
RESOLVERS = ("best_mode", "direction", "joined", "mode_of", "share_of_fit", "slug", "without_stage")
"""Resolvers that any config may call: their results depend on their arguments alone."""
PATHS = re.compile(r"(^|_)(dir|file|files|root|path|exclude|relabel)$")
HARMLESS = re.compile(rf"\$\w|\$\{{\.*[A-Za-z_][\w.\[\]]*\}}|\$\{{(?:{'|'.join(RESOLVERS)}):")
LETTERS_OF_A_LEAF = 100
MOST_TEXT, MOST_DEPTH, MOST_LEAVES, LONGEST_LOOKUP = 2**16, 100, 20_000, 500
OF_THE_MACHINE: dict[str, dict[str, Any]] = {
    "data": {"num_workers": None, "cache": "none"},
    "model": {"compile": False},
}
"""Settings that an untrusted config cannot change."""
FOR_SCORING = ("imago.callbacks.MetricsCallback", "imago.callbacks.progress_bar")
"""Callbacks that evaluation needs."""
FOR_PREDICTION = (
    *("image_size", "fit", "fill", "interpolation", "range", "icc", "eval_transform", "transform"),
    *("batch_size", "num_workers", "on_bad_image"),
)
"""Settings of the data group that prediction needs."""
PLAIN_LOSS = {
    "_target_": "imago.model.CriterionsComposition",
    "criterions": {"ce": {"_target_": "torch.nn.CrossEntropyLoss"}},
}
RESERVED = ("defaults", "hydra")
"""Keys that Hydra interprets while it composes."""
KEY = re.compile(r"[^@/$\x00-\x1f\x7f]+")
INTERNAL = re.compile(r"_\w+_")
OF_NODES = ("_target_", "_partial_", "_convert_")
URL = re.compile(r"\w:/")


def checkpoint_config(cfg: DictConfig) -> str:
    """Return the YAML text of `cfg` that is written to a checkpoint.

    Interpolations are kept, so that overrides still reach what depends on them, except those that read the environment
    or call user-defined functions: these become their values. Secrets become null. Existing paths become absolute.
    """
    content: dict[str, Any] = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
    kept = {key: content[key] for key in (*GROUPS, *ROOT_KEYS) if content.get(key) is not None}
    kept["trainer"] = {key: value for key, value in kept["trainer"].items() if key not in TRAINER_COMMAND_KEYS}
    return OmegaConf.to_yaml(OmegaConf.create(_portable(cfg, kept, "")))


def prediction_config(cfg: DictConfig) -> str:
    """Return the YAML text of what `cfg` needs to predict: network, preprocessing and batch size. The losses are plain,
    and the folders of the data are not in it."""
    kept = copy.deepcopy(cfg)
    OmegaConf.set_struct(kept, False)
    for group in ("data", "model", "callbacks"):
        OmegaConf.resolve(kept[group])
    kept.data = {key: kept.data[key] for key in FOR_PREDICTION if key in kept.data}
    kept.model.update({"criterions": PLAIN_LOSS, "class_weights": None, "init_from": None})
    kept.trainer.default_root_dir = "${paths.output_dir}"
    kept.params, kept.report = {}, {}
    if "metrics" in kept.callbacks:
        del kept.callbacks["metrics"]
    return checkpoint_config(kept)


def _portable(cfg: DictConfig, value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {name: _portable(cfg, entry, f"{key}.{name}" if key else str(name)) for name, entry in value.items()}
    if isinstance(value, list):
        return [_portable(cfg, entry, f"{key}[{index}]") for index, entry in enumerate(value)]
    if not isinstance(value, str):
        return None if is_secret(key) and not isinstance(value, bool) else value
    name = key.rpartition(".")[2].partition("[")[0]
    if name == "_target_":
        return OmegaConf.select(cfg, key)
    calls = _unknown_call(value) is not None
    if (calls and SECRET.search(value)) or (is_secret(key) and value):
        log.warning("%s is a secret: the checkpoint carries null instead", key)
        return None
    if calls:
        return masked_config(OmegaConf.select(cfg, key))
    if masked(value) != value:
        log.warning("%s contains a secret, which is masked in the checkpoint", key)
        return masked(value)
    is_path = (key.startswith("data.") and PATHS.search(name)) or (key.startswith("params.") and "/" in value)
    if is_path and "${" not in value and not Path(value).is_absolute():
        with suppress(OSError):  # the name is too long
            return str(Path(value).absolute()) if Path(value).exists() else value
    return value


def read_checkpoint_config(text: Any, path: Path | str, is_own: bool = False) -> dict[str, Any]:
    """Read the config text of a checkpoint, untrusted unless `is_own`; nothing is resolved yet.

    Raises:
        UserError: It is not a config, has keys that no checkpoint has, or calls functions.
    """

    def refuse(why: str) -> UserError:
        return UserError(f"ckpt_path={path}: its config {why}. Nothing in it was used.")

    if is_own and isinstance(text, str):
        return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(text), resolve=False))
    if not isinstance(text, str) or len(text) > MOST_TEXT:
        raise refuse("is not text, or is too long")
    if _depth(text) > MOST_DEPTH:  # the parser would take minutes
        raise refuse("is nested too deeply")
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):  # a few lines may expand to gigabytes
            raise refuse("has YAML aliases")
        content: Any = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (yaml.YAMLError, RecursionError) as error:
        raise refuse(f"cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise refuse("has no settings")
    if foreign := sorted(str(key) for key in content if key not in (*GROUPS, *ROOT_KEYS)):
        raise refuse(f"has {', '.join(foreign)}, which does not belong in a checkpoint")
    for group in (*GROUPS, "report", "params"):
        if not isinstance(content.get(group, {}), dict):  # text would be parsed again, as YAML
            raise refuse(f"has no settings in {group}")
    for key, name in all_keys(content):
        if name in RESERVED or not KEY.fullmatch(name) or (INTERNAL.fullmatch(name) and name not in OF_NODES):
            raise refuse(f"has the key {name!r} ({key}), which does not belong in a checkpoint")
    for key, value in all_texts(content):
        if (call := _unknown_call(value)) is not None:
            raise refuse(f"calls {call} ({key})")
        if key.endswith("_target_") and "${" in value:
            raise refuse(f"computes the name of what to import, {value} ({key})")
        if "$" in value and len(value) > LONGEST_LOOKUP:
            raise refuse(f"has a long text with interpolations ({key})")
        if key.startswith("data") and URL.search(value):
            raise refuse(f"takes data from {value} ({key})")
    if _unfolded(content) > MOST_LEAVES:  # a few lines may expand to gigabytes
        raise refuse("has interpolations that expand to too many values")
    for group, settings in OF_THE_MACHINE.items():
        node = content.get(group, {})
        node |= {key: value for key, value in settings.items() if key in node}
    return cast(dict[str, Any], content)


def _depth(text: str) -> int:
    """Upper bound of the nesting depth of YAML, without parsing it."""
    brackets = depth = indent = 0
    for line in text.splitlines():
        indent = max(indent, (len(line) - len(line.lstrip(" -?:"))))
        for character in line:
            brackets = max(0, brackets + (character in "[{") - (character in "]}"))
            depth = max(depth, brackets)
    return depth + indent // 2


def _unfolded(content: dict[str, Any]) -> int:
    """Number of leaves of `content` once resolved; more than `MOST_LEAVES` if resolving never ends."""
    known: dict[str, int] = {}
    under_way: set[str] = set()

    def of_key(key: str) -> int:
        key = ".".join(filter(None, re.split(r"[.\[\]]+", key)))  # a[0].b and a.0.b are the same
        if key in under_way:
            return MOST_LEAVES + 1
        if key not in known:
            under_way.add(key)
            known[key] = sum(of_leaf(where, leaf) for where, leaf in all_leaves(_entry(content, key), key))
            under_way.discard(key)
        return min(known[key], MOST_LEAVES + 1)

    def of_leaf(key: str, leaf: Any) -> int:
        if not isinstance(leaf, str):
            return 1
        long = len(leaf) // LETTERS_OF_A_LEAF
        parts = [part for part in re.split(r"[.\[\]]+", key) if part]
        names = [
            ".".join([*(parts[: -len(dots)] if dots else []), name])
            for dots, name in re.findall(r"\$\{(?:\w+:)?(\.*)([\w.\[\]]+)", leaf)
        ]
        return 1 + long + sum(of_key(name) for name in names)

    return sum(of_leaf(key, leaf) for key, leaf in all_leaves(content))


def _entry(content: Any, key: str) -> Any:
    """Value at a key such as `a.b[0]`; None for the command's own settings."""
    for part in filter(None, re.split(r"[.\[\]]+", key)):
        try:
            content = content[int(part)] if isinstance(content, list) else content[part]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return content


def _unknown_call(text: str) -> str | None:
    """First interpolation in `text` that is neither the name of a setting nor a call of one of `RESOLVERS`.

    A `$` at the end, or before an unusual character, may become one when texts are joined.
    """
    for dollar in re.finditer(r"\$", text):
        if HARMLESS.match(text, dollar.start()) is None:
            return text[dollar.start() : dollar.start() + 40]
    return None


def leave_out_training(cfg: DictConfig, groups: Sequence[str], typed: Sequence[str] = ()) -> None:
    """Remove from `groups` what scoring does not need, unless it was typed: optimizer, schedule, strategy, the
    transform of train images, and all callbacks except metrics and progress bars."""
    words = [override_key(word).replace("/", ".") for word in typed]

    def is_typed(key: str) -> bool:
        return any(f"{word}.".startswith(f"{key}.") or f"{key}.".startswith(f"{word}.") for word in words)

    for group in groups:  # interpolations may refer to what is removed
        if OmegaConf.is_config(cfg.get(group)):
            OmegaConf.resolve(cfg[group])
    OmegaConf.set_struct(cfg, False)
    if "model" in groups:
        for key in ("optimizer", "scheduler"):
            if not is_typed(f"model.{key}"):
                cfg.model[key] = None
        if "gradient_checkpointing" in cfg.model and not is_typed("model.gradient_checkpointing"):
            cfg.model.gradient_checkpointing = False
    if "data" in groups and not is_typed("data.train_transform") and "eval_transform" in cfg.data:
        cfg.data.train_transform = cfg.data.eval_transform
    for key in ("sampler", "sample_weights"):
        if "data" in groups and not is_typed(f"data.{key}") and key in cfg.data:
            cfg.data[key] = None
    if "strategy" in groups and not is_typed("strategy"):
        cfg.strategy = {"_target_": "imago.model.Strategy"}
    if "callbacks" in groups:
        left_out = [
            name
            for name, node in cfg.callbacks.items()
            if name != "metrics"
            and not is_typed(f"callbacks.{name}")
            and (node or {}).get("_target_") not in FOR_SCORING
        ]
        for name in left_out:
            del cfg.callbacks[name]
    OmegaConf.set_struct(cfg, True)


def without_pretrained(model: DictConfig) -> None:
    """Remove the pretrained weights from a `model` node: those of a checkpoint are loaded later."""
    net = model.get("net")
    if net is not None:
        downloads = {name for family in families_of(str(net.get("_target_"))) for name in family.downloads}
        for name in {"weights", *downloads} & set(map(str, net)):
            net[name] = False if isinstance(net[name], bool) else None
    if model.get("init_from") is not None:
        model.init_from = None
