"""What to say when Hydra cannot compose a config: what was typed, what there is, what to type."""

import difflib
import os
import re
import shlex
from itertools import islice
from pathlib import Path

import yaml
from hydra.errors import MissingConfigException, OverrideParseException

from imago.cli.compose import compose_base, own_folder, own_folders, typed_value
from imago.cli.corrected import corrected_parts, describe
from imago.cli.findings import Typed, similar_options
from imago.cli.start_from import RUN_OPTION
from imago.cli.unknown_settings import known_settings, sibling_of, unknown_setting
from imago.cli.word_hints import examine, one_option
from imago.config.carried import OPTION
from imago.config.combinations import NOT_OF_THE_TRAINER
from imago.config.foreign_words import EXAMPLES, meaning
from imago.config.invocation import override_key, override_value
from imago.config.own_files import has_defaults, lacks_default, own_file
from imago.config.part_places import is_class
from imago.config.root import CONFIG_DIR
from imago.config.schema import closest
from imago.errors import INTERNAL, interpolation_message

SWEEPERS = {"hydra/sweeper/optuna": "optuna"}  # option that a package brings -> our extra
PLUGINS = {  # option of Hydra that a package brings -> that package
    "hydra/launcher/joblib": "hydra-joblib-launcher",
    "hydra/launcher/ray": "hydra-ray-launcher",
    "hydra/launcher/rq": "hydra-rq-launcher",
    "hydra/launcher/submitit_local": "hydra-submitit-launcher",
    "hydra/launcher/submitit_slurm": "hydra-submitit-launcher",
    "hydra/sweeper/ax": "hydra-ax-sweeper",
    "hydra/sweeper/nevergrad": "hydra-nevergrad-sweeper",
}
NOT_SUPPORTED = {  # group and option of other frameworks -> what to type
    ("trainer", "deepspeed"): "DeepSpeed is not supported. To divide a network among GPUs type trainer=fsdp",
    ("trainer", "tpu"): "TPUs are not supported. Type trainer=gpu, or trainer=cpu",
    ("trainer", "dp"): "the processes of trainer=ddp replace it. For private training type strategy=dp",
}
OF_A_CLASS = {  # group -> what takes a class of one's own
    "model": "model.net._target_",
    "model/optimizer": "model.optimizer._target_",
    "model/scheduler": "model.scheduler._target_",
    "data": "data._target_",
    "strategy": "strategy._target_",
    "callbacks": "+callbacks.NAME._target_",
    "logger": "+logger.NAME._target_",
}
OF_LISTS = ("callbacks", "debug", "experiment", "logger")
"""Groups of which several options can be chosen."""
LISTS = ("source", "split", "weights")
"""Settings of several values."""
MOST_FOLDERS = 200
"""Entries of the current folder in which configs are looked for."""
ARRAY_TASK = (
    " scripts/train.slurm replaces %a by the number of the task of an array. "
    "Type sbatch --array=1-5 scripts/train.slurm seed=%a"
)
KINDS = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}


