"""Check the words of an experiment file, and the defaults of other options of one's own, before they are composed:
groups, options and settings of other trainers.

Hydra names neither the line nor, for a group that does not exist, the file.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from imago.cli.findings import Typed, similar_options
from imago.cli.start_from import RUN_OPTION
from imago.config.carried import OPTION
from imago.config.foreign_options import GROUPS, NODES, OPTIONS
from imago.config.foreign_words import meaning
from imago.config.hints import Hint
from imago.config.invocation import override_key, override_value
from imago.config.root import CONFIG_DIR
from imago.config.schema import shipped
from imago.errors import UserError

FILES = ("recipe", "experiment", "hparams_search", "debug")
"""Groups whose files choose options of other groups, and set what they like."""
PACKAGE = re.compile(r"\s*#\s*@package\s+_global_")
SIZE = re.compile(r"lin\d+_size")
DEFAULT_LOGGER = "tensorboard"
ENTRY = re.compile(r"(?P<override>override +)?(?P<optional>optional +)?(?P<slash>/?)(?P<group>[\w/]+)")


def check_files(words: Sequence[str], typed: Typed) -> None:
    """Raise one UserError for the words of all chosen files that Imago does not take."""
    lines: list[str] = []
    for word in words:
        group = override_key(word)
        names = re.findall(r"[\w./-]+", override_value(word)) if typed.is_group(group) or group in FILES else []
        for name in names:
            if group not in FILES:
                lines += _of_defaults(group, name, typed)
                continue
            files = [Path(folder, group, f"{name}.yaml") for folder in (*typed.folders, Path(CONFIG_DIR))]
            if (file := next((file for file in files if file.is_file()), None)) is not None:
                lines += _of_file(file, typed)
    _raise_all(lines)


def check_file(file: Path, typed: Typed) -> None:
    """Raise UserError for the words of one experiment file."""
    _raise_all(_of_file(file, typed))


def _raise_all(lines: Iterable[str]) -> None:
    if lines := [*dict.fromkeys(lines)]:
        raise UserError("\n".join(lines))


def _of_file(file: Path, typed: Typed) -> Iterator[str]:
    """Problems with an experiment file, and with the defaults of the options that it chooses."""
    content = _parsed(file)
    if not PACKAGE.match(file.read_text(encoding="utf-8", errors="replace")):  # that it lacks one comes first
        typed = replace(typed, settings={*typed.settings, *(key.value for key, _ in _entries(content))})
    yield from (placed(file, node, what) for node, what in _problems(content, file.parent.name, typed))
    for group, option in _choices(content):
        if typed.has_option(group, option):
            yield from _of_defaults(group, option, typed)


def _of_defaults(group: str, name: str, typed: Typed) -> Iterator[str]:
    """Problems with the defaults of an option of one's own that name options which do not exist."""
    file = next((f for folder in typed.folders if (f := Path(folder, group, f"{name}.yaml")).is_file()), None)
    inner: list[tuple[str, str]] = []
    for entry in _defaults(_parsed(file)) if file is not None else []:
        pairs = [(group, entry)] if isinstance(entry, yaml.ScalarNode) else []
        for key, value in _entries(entry):
            match = ENTRY.fullmatch(key.value)
            if match is not None and not match["optional"]:
                pairs.append((match["group"] if match["slash"] else f"{group}/{match['group']}", value))
        for of, node in pairs:
            option = _text(node).removesuffix(".yaml")
            if option in ("_self_", name) or of.startswith("hydra") or not _names_a_file(option):
                continue
            if file is not None and not typed.has_option(of, option):
                yield placed(file, node, no_option(of, option, typed))
            inner.append((of, option))
    for of, option in inner:
        yield from _of_defaults(of, option, typed)


def placed(file: Path, node: yaml.Node, what: str) -> str:
    """A message about a node of a YAML file, with file and line."""
    return f"{file}, line {node.start_mark.line + 1}: {what}"


