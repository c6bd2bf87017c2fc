"""Secrets are written nowhere: values of settings and variables with telling names, and passwords in URLs.

Known by their names (`params.hub_token`) and by their values (what the variable HF_TOKEN holds, wherever it turns up).
"""

import os
import re
from typing import Any

SECRET = re.compile(
    r"(?i)token|secret|passw(or)?d|passphrase|api_?key|access_?key|private_?key|credential|(^|_)(auth|pat)$|\w_pwd$"
)
"""Names whose values are secret."""
NOT_SECRET = re.compile(r"(?i)(^|_)(num|n|max|min|class|cls|file|dir|path|length|parallelism|type|size)(_|$)|tokenizer")
"""Names of something else: num_tokens, class_token, token_file, TOKENIZERS_PARALLELISM."""
URL_PASSWORD = re.compile(r"(\w+://[^\s/:@'\"]*:)[^\s/@'\"]+(@)")
MASK = "***"
SHORTEST = 8
"""Characters from which on a value is looked for in all that is written: `1` or `false` would be everywhere."""
_values: set[str] = set()


def is_secret(name: str) -> bool:
    """Whether a setting or variable of that name holds a secret."""
    last = name.rpartition(".")[2].partition("[")[0]
    return SECRET.search(last) is not None and NOT_SECRET.search(last) is None


def learn_secrets(config: Any, name: str = "") -> None:
    """Notes the values of secret settings in plain containers, and of secret variables of the environment."""
    if not name:
        _values.update(value for key, value in os.environ.items() if is_secret(key) and len(value) >= SHORTEST)
    if isinstance(config, dict):
        for key, value in config.items():
            learn_secrets(value, str(key))
    elif isinstance(config, list):
        for value in config:
            learn_secrets(value, name)
    elif isinstance(config, str) and is_secret(name) and len(config) >= SHORTEST and "${" not in config:
        _values.add(config)


def masked(text: str) -> str:
    """`text` without the values that were noted, and without passwords in URLs."""
    for value in sorted(_values, key=len, reverse=True):
        if value in text:
            text = text.replace(value, MASK)
    return URL_PASSWORD.sub(rf"\1{MASK}\2", text) if "://" in text else text


def masked_config(config: Any, name: str = "") -> Any:
    """Plain containers whose secret values are masked, by name and by value; interpolations stay."""
    if isinstance(config, dict):
        return {key: masked_config(value, str(key)) for key, value in config.items()}
    if isinstance(config, list):
        return [masked_config(value, name) for value in config]
    if isinstance(config, str):
        if config and is_secret(name) and "${" not in config:
            return MASK
        return masked(",".join(map(masked_override, config.split(","))) if "=" in config else config)
    return config


def masked_override(word: str) -> str:
    """`+params.hub_token=X` as it may be shown."""
    key, equals, value = word.partition("=")
    if equals and re.fullmatch(r"[+~]{0,2}[\w./@-]+", key) and is_secret(key) and value and "${" not in value:
        return f"{key}={MASK}"
    return masked(word)