def explain_hydra_error(error: Exception, config_name: str, typed: list[str], program: str = "") -> str:
    """The message for an error that came while composing `config_name` with the overrides `typed`.

    `program` is the command as it was typed, empty where Python called it.
    """
    if (file := _without_package(typed)) is not None:
        return f"{file} needs its package: the first line of such a file must be\n  # @package _global_"
    text = "\n".join(str(cause) for cause in (error, error.__cause__) if cause is not None)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override, typed)
    if "--multirun" in text:
        return _sweep(text, typed)
    if isinstance(error, MissingConfigException):
        return _no_such_option(error, program)
    if variable := interpolation_message(text):
        word = next((word for word in typed if "${" in word), None)
        return variable + (f" (in {word})" if word is not None else "")
    if match := re.search(r"Multiple values for (\S+?)\. To override", text):
        return _chosen_already(match[1], config_name, typed)
    if match := re.search(r"An item is already at '([^']*)'", text):
        return f"{match.group(1)} already exists: remove the +"
    if match := re.search(
        r"Error merging override (\S+?)=(\S+)\s+Invalid value assigned: \w+ is not a ListConfig", text
    ):
        return f"{match[1]} must be a list, for example {shlex.quote(f'{match[1]}=[{match[2]}]')}; got {match[2]}."
    if "Config group override must be a string" in text:
        return _no_string(typed, program)
    group = re.search(r"Could not override '([^']*)'\. *\n?(No match|Did you mean)", text)
    if group is not None:
        return _no_such_key(group.group(1), config_name, typed, program)
    key = re.search(r"full_key: (\S+)", text)
    override = re.search(r"Could not (?:override|append to config) '([^']*)'", text)
    if "not in struct" in text or re.search(r"not in '\w+'", text):
        where = re.search(r"In '([^']*)'", text)
        named = max((match.group(1) for match in (key, override) if match is not None), key=len)
        return _no_such_key(named, config_name, typed, program, where.group(1) if where is not None else None)
    if key is not None:
        match = re.search(r"Value '(.*)' (?:of type .* could not be converted to|is not a valid) (\w+)", text)
        if match is not None:
            percent = re.fullmatch(r"(\d+(?:\.\d+)?)%", match.group(1))
            meant = f" Type {key.group(1)}={float(percent[1]) / 100:g}" if percent else ""
            meant = ARRAY_TASK if match.group(1) == "%a" else meant
            return f"{key.group(1)} must be {KINDS.get(match.group(2), match.group(2))}, got {match.group(1)}.{meant}"
    lines = [line for line in text.splitlines() if line.strip() and not re.match(INTERNAL, line)]
    return "\n".join(dict.fromkeys(lines[:8]))