def _defaults(content: yaml.Node | None) -> list[yaml.Node]:
    """The list of defaults at the top of a file."""
    node = next((value for key, value in _entries(content) if key.value == "defaults"), None)
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _names_a_file(option: str) -> bool:
    return re.fullmatch(r"\w[\w-]*", option) is not None and option not in ("null", OPTION, RUN_OPTION)


def no_option(group: str, option: str, typed: Typed) -> str:
    """Message for an option that a group does not have, with the closest and all of its options."""
    if not typed.is_group(group):
        return f"there is no group {group}. Remove the line, or write the settings below {group.rpartition('/')[2]}:"
    options = typed.options(group)
    close = similar_options(option, options, most=2)
    meant = f" Did you mean {' or '.join(close)}?" if close else ""
    hint = OPTIONS.get((group, option.lower()))
    said = f" {_in_yaml(hint)}" if hint is not None else meant
    return f"{group} has no option {option}.{said} The options are {', '.join(options)}."


def _parsed(file: Path) -> yaml.Node | None:
    try:
        return yaml.compose(file.read_text(encoding="utf-8", errors="replace"))
    except yaml.YAMLError:
        return None  # Hydra reads it next, and its error has the place


Problem = tuple[yaml.Node, str]


def _problems(content: yaml.Node | None, group: str, typed: Typed) -> Iterator[Problem]:
    for entry in _defaults(content):
        for name, option in _entries(entry):
            if (what := _choice(name.value, option, group, typed)) is not None:
                yield name, what
    for key, value in _entries(content):
        if key.value not in ("defaults", "hydra"):
            yield from _settings(key, value, "", typed)
    yield from _layer_sizes(content, typed)
    yield from _loggers(content, typed)


def _layer_sizes(content: yaml.Node | None, typed: Typed) -> Iterator[Problem]:
    """Sizes of the template's dense net in an experiment that chooses a network of Imago's."""
    is_ours = "model" not in typed.keys and Path(CONFIG_DIR, "model", f"{_chosen(content, 'model')}.yaml").is_file()
    sizes = [(key, _text(value)) for key, value in entries_below(content, "model", "net") if SIZE.fullmatch(key.value)]
    if sizes and is_ours:
        names = ", ".join(key.value for key, _ in sizes)
        yield sizes[0][0], f'Write "hidden: [{", ".join(size for _, size in sizes)}]" in place of {names}.'


def _loggers(content: yaml.Node | None, typed: Typed) -> Iterator[Problem]:
    """Settings of a logger that neither the file nor the command line chooses."""
    if "logger" in typed.keys or _chosen(content, "logger") is not None:
        return
    for key, value in entries_below(content, "logger"):
        if key.value != DEFAULT_LOGGER and typed.has_option("logger", key.value) and not _has_target(value):
            yield key, f'logger.{key.value} is not chosen. Write "override /logger: {key.value}" in the defaults.'


def _chosen(content: yaml.Node | None, group: str) -> str | None:
    """The option of a group that the defaults of a file choose."""
    return next((option for of, option in _choices(content) if of == group), None)


def _choices(content: yaml.Node | None) -> list[tuple[str, str]]:
    """Groups and options that the defaults of a file choose."""
    pairs = [(ENTRY.match(name.value), option) for entry in _defaults(content) for name, option in _entries(entry)]
    return [(match["group"], _text(option)) for match, option in pairs if match is not None]


def _has_target(node: yaml.Node) -> bool:
    return any(key.value == "_target_" for key, _ in _entries(node))


def entries_below(content: yaml.Node | None, *path: str) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    """Keys and values of a group in a file."""
    for part in path:
        content = next((value for key, value in _entries(content) if key.value == part), None)
    return _entries(content)


