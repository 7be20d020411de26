"""What is a secret and what is none, and that nothing of one is left."""

import copy
import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laptime.record.masking import MASK, is_secret, mask, mask_command, mask_text, secret_values

SECRET_KEYS = [
    "password", "passwd", "db_password", "dbPassword", "PASSWORDS", "passphrase", "token", "hf_token", "AUTH_TOKEN",
    "accessToken", "accesstoken", "client_secret", "secret", "secrets", "api_key", "apikey", "API-KEY", "apiKey",
    "x_api_keys", "credential", "credentials", "access_key", "aws_secret_access_key", "AWS_ACCESS_KEY_ID",
    "private_key", "secret_key", "auth", "http_auth", "Authorization", "bearer", "logger.wandb.api_key", "webhook_url",
    "wandb_key", "signing_key", "encryption_key", "storage_key", "subscription_key", "pwd", "pw", "db_pass", "cookie",
    "jwt", "github_pat", "sas_url", "dsn", "auth_header", "connection_string", "secret_key_base", "credentials_json",
]  # fmt: skip
PLAIN_KEYS = [
    "tokenizer", "tokenizer_name", "num_tokens", "max_tokens", "tokens", "tokens_per_s", "token_dropout", "pad_token",
    "class_token", "cls_token", "mask_token", "next_token", "author", "authors", "authority", "secretary", "key",
    "keys", "monkey", "key_dim", "num_keys", "lr", "seed", "passes", "password_file", "model", "root", "", "bypass",
    "sort_by_key", "compass", "path", "patience", "pattern", "num_passes", "dispatch",
]  # fmt: skip
# Fake tokens in the formats that their issuers document.
TOKENS = [
    "ghp_" + "a1B2" * 9, "gho_" + "a1B2" * 9, "github_pat_" + "11AB_cd" * 9, "glpat-" + "aB3-x" * 4,
    "hf_" + "aBcD" * 8 + "eF", "sk-" + "a1B2" * 12, "sk-proj-" + "a1_B2" * 9 + "Z" * 16, "sk-ant-api03-" + "Zz9" * 30,
    "AKIA" + "ABCD" * 4, "ASIA" + "AB12" * 4, "AIza" + "a1_-B" * 7, "xoxb-123456789012-abcdef",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
]  # fmt: skip
PLAIN_TEXTS = [
    "sk-learn", "sk-learn-random-forest-v2", "task-abcdefghijklmnopqrstuvwxyz", "hf_transformers", "ghp_", "eyJ.a.b",
    "AKIA", "https://host:8080/path", "ssh://git@host/path", "torch.nn.Linear", "0123456789abcdef" * 4, "a=b", "lr=0.1",
    "model.tokenizer=bpe", "12:30:45", "C:\\data", "Lightning's author: somebody",
]  # fmt: skip


@pytest.mark.parametrize("key", SECRET_KEYS)
def test_key_names_a_secret(key):
    assert is_secret(key)


@pytest.mark.parametrize("key", PLAIN_KEYS)
def test_key_names_no_secret(key):
    assert not is_secret(key)


@pytest.mark.parametrize("token", TOKENS)
def test_known_formats_are_masked_everywhere(token):
    for text in (token, f"before {token}, after", f"({token})", f"value={token}", f"https://{token}@host"):
        assert token not in mask_text(text) and MASK in mask_text(text)
    assert mask({"name": token, "items": [token]}) == {"name": MASK, "items": [MASK]}


@pytest.mark.parametrize("text", PLAIN_TEXTS)
def test_text_that_only_looks_like_a_secret_is_kept(text):
    assert mask_text(text) == text
    assert mask({"name": text}) == {"name": text}
    assert mask_command(["python", text, "--flag", text]) == ["python", text, "--flag", text]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Authorization: Bearer abcdefghijkl", "Authorization: Bearer ***"),
        ("authorization=Basic dXNlcjpwYXNz, next", "authorization=Basic ***, next"),
        ("{'Authorization': 'abcdefgh'}", "{'Authorization': '***'}"),
        ("sent Bearer abcdefghijkl there", "sent Bearer *** there"),
        ("basic training, Token embeddings, a bearer", "basic training, Token embeddings, a bearer"),
        ("https://abcdef@github.com/x", "https://***@github.com/x"),
        ("http://host:8080/p?x=a@b", "http://host:8080/p?x=a@b"),
        ("git+https://github.com/a/b@main", "git+https://github.com/a/b@main"),
    ],
)
def test_headers_and_urls(text, masked):
    assert mask_text(text) == masked


def test_the_value_of_a_flag_in_a_list_of_a_configuration_is_masked():
    assert mask({"arguments": ["--token", "supersecret", "--n", "3"]}) == {"arguments": ["--token", MASK, "--n", "3"]}


