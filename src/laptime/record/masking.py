"""Masks secrets in what a run writes: run.json, reports, TensorBoard, checkpoints and train.log.

A value is a secret because of its key (`api_key`, `hf_token`) or its format (`ghp_...`). In free text, the values of
such keys are masked, too. The classes of a run get the real values. Hydra's own `.hydra/*.yaml` and `multirun.yaml`
hold what was typed: write `key=${oc.env:NAME}` to keep a secret out of them.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

MASK = "***"

# The endings of keys of secrets, in lower case with _ between words. Plurals are secret, too. `tokens` is not: it is
# a count or a list.
_KEY = re.compile(
    r"\w*(passw(or)?d|passphrase|secret|credential|api_?key|access_?key(_id)?|private_?key|secret_?key)s?"
    r"(_(base|json|value|text|string|b64|base64))?"
    r"|(\w*_)?(auth|oauth|authorization|auth_?header|bearer|notify|webhook|webhook_url|cookies?|jwt|pat|pwd|passwd|pass|pw)"
    r"|(\w*_)?(dsn|connection_?string|conn_?str|sas(_url)?)"
    r"|(\w*_)?(wandb|signing|encryption|decryption|account|storage|subscription|license|ssh|gpg|rsa|hmac|service)_?key"
    r"|(?P<kind>\w*?)_?token"
)
# With these words, `..._token` is a token of a vocabulary or of a model's input.
_PLAIN_TOKENS = {
    "pad", "eos", "bos", "unk", "sep", "cls", "mask", "class", "special", "start", "end", "image", "prefix", "per",
    "num", "max", "min", "next",
}  # fmt: skip

# Formats of secrets, as their issuers document them.
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
# scheme://user:password@host, where the password may contain @ and /, and https://token@host.
_IN_URL = re.compile(
    r"(?<![A-Za-z0-9+.-])(?:([A-Za-z][A-Za-z0-9+.-]*://[^\s/:@]*:)(?![0-9]{1,5}(?:[/?#]|$))\S+|(https?://)[^\s/:@]+)@"
)
# The HTTP header Authorization: its scheme and the credentials.
_AUTHORIZATION = re.compile(
    r"((?:\bauthorization[\"']?\s*[:=]\s*[\"']?(?:[A-Za-z]+\s+)?)|\bBearer\s+(?=\S{8}))[^\s\"',;]+", re.IGNORECASE
)
_PAIR = re.compile(
    r"""(?<![\w.-])([\w.-]+)(["']?\s*[:=]\s*)("[^"]*"|'[^']*'|[^\s,;&"'(){}\[\]]*[^\s,;&"'(){}\[\]:.])"""
)

# Shorter secrets are masked only as values of their keys: in free text they could be parts of common words.
_MIN_LENGTH = 6


def is_secret(key: str) -> bool:
    """Whether a key's name says that its value is a secret: `logger.w.api_key`, `AuthToken`, but not `tokenizer`."""
    name = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", key.rpartition(".")[2]).replace("-", "_").lower()
    match = _KEY.fullmatch(name)
    return match is not None and (match["kind"] or "").rpartition("_")[2] not in _PLAIN_TOKENS


def mask(value: Any, hidden: bool = False) -> Any:
    """Return a copy of plain, possibly nested values in which secrets are `***`.

    True, false, null and empty strings are never masked.

    Args:
        hidden: whether the whole value is a secret because of its key.
    """
    if isinstance(value, Mapping):
        return {key: mask(item, hidden or is_secret(str(key))) for key, item in value.items()}
    if isinstance(value, list | tuple):
        if not hidden and value and all(isinstance(item, str) for item in value):
            return mask_command(value)  # for `--token ...`
        return [mask(item, hidden) for item in value]
    if hidden and _can_be_secret(value):
        return MASK
    return mask_text(value) if isinstance(value, str) else value


def mask_text(text: str, secrets: Collection[str] = ()) -> str:
    """Mask secrets in free text, e.g. an error message.

    Args:
        secrets: the `secret_values` of the configuration, which are masked everywhere.
    """
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, MASK)
    text = _FORMS.sub(MASK, text)
    text = _IN_URL.sub(lambda url: f"{url[1] or url[2]}{MASK}@", text)
    text = _AUTHORIZATION.sub(rf"\1{MASK}", text)
    return _PAIR.sub(_masked_pair, text)


def _masked_pair(pair: re.Match[str]) -> str:
    is_header = pair[1].lower().endswith("authorization")  # _AUTHORIZATION has masked it
    return f"{pair[1]}{pair[2]}{MASK}" if is_secret(pair[1]) and not is_header else pair[0]


def mask_command(arguments: Sequence[str], secrets: Collection[str] = ()) -> list[str]:
    """Mask secrets in a command: in `key=value`, `--flag=value` and `--flag value`.

    Args:
        secrets: the `secret_values` of the configuration, which are masked everywhere.
    """
    masked = []
    flag = ""
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and value and is_secret(key.lstrip("+~-")):
            masked.append(f"{key}={MASK}")
        elif is_secret(flag) and not argument.startswith("-"):
            masked.append(MASK)
        else:
            masked.append(mask_text(argument, secrets))
        flag = argument.lstrip("-") if argument.startswith("-") else ""
    return masked


def secret_values(config: Any) -> frozenset[str]:
    """Return the secrets in a configuration, as text. Secrets shorter than _MIN_LENGTH are left out."""
    return frozenset(text for text in _secrets(config, hidden=False) if len(text) >= _MIN_LENGTH)


def _secrets(value: Any, hidden: bool) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _secrets(item, hidden or is_secret(str(key)))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secrets(item, hidden)
    elif hidden and _can_be_secret(value):
        yield str(value)


def _can_be_secret(value: Any) -> bool:
    return value is not None and value != "" and not isinstance(value, bool)