def _choice(name: str, option: yaml.Node, of_file: str, typed: Typed) -> str | None:
    """What to write instead of an entry of the defaults, such as `override /datamodule: mnist`."""
    match = ENTRY.match(name)
    if match is None or match["optional"] or "@" in name or match["group"].split("/")[0] == "hydra":
        return None
    group, value = match["group"], _text(option)
    ours = GROUPS.get(group, group)
    is_relative = not match["slash"] and typed.is_group(f"{of_file}/{group}")
    is_own = typed.is_group(ours) and not Path(CONFIG_DIR, ours).is_dir()
    if is_relative or is_own or ours in FILES:
        return None
    written = f"{name}: {value}"
    if not typed.is_group(ours):
        hint = meaning(group, value)
        return f'"{written}" chooses an option of a group that does not exist. {hint or "Remove the line."}'
    if value.startswith("["):
        hint = None
    elif (hint := OPTIONS.get((ours, value.lower()))) is not None and not typed.has_option(ours, value):
        chosen = next((override_value(word) for word in hint.words if override_key(word) == ours), None)
        if chosen is None:
            return f'"{written}" chooses an option that does not exist. {hint}'
        value = chosen
    elif _names_a_file(value) and not typed.has_option(ours, value):
        return no_option(ours, value, typed)
    right = f"override /{ours}: {value}"
    return None if right == re.sub(r" +", " ", written) else f'Write "{right}" in place of "{written}".'


def _settings(key: yaml.Node, value: yaml.Node, path: str, typed: Typed) -> Iterator[Problem]:
    """Settings of other trainers: at the root, of the Trainer, and below entries of groups that do not exist."""
    name = f"{path}{key.value}"
    root, _, last = name.partition(".")
    text = _text(value)
    hint = NODES.get(name)
    if hint is None and root == "trainer" and last and last not in shipped()["lightning.pytorch.Trainer"]["properties"]:
        hint = meaning(name, text)
    elif hint is None and root not in typed.settings:
        if name in GROUPS and isinstance(value, yaml.MappingNode):
            ours = GROUPS[name].replace("/", ".")
            yield key, f'Write "{ours}:" in place of "{name}:".' if "." not in ours else f"Imago calls {name} {ours}."
            return
        hint = meaning(name, text) if not isinstance(value, yaml.MappingNode) or name == "extras" else None
        if hint is None and not path and not typed.is_group(name):
            hint = _unknown(name, value, typed)
    if hint is not None:
        yield key, f"Unknown setting {name}. {_in_yaml(hint)}"
        return
    is_own = any(below.value == "_target_" for below, _ in _entries(value))
    if root in ("trainer", "callbacks", "logger") and not is_own:
        for below, content in _entries(value):
            yield from _settings(below, content, f"{name}.", typed)


def _unknown(name: str, value: yaml.Node, typed: Typed) -> Hint | None:
    """The hint for a key at the root that no trainer takes; None for a part, whose place Hydra's error says."""
    if _has_target(value):
        return None
    if close := difflib.get_close_matches(name, typed.settings, n=1):
        return Hint(note=f"Did you mean {close[0]}?")
    return Hint(note="Put variables of your own below params:")


def _in_yaml(hint: Hint) -> str:
    """A hint for a file: settings as they are named there, options as they are chosen there."""
    words = [(override_key(word), override_value(word)) for word in hint.words if "=" in word]
    chosen = [f'"override /{key}: {value}"' for key, value in words if Path(CONFIG_DIR, key).is_dir()]
    named = [f"{key}={value}" for key, value in words if not Path(CONFIG_DIR, key).is_dir()]
    sentences = [f"Write {' and '.join(chosen)} in the defaults." if chosen else ""]
    sentences.append(f"Imago calls it {' and '.join(named)}." if named else "")
    return " ".join(filter(None, [*sentences, hint.note]))


def _entries(node: yaml.Node | None) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    """Keys and values of a mapping; none of another node."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return [(key, value) for key, value in pairs if isinstance(key, yaml.ScalarNode)]


def _text(node: yaml.Node) -> str:
    """A value as one would type it."""
    if isinstance(node, yaml.SequenceNode):
        return f"[{', '.join(map(_text, node.value))}]"
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ""