@pytest.mark.parametrize("password", ["hunter2", "p@ss", "a:b", "pa/ss"])
def test_password_in_a_url(password):
    assert mask_text(f"at postgres://me:{password}@host:5432/db") == f"at postgres://me:{MASK}@host:5432/db"


@pytest.mark.parametrize(
    ("value", "expected"),
    [("abc", MASK), (1234, MASK), (0, MASK), (1.5, MASK), (True, True), (False, False), (None, None), ("", "")],
)
def test_values_that_cannot_be_secrets_are_kept(value, expected):
    assert mask({"password": value}) == {"password": expected}


def test_everything_below_a_secret_key_is_masked():
    assert mask({"auth": {"user": "me", "pins": [12, "34"]}, "b": 1}) == {
        "auth": {"user": MASK, "pins": [MASK] * 2},
        "b": 1,
    }


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("logger.wandb.api_key=hunter2", f"logger.wandb.api_key={MASK}"),
        ("+x.password=hunter2 with spaces", f"+x.password={MASK}"),
        ("++x.token=hunter2,hunter2b", f"++x.token={MASK}"),
        ("--api-key=hunter2", f"--api-key={MASK}"),
        ("+logger.w={_target_:a.B,api_key:hunter2,c:1}", "+logger.w={_target_:a.B,api_key:***,c:1}"),
        ("+logger.w={api_key: 'hunter2 b', c: 1}", "+logger.w={api_key: ***, c: 1}"),
        ("x.url=https://me:hunter2@host/a", f"x.url=https://me:{MASK}@host/a"),
        ("x.url=https://host/a?id=1&token=hunter2&b=2", f"x.url=https://host/a?id=1&token={MASK}&b=2"),
    ],
)
def test_secrets_in_a_command_are_masked(argument, expected):
    assert mask_command(["python", "train.py", argument, "seed=1"]) == ["python", "train.py", expected, "seed=1"]


def test_the_value_after_its_flag_is_masked():
    assert mask_command(["a", "--password", "hunter2", "-m"]) == ["a", "--password", MASK, "-m"]
    assert mask_command(["a", "--token", "--other", "b"]) == ["a", "--token", "--other", "b"]


def test_values_of_secret_keys_are_masked_in_free_text():
    secrets = secret_values(
        {"logger": {"w": {"api_key": "correct horse, battery", "url": "u"}}, "auth": ["longer than"]}
    )
    assert secrets == {"correct horse, battery", "longer than"}
    text = mask_text("TypeError: 401 for correct horse, battery (longer than)", secrets)
    assert text == f"TypeError: 401 for {MASK} ({MASK})"


def test_short_secrets_are_not_masked_in_free_text():
    assert secret_values({"password": "mlp"}) == set()


SECRETS = st.text(string.ascii_letters + string.digits + "!#%+-_", min_size=8, max_size=40).map(
    lambda text: f"Q{text}Z"
)
PLAIN = st.sampled_from(["lr", "name", "num_tokens", "tokenizer", "author", "hidden_sizes"])
VALUES = st.none() | st.booleans() | st.integers() | st.sampled_from(["mnist", "laptime.models.mlp.MLP", ""])
PLAIN_CONFIGS = st.recursive(
    st.dictionaries(PLAIN, VALUES),
    lambda inner: st.dictionaries(PLAIN, inner | st.lists(VALUES, max_size=3)),
    max_leaves=8,
)


@given(PLAIN_CONFIGS)
def test_a_configuration_without_secrets_is_unchanged(config):
    assert mask(config) == config


@given(PLAIN_CONFIGS, st.sampled_from(SECRET_KEYS), SECRETS)
def test_a_secret_is_masked_completely_and_nothing_else_is(config, key, secret):
    whole = {**config, "inner": {key: secret, "list": [{key: [secret]}]}}
    before = copy.deepcopy(whole)
    masked = mask(whole)
    assert secret not in json.dumps(masked) and whole == before
    assert {name: value for name, value in masked.items() if name != "inner"} == config
    assert mask(masked) == masked


@given(st.sampled_from(SECRET_KEYS), SECRETS, SECRETS)
def test_configurations_that_differ_in_a_secret_are_equal_when_masked(key, one, other):
    assert mask({"a": {key: one}}) == mask({"a": {key: other}})


@given(st.text(max_size=60), SECRETS, st.text(max_size=60))
def test_a_known_secret_is_masked_in_any_text(before, secret, after):
    masked = mask_text(before + secret + after, secret_values({"password": secret}))
    assert secret not in masked
    assert mask_text(masked) == masked


@given(st.sampled_from(SECRET_KEYS), SECRETS)
def test_a_secret_is_masked_in_every_form_of_an_override(key, secret):
    for arguments in ([f"{key}={secret}"], [f"+a.{key}={secret}"], [f"--{key}", secret], [f"--{key}={secret}"]):
        assert secret not in " ".join(mask_command(arguments))
