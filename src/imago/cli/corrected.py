"""The message for several words that Imago does not take, with the corrected command line, which starts."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from imago.cli.compose import compose_groups, composed, is_sweep, readable, typed_value
from imago.cli.findings import Finding, Part, Typed
from imago.cli.help import option_with
from imago.cli.unknown_settings import known_settings, parent, schema_of, unknown_setting
from imago.cli.word_hints import FROM_CHECKPOINT, UNKNOWN
from imago.config.hints import Hint
from imago.config.invocation import override_key, override_value
from imago.config.root import CONFIG_DIR
from imago.config.schema import mismatch

PLACEHOLDERS = ("VALUE", "PATH", "RUN")
KEPT = Hint(note="A resumed run keeps its optimizer and schedule.")


def describe(parts: Sequence[Part], typed: Typed, program: str = "") -> str:
    """The message for one finding, or a table of several; with the corrected command line where words belong together.

    `parts` are those of `corrected_parts`.
    """
    findings = [finding for _, finding in parts if finding is not None]
    if len(findings) == 1:
        alone = f"{findings[0].what} {findings[0].hint}"
        is_flag = "-m" in findings[0].words and len(parts) > 1  # it applies to all words
        return f"{alone}\n{_together(parts, program)}" if is_flag and program else alone
    width = min(max(len(finding.typed) for finding in findings), 30)
    lines = ["Words that Imago does not take:"]
    lines += [f"  {finding.typed:<{width}}  {finding.hint}" for finding in findings]
    words = corrected_words(parts)
    is_whole = not any("_target_" in finding.typed and not finding.words for finding in findings)
    if program and words and is_whole and _starts(words, typed):
        lines.append(_together(parts, program))
    return "\n".join(lines)


def _together(parts: Sequence[Part], program: str) -> str:
    return f"Together:\n  {program} {' '.join(map(shlex.quote, corrected_words(parts)))}"


def corrected_words(parts: Sequence[Part]) -> list[str]:
    """The whole command line with the hints in place of the findings; of two words for one setting the last counts."""
    words = [word for part, finding in parts for word in (map(readable, part) if finding is None else finding.words)]
    return list({override_key(word) if "=" in word else word: word for word in words}.values())


def corrected_parts(parts: Sequence[Part], typed: Typed, program: str = "") -> list[Part]:
    """The parts with what composing them shows, so that the corrected command has no further error.

    Words that were typed may not exist, either; translated ones may have no meaning together, or a wrong value.
    """
    parts = [(part, _without_placeholder(finding)) for part, finding in parts]
    words = corrected_words(parts)
    if any(override_key(word) in ("resume", "replay") for word in words):
        parts = [(part, _of_a_run(finding)) for part, finding in parts]
    if not _is_composable(words, typed):
        return parts
    help_all = f"{program or f'ml-{typed.command}'} --help-all"
    targets = [word for part, _ in parts for word in part if "._target_=" in word]
    options: list[str] | None = None
    while options != (options := [word for word in words if _is_choice(word)]):  # a dropped finding may have chosen one
        base = compose_groups(typed.command, words)
        if base is None:  # an experiment with a mistake, or a package that is missing
            break
        parts = [(part, _examined(part, finding, base, [*words, *targets], help_all)) for part, finding in parts]
        words = corrected_words(parts)
    return parts


def _is_composable(words: Sequence[str], typed: Typed) -> bool:
    """Whether the settings are known before a checkpoint or a run is read."""
    is_other = any(word.split("=")[0] in ("--config-name", "-cn", "--config-path", "-cp") for word in words)
    of_a_run = typed.command in FROM_CHECKPOINT or any(override_key(word) in ("resume", "replay") for word in words)
    return not (is_other or of_a_run)


def _starts(words: Sequence[str], typed: Typed) -> bool:
    """Whether Hydra accepts a command line, as far as that is known before a checkpoint or a run is read."""
    return not _is_composable(words, typed) or composed(typed.command, words) is not None


def _without_placeholder(finding: Finding | None) -> Finding | None:
    """A finding whose value is missing, as after `--lr`: nothing of it can be typed yet."""
    missing = [word for word in finding.words if override_value(word) in PLACEHOLDERS] if finding is not None else []
    if finding is None or not missing or any(value in finding.typed for value in PLACEHOLDERS):
        return finding
    return replace(finding, hint=Hint(note=f"Its value is missing: type {missing[0]}."), meant=())


def _of_a_run(finding: Finding | None) -> Finding | None:
    is_kept = finding is not None and any("/" in override_key(word) for word in finding.words)
    return replace(finding, hint=KEPT, meant=()) if finding is not None and is_kept else finding


def _examined(
    part: list[str], finding: Finding | None, base: DictConfig, words: Sequence[str], help_all: str
) -> Finding | None:
    """A word that was typed, or its translation, within the composed config."""
    settings = [word for word in (part if finding is None else finding.words) if _is_setting(word)]
    if finding is None or (finding.hint == UNKNOWN and len(part) == 1):
        known = known_settings(base)
        for word in settings if finding is None else part:
            key, value = override_key(word), override_value(word)
            node, last = parent(base, key)
            is_known = key in known or (node is not None and last in node)  # `_target_` is not among the known
            if not is_known and not word.startswith(("+", "~")):
                hint, meant = unknown_setting(key, value, base, words, help_all)
                return Finding(word, f"Unknown setting {key}.", hint, is_unknown=True, meant=meant)
        return finding
    problem = next((why for word in settings if (why := _problem(word, base, words)) is not None), None)
    return finding if problem is None else replace(finding, hint=Hint(note=problem), meant=())


def _is_setting(word: str) -> bool:
    is_hydra = word.startswith("-") or override_key(word).startswith("hydra.")
    return "=" in word and not is_hydra and not _is_choice(word)


def _is_choice(word: str) -> bool:
    """Whether an override chooses an option of a group."""
    key = override_key(word)
    return "=" in word and ("/" in key or "@" in key or Path(CONFIG_DIR, key).is_dir())


def _problem(word: str, base: DictConfig, words: Sequence[str]) -> str | None:
    """Why a translated word cannot be typed beside the others."""
    key = override_key(word)
    node, last = parent(base, key)
    schema = schema_of(node)
    if (removed := next((name for name in _removed(words) if key.startswith(f"{name}.")), None)) is not None:
        return f"{removed}=null leaves no {key} to set."
    is_added = word.startswith("+")
    if key not in known_settings(base) and not is_added and (node is None or last != "_target_"):
        option = option_with(key)
        chosen = next((other for other in words if option and override_key(other) == override_key(option)), None)
        instead = f", and {chosen} was typed" if chosen is not None else ""
        return f"{key} is a setting of {option}{instead}." if option else f"The chosen options have no {key}."
    if schema is None or is_sweep(word):
        return None
    if last not in schema["properties"]:
        is_open = schema["additionalProperties"] or not is_added
        return None if is_open else f"{key} is not an argument of {node._target_ if node is not None else last}."
    valid = mismatch(typed_value(word), schema["properties"][last])
    return f"{key} must be {valid}, got {override_value(word)}." if valid is not None else None


def _removed(words: Sequence[str]) -> Iterator[str]:
    yield from (override_key(word) for word in words if override_value(word) == "null")
