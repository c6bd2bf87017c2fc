"""Check the words of an experiment file, and the defaults of other options of one's own, before they are composed:
groups, options and settings of other trainers.

Hydra names neither the line nor, for a group that does not exist, the file.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from imago.cli.findings import Typed
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
ENTRY = re.compile(r"(?P<override>override +)?(?P<optional>optional +)?(?P<slash>/?)(?P<group>[\w/]+)")


def check_files(words: Sequence[str], typed: Typed) -> None:
    """Raise UserError for the words of chosen files that Imago does not take, all of a file at once."""
    for word in words:
        if typed.is_group(override_key(word)) and override_key(word) not in FILES:
            for name in re.findall(r"[\w./-]+", override_value(word)):
                _check_defaults(override_key(word), name, typed)
        if override_key(word) in FILES:
            for name in re.findall(r"[\w./-]+", override_value(word)):
                for file in [
                    Path(folder, override_key(word), f"{name}.yaml") for folder in (*typed.folders, Path(CONFIG_DIR))
                ]:
                    if file.is_file():
                        check_file(file, typed)
                        break


def check_file(file: Path, typed: Typed) -> None:
    """Raise UserError for the words of one experiment file."""
    problems = list(_problems(_parsed(file), file.parent.name, typed))
    if problems:
        raise UserError("\n".join(f"{file}, line {node.start_mark.line + 1}: {what}" for node, what in problems))


def _check_defaults(group: str, name: str, typed: Typed) -> None:
    """Raise UserError for the defaults of an option of one's own that name options which do not exist."""
    file = next((f for folder in typed.folders if (f := Path(folder, group, f"{name}.yaml")).is_file()), None)
    content = _parsed(file) if file is not None else None
    defaults = next((value for key, value in _entries(content) if key.value == "defaults"), None)
    problems: list[Problem] = []
    inner: list[tuple[str, str]] = []
    for entry in defaults.value if isinstance(defaults, yaml.SequenceNode) else []:
        pairs = [(group, entry)] if isinstance(entry, yaml.ScalarNode) else []
        for key, value in _entries(entry):
            match = ENTRY.fullmatch(key.value)
            if match is not None and not match["optional"]:
                pairs.append((match["group"] if match["slash"] else f"{group}/{match['group']}", value))
        for of, node in pairs:
            option = _text(node).removesuffix(".yaml")
            if option in ("_self_", name) or of.startswith("hydra") or not _names_a_file(option):
                continue
            if not typed.has_option(of, option):
                problems.append((node, no_option(of, option, typed)))
            inner.append((of, option))
    if problems:
        raise UserError("\n".join(f"{file}, line {node.start_mark.line + 1}: {what}" for node, what in problems))
    for of, option in inner:
        _check_defaults(of, option, typed)


def _names_a_file(option: str) -> bool:
    return re.fullmatch(r"\w[\w-]*", option) is not None and option not in ("null", OPTION, RUN_OPTION)


def no_option(group: str, option: str, typed: Typed) -> str:
    """Message for an option that a group does not have, with the closest and all of its options."""
    if not typed.is_group(group):
        return f"there is no group {group}. Remove the line, or write the settings below {group.rpartition('/')[2]}:"
    options = typed.options(group)
    close = difflib.get_close_matches(option, options, n=2)
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
    for key, value in _entries(content):
        if key.value == "defaults" and isinstance(value, yaml.SequenceNode):
            for entry in value.value:
                for name, option in _entries(entry):
                    if (what := _choice(name.value, option, group, typed)) is not None:
                        yield name, what
        elif key.value not in ("defaults", "hydra"):
            yield from _settings(key, value, "", typed)


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
    if not Path(CONFIG_DIR, ours, f"{value}.yaml").is_file():
        _check_defaults(ours, value, typed)
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
    if hint is not None:
        yield key, f"Unknown setting {name}. {_in_yaml(hint)}"
        return
    is_own = any(below.value == "_target_" for below, _ in _entries(value))
    if root in ("trainer", "callbacks", "logger") and not is_own:
        for below, content in _entries(value):
            yield from _settings(below, content, f"{name}.", typed)


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