def yaml_message(error: yaml.YAMLError) -> str:
    """A mistake in a YAML file, with its place."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None:
        return f"Cannot read a YAML file: {' '.join(str(error).split())}"
    hint = ": indent with spaces, not with tabs" if "\\t" in str(problem) else ""
    return f"{mark.name}, line {mark.line + 1}, column {mark.column + 1} is not valid YAML: {problem}{hint}"


def _without_package(typed: list[str]) -> Path | None:
    """The file of a typed experiment, or of the settings of this machine, whose first line is not its package."""
    names = [word.partition("=")[2] for word in typed if word.lstrip("+").startswith("experiment=")]
    for option in [*(f"experiment/{name}.yaml" for name in names), "local/default.yaml"]:
        files = [Path(root, option) for root in (own_folder(typed), CONFIG_DIR) if root]
        file = next((file for file in files if file.is_file()), None)
        lines = file.read_text(errors="replace").splitlines() if file is not None else []
        lines = [line.strip() for line in lines if line.strip()]
        has_settings = any(line[0] != "#" for line in lines)
        if has_settings and not re.match(r"#\s*@package\s+_global_\s*$", lines[0]):
            return file
    return None


def _unreadable(override: str, typed: list[str]) -> str:
    if "=" not in override:
        after = typed[typed.index(override) + 1] if override in typed[:-1] else ""
        if after and "=" not in after and Path(CONFIG_DIR, override).is_dir():
            return f'"{override}" is not KEY=VALUE. Did you mean {override}={after}?'
        before = typed[typed.index(override) - 1] if override in typed and typed.index(override) else ""
        if "=" in before:
            whole = _quoted(f"{before} {override}")
            return f'"{override}" is not KEY=VALUE. A value with spaces needs quotes:\n  {whole}'
        return f'"{override}" is not KEY=VALUE. See --help.'
    return (
        f"Hydra cannot parse {override}\n"
        "A value with spaces or characters such as ( ) , = { ~ needs quotes inside quotes:\n"
        f"  {_quoted(override)}"
    )


def _sweep(text: str, typed: list[str]) -> str:
    names = {name.partition("=")[0].strip() for quoted in re.findall(r"'([^']*)'", text) for name in quoted.split(",")}
    override = next((word for word in typed if word.lstrip("+").partition("=")[0] in names), "")
    group, value = override_key(override), override_value(override)
    hint = one_option(group, value, Typed("", (), own_folders(typed)))
    if hint is not None:
        return f"{override}: {group} takes one option. {hint}. For a sweep over them add -m."
    if group in OF_LISTS or (group in LISTS and not Path(value).exists()):
        what = "options" if group in OF_LISTS else "values"
        listed = shlex.quote(f"{group}=[{value}]")
        return f"{override}: several {what} of {group} are a list. Type {listed}. For a sweep add -m."
    return (
        f"{override}: a comma separates the values of a sweep. For a sweep add -m. For a single value type\n"
        f"  {_quoted(override)}"
    )


def _quoted(override: str) -> str:
    """The override so that shell and Hydra take its value literally."""
    key, _, value = override.partition("=")
    value = value.replace("\\", "\\\\").replace("'", "\\'")
    return shlex.quote(f"{key}='{value}'") if "'" in value else f"\"{key}='{value}'\""


def _no_such_option(error: MissingConfigException, program: str) -> str:
    path = error.missing_cfg_file or ""
    group, _, option = path.rpartition("/")
    there = error.options or sorted(file.stem for file in Path(CONFIG_DIR, group).glob("*.yaml"))  # none for a list
    options = [str(option) for option in there if option not in (OPTION, RUN_OPTION)]
    if path in SWEEPERS:
        return f"hparams_search={option} needs a package that is not installed: pip install 'imago[{SWEEPERS[path]}]'"
    if path in PLUGINS:
        return f"{group}={option} needs a package that is not installed: pip install {PLUGINS[path]}"
    if not group:
        return str(error).splitlines()[0]
    return _unknown_option(group, option, options, program)


def _unknown_option(group: str, option: str, options: list[str], program: str) -> str:
    close = [f"{group}={known}" for known in similar_options(option, options)] or _of_another_group(option)
    meant = f"\nDid you mean {' or '.join(close)}?" if close else ""
    if (folder := _folder_with(group, option)) is not None:
        flag = f"--config-dir {folder}" if program else config_folder(folder)
        return f"Unknown option {group}={option}. {folder}/{group}/{option}.yaml: add {flag}"
    if group in OF_A_CLASS and is_class(option):
        return f"Unknown option {group}={option}. For a class of your own, type {OF_A_CLASS[group]}={option}"
    if (why := NOT_SUPPORTED.get((group, option))) is not None:
        return f"{group}={option}: {why}"
    if len(options) <= 8:
        return f"Unknown option {group}={option}. The options are {', '.join(options)}.{meant}"
    return f"Unknown option {group}={option}. {closest(option, options, f'{program} --help'.strip())}{meant}"


def _of_another_group(option: str) -> list[str]:
    """Words that choose an option of that name in another group: `data=mnist` for `experiment=mnist`."""
    files = [file for file in sorted(Path(CONFIG_DIR).glob("[a-z]*/*.yaml")) if file.stem == option]
    return [f"{file.parent.name}={option}" for file in files] if len(files) <= 2 else []  # `default` is one of all


def config_folder(folder: str | Path) -> str:
    """Override that adds a folder of configs, for Python, which takes no flags."""
    return f"'hydra.searchpath=[file://{Path(folder).absolute()}]'"


def _chosen_already(group: str, config_name: str, typed: list[str]) -> str:
    """The message for `+GROUP=OPTION` where the config, or another word, has chosen an option."""
    words = [word for word in typed if override_key(word) == group]
    option = override_value(words[-1]).strip("[]")
    before = override_value(words[-2]).strip("[]") if len(words) > 1 else _default_option(group, config_name)
    if group not in OF_LISTS:
        return f"{words[-1]}: {group}={before} is chosen already. Type {group}={option} to replace it."
    added = shlex.quote(f"{group}=[{before},{option}]")
    return f"{words[-1]}: {group}={before} is chosen already. Type {added} for both, or {group}={option} to replace it."


def _default_option(group: str, config_name: str) -> str:
    """The option of a group in the defaults of a command's config."""
    entries = yaml.safe_load(Path(CONFIG_DIR, f"{config_name}.yaml").read_text())["defaults"]
    options = [entry[key] for entry in entries if isinstance(entry, dict) for key in entry if key.split()[-1] == group]
    return str(options[0]) if options else "default"


def _folder_with(group: str, option: str) -> str | None:
    """The folder in the current one that has the file of an option, and was not named by --config-dir."""
    folders = sorted(entry.name for entry in islice(os.scandir(), MOST_FOLDERS) if entry.is_dir())
    return next((name for name in folders if Path(name, group, f"{option}.yaml").is_file()), None)


