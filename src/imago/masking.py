"""Masking of secrets in everything that is written: values of settings and variables, and passwords in URLs.

Secrets are known by their names (`params.hub_token`) and by their values (that of the variable HF_TOKEN, wherever it
appears).
"""

import os
import re
from collections.abc import Iterable
from typing import Any

SECRET = re.compile(
    r"(?i)token|secret|passw(or)?d|passphrase|api_?key|access_?key|private_?key|credential|bearer|(^|_)(auth|pat)$|\w_pwd$"
)
"""Names whose values are secret."""
NOT_SECRET = re.compile(
    r"(?i)^(num|n|max|min|class|cls)_tokens?$|tokens?_(class|file|dir|path|length|type|size|mixer)$|tokenizer"
)
"""Names that only look like secrets: num_tokens, class_token, token_file, TOKENIZERS_PARALLELISM."""
PARTS_OF_THE_RUN = ("model", "trainer", "strategy", "callbacks", "data.train_transform", "data.eval_transform")
"""Settings whose keys are names of arguments, such as the token_mixer of a network."""
URL_PASSWORD = re.compile(r"(?<=//)[^\s/'\"]*@(?=[^\s@'\"]*)|(?<=//)[^\s'\"@]{1,200}:[^\s'\"@]{1,200}@")
QUERY_SECRET = re.compile(r"(?i)(?<=[?&;])((?:token|password|secret|api_?key|access_?key)=)[^\s&;'\"]+")
MASK = "***"
SHORTEST = 8
"""Shortest value that is masked wherever it appears, in characters: `1` or `false` would be everywhere."""
_values: dict[str, re.Pattern[str]] = {}


def is_secret(key: str) -> bool:
    """Whether a setting, by its full key, or an environment variable holds a secret."""
    if f"{key}.".startswith(tuple(f"{part}." for part in PARTS_OF_THE_RUN)):
        return False
    parts = [part.partition("[")[0].replace("-", "_") for part in key.lstrip("+~").split(".")]
    return any(SECRET.search(part) is not None and NOT_SECRET.search(part) is None for part in parts)


def learn_secrets(config: Any, key: str = "") -> None:
    """Register the values of secret settings in plain containers, and of secret environment variables."""
    if not key:
        _learn(value for name, value in os.environ.items() if is_secret(name))
    if isinstance(config, dict):
        for name, value in config.items():
            learn_secrets(value, f"{key}.{name}" if key else str(name))
    elif isinstance(config, list):
        for value in config:
            learn_secrets(value, key or "[]")
    elif key and is_secret(key) and not isinstance(config, bool | None):
        _learn([str(config)])


def _learn(values: Iterable[str]) -> None:
    for value in values:
        if len(value) >= SHORTEST and "${" not in value:
            _values[value] = re.compile(rf"(?<![\w.-]){re.escape(value)}(?![\w.-])")


def masked(text: str) -> str:
    """Mask registered values in `text` that are not part of a longer word, and passwords in URLs."""
    for value, pattern in _values.items():
        if value in text:
            text = pattern.sub(MASK, text)
    if "//" in text:
        text = QUERY_SECRET.sub(rf"\1{MASK}", URL_PASSWORD.sub(f"{MASK}@", text))
    return text


def masked_config(config: Any, key: str = "") -> Any:
    """Mask the secret values in plain containers, by name and by value; interpolations stay."""
    if isinstance(config, dict):
        return {name: masked_config(value, f"{key}.{name}" if key else str(name)) for name, value in config.items()}
    if isinstance(config, list):
        return [masked_config(value, key) for value in config]
    if key and is_secret(key) and not isinstance(config, bool | None):
        return config if isinstance(config, str) and ("${" in config or not config) else MASK
    return masked_override(config) if isinstance(config, str) else config


def masked_override(word: str) -> str:
    """Mask the secrets of an override: `+params.hub_token=X`, several with commas, or `name: X` within braces."""
    if "=" not in word and "{" not in word:
        return masked(word)
    return masked(ASSIGNED.sub(_masked_pair, word))


ASSIGNED = re.compile(
    r"(?P<key>[\w./@-]+)(?P<sign>=|:\s*)(?P<value>\$\{[^{}]*\}|[^,{}\[\]\s][^,{}]*|\{[^{}]*\}|\[[^\[\]]*\])"
)


def _masked_pair(match: re.Match[str]) -> str:
    key, sign, value = match["key"], match["sign"], match["value"]
    if is_secret(key) and "${" not in value and value not in ("null", "true", "false"):
        return f"{key}{sign}{MASK}"
    return f"{key}{sign}{ASSIGNED.sub(_masked_pair, value)}" if value[0] in "{[" else match[0]
