"""Keeps secrets out of what a run writes: run.json, reports, TensorBoard, checkpoints and train.log.

A value is a secret by its key's name (`api_key`, `hf_token`), by its own form (`ghp_...`), or, in free text, because
it is a value of such a key. What a run is built from keeps its real values. Hydra's own `.hydra/*.yaml` and
`multirun.yaml` hold what was typed, as it was typed: there `key=${oc.env:NAME}` keeps a secret out.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

MASK = "***"

# The last words of a secret's key, in lower case with _ between words. Plurals too, but `tokens` are counted or listed.
_KEY = re.compile(
    r"\w*(passw(or)?d|passphrase|secret|credential|api_?key|access_?key(_id)?|private_?key|secret_?key)s?"
    r"(_(base|json|value|text|string|b64|base64))?"
    r"|(\w*_)?(auth|oauth|authorization|auth_?header|bearer|notify|webhook|webhook_url|cookies?|jwt|pat|pwd|passwd|pass|pw)"
    r"|(\w*_)?(dsn|connection_?string|conn_?str|sas(_url)?)"
    r"|(\w*_)?(wandb|signing|encryption|decryption|account|storage|subscription|license|ssh|gpg|rsa|hmac|service)_?key"
    r"|(?P<kind>\w*?)_?token"
)
# Tokens of a vocabulary, and of a model's input.
_PLAIN_TOKENS = {
    "pad", "eos", "bos", "unk", "sep", "cls", "mask", "class", "special", "start", "end", "image", "prefix", "per",
    "num", "max", "min", "next",
}  # fmt: skip

# What gives a secret away wherever it stands, as those who issue them document it.
_FORMS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"gh[opsur]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"  # GitHub, GitLab
    r"|hf_[A-Za-z0-9]{24,}"  # Hugging Face
    r"|sk-[\w-]*[A-Za-z0-9]{16}[\w-]*"  # OpenAI, Anthropic
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}"  # Amazon
    r"|AIza[\w-]{35}"  # Google
    r"|xox[a-z]-[\w-]{8,}"  # Slack
    r"|eyJ[\w-]{6,}\.[\w-]{6,}(?:\.[\w-]*)?"  # JSON Web Tokens
    r")"
    r"|(?s:-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z))"
)
# scheme://user:password@host, where the password may hold @ and /, and https://token@host.
_IN_URL = re.compile(
    r"(?<![A-Za-z0-9+.-])(?:([A-Za-z][A-Za-z0-9+.-]*://[^\s/:@]*:)(?![0-9]{1,5}(?:[/?#]|$))\S+|(https?://)[^\s/:@]+)@"
)
# A header of HTTP: its scheme and what follows it.
_AUTHORIZATION = re.compile(
    r"((?:\bauthorization[\"']?\s*[:=]\s*[\"']?(?:[A-Za-z]+\s+)?)|\bBearer\s+(?=\S{8}))[^\s\"',;]+", re.IGNORECASE
)
_PAIR = re.compile(
    r"""(?<![\w.-])([\w.-]+)(["']?\s*[:=]\s*)("[^"]*"|'[^']*'|[^\s,;&"'(){}\[\]]*[^\s,;&"'(){}\[\]:.])"""
)

# Shorter ones are found by their keys alone: elsewhere their letters are parts of common words.
_SHORTEST = 6


def is_secret(key: str) -> bool:
    """Whether a key's name says that its value is a secret: `logger.w.api_key`, `AuthToken`, but not `tokenizer`."""
    name = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", key.rpartition(".")[2]).replace("-", "_").lower()
    found = _KEY.fullmatch(name)
    return found is not None and (found["kind"] or "").rpartition("_")[2] not in _PLAIN_TOKENS


def mask(value: Any, hidden: bool = False) -> Any:
    """A copy of plain values, nested ones too, in which secrets are `***`.

    True, false, null and empty texts say nothing and stay.

    Args:
        hidden: whether all of it is a secret, for the sake of the key that it has.
    """
    if isinstance(value, Mapping):
        return {key: mask(item, hidden or is_secret(str(key))) for key, item in value.items()}
    if isinstance(value, list | tuple):
        if not hidden and value and all(isinstance(item, str) for item in value):
            return mask_command(value)  # `--token ...` as well
        return [mask(item, hidden) for item in value]
    if hidden and _says_something(value):
        return MASK
    return mask_text(value) if isinstance(value, str) else value


def mask_text(text: str, known: Collection[str] = ()) -> str:
    """Free text, like an error's message, without secrets.

    Args:
        known: `secret_values` of the configuration: are masked wherever they stand.
    """
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, MASK)
    text = _FORMS.sub(MASK, text)
    text = _IN_URL.sub(lambda url: f"{url[1] or url[2]}{MASK}@", text)
    text = _AUTHORIZATION.sub(rf"\1{MASK}", text)
    return _PAIR.sub(_masked_pair, text)


def _masked_pair(pair: re.Match[str]) -> str:
    is_header = pair[1].lower().endswith("authorization")  # masked by what it is
    return f"{pair[1]}{pair[2]}{MASK}" if is_secret(pair[1]) and not is_header else pair[0]


def mask_command(parts: Sequence[str], known: Collection[str] = ()) -> list[str]:
    """What was typed, without secrets: `key=value`, `--flag=value` and `--flag value`.

    Args:
        known: as for `mask_text`.
    """
    masked = []
    flag = ""
    for part in parts:
        key, equals, value = part.partition("=")
        if equals and value and is_secret(key.lstrip("+~-")):
            masked.append(f"{key}={MASK}")
        elif is_secret(flag) and not part.startswith("-"):
            masked.append(MASK)
        else:
            masked.append(mask_text(part, known))
        flag = part.lstrip("-") if part.startswith("-") else ""
    return masked


def secret_values(config: Any) -> frozenset[str]:
    """The secrets that a configuration holds, as text, those long enough to be looked for in what is written."""
    return frozenset(text for text in _secrets(config, hidden=False) if len(text) >= _SHORTEST)


def _secrets(value: Any, hidden: bool) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _secrets(item, hidden or is_secret(str(key)))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secrets(item, hidden)
    elif hidden and _says_something(value):
        yield str(value)


def _says_something(value: Any) -> bool:
    return value is not None and value != "" and not isinstance(value, bool)