def _no_string(typed: list[str], program: str) -> str:
    """The message for an option that Hydra reads as null, as a number or as a truth value."""
    choices = Typed("", (), own_folders(typed))
    words = [word for word in typed if choices.is_group(override_key(word)) and not isinstance(typed_value(word), str)]
    word = next((word for word in words if not isinstance(typed_value(word), list)), "")
    name = override_key(word)
    if word and typed_value(word) is not None:
        return _unknown_option(name, override_value(word), choices.options(name), program)
    instead = {"logger": "Type logger=[]", "callbacks": "Type callbacks=none"}.get(name, "Remove it")
    return f"{word}: a config group cannot be null. {instead}"


def _no_such_key(key: str, config_name: str, typed: list[str], program: str, file: str | None = None) -> str:
    is_typed = any(override_key(word) == key for word in typed)
    source = "command line" if program else "override"
    where = f" (in {file}.yaml)" if file is not None else f" ({source})" if is_typed else ""
    help_all = f"{program or f'ml-{config_name}'} --help-all"
    message = f"Unknown setting {key}{where}."
    if is_typed and "/" in key and (refusal := _kept_group(key, typed)) is not None:
        return refusal
    base = compose_base(config_name, typed)
    if base is None:
        return message
    typed_words = Typed(config_name, list(map(str, base)), own_folders(typed))
    if is_typed:
        parts = corrected_parts(list(examine(typed, typed_words)), typed_words, program)
        if sum(finding is not None for _, finding in parts) > 1:
            return describe(parts, typed_words, program)
    if is_typed and "/" in key:
        return f"{message} {_no_such_group(key, typed)}"
    replaced = next((word for word in typed if key.startswith(word.partition("=")[0] + ".") and "={" in word), None)
    if replaced is not None:
        return f"Unknown setting {key}. To replace all settings of a group, type ++{replaced.partition('=')[0]}={{…}}"
    if file is not None and sibling_of(key, known_settings(base)) is None:
        hint = meaning(key, EXAMPLES.get(key, ""))
        if hint is not None and hint.words:
            return f"{message} Imago calls it {' and '.join(map(override_key, hint.words))}."
    value = next((override_value(word) for word in typed if override_key(word) == key), "")
    hint, _ = unknown_setting(key, value, base, typed, help_all)
    note = str(hint) if file is None else str(hint).replace("+params.", "params.")
    return note if key.removeprefix("trainer.") in NOT_OF_THE_TRAINER else f"{message} {note}"


def _no_such_group(group: str, typed: list[str]) -> str:
    """Advice on an option of a group such as model/optimizer that the config does not have."""
    model = next((override_value(word) for word in typed if override_key(word) == "model"), "")
    file = own_file(own_folders(typed), "model", model)
    if file is not None and group.startswith("model/") and not has_defaults(file):
        return lacks_default(file)
    if Path(CONFIG_DIR, group).is_dir():
        word = next(word for word in typed if override_key(word) == group)
        return f"The config has no {group} to replace. To add it, type +{word}"
    known = [str(folder.relative_to(CONFIG_DIR)) for folder in Path(CONFIG_DIR).glob("[a-z]*/[a-z]*/")]
    known = [name for name in known if Path(CONFIG_DIR, name).is_dir() and not name.startswith("hydra")]
    close = difflib.get_close_matches(group, known, n=1)
    return f"Did you mean {close[0]}?" if close else f"The groups within others are {', '.join(sorted(known))}."


def _kept_group(group: str, typed: list[str]) -> str | None:
    """Why an option of a group within another one cannot be chosen where the settings are those of a run."""
    for word in typed:
        name = override_key(word)
        if name == "resume":
            if group == "data/augment":
                return (
                    f"{word} continues with the augmentation of that run, so {group} cannot be chosen. To start a new "
                    f"run from its weights, type model.init_from=RUN {group}=OPTION and the other settings."
                )
            return (
                f"{word} continues with the optimizer and scheduler of that run, so {group} cannot be chosen. To start "
                f"a new run from its weights, type model.init_from=RUN {group}=OPTION and the other settings."
            )
        if name in ("replay", "ckpt_path"):
            return f"{word} has its own {group.replace('/', '.')}. Remove {group}="
    return None
