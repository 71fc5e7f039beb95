"""What a tracker must not show, and what it must leave alone."""

import pytest

from autopeft import redact
from autopeft.redact import Redactor

CONFIG = {
    "model": {"path": "org/model", "hub_token": "canary-in-model"},
    "trackers": [{"name": "mlflow", "uri": "https://me:canary-in-uri@host:5000/x"}],
    "api_key": "canary-key",
    "space": {"lora.rank.key": 4, "key": {"int": [1, 8]}, "modules": ["query", "key"]},
}


def test_data_keeps_its_keys_and_loses_its_secrets():
    shown = Redactor().data(CONFIG)
    assert shown["model"] == {"path": "org/model", "hub_token": "***"}
    assert shown["trackers"][0]["uri"] == "https://***@host:5000/x"
    assert shown["api_key"] == "***"
    assert shown["space"] == CONFIG["space"], "an attention's key is no secret"


def test_known_secrets_are_masked_wherever_they_stand():
    redactor = Redactor.of(CONFIG)
    text = redactor.text("<script>f('canary-in-model')</script> canary-in-uri canary-key")
    assert "canary" not in text
    assert text.startswith("<script>f('***')</script>"), "the syntax around it stays"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see hf_AbCdEfGhIjKl", "see ***"),
        ("postgresql+psycopg://u:p@db:5432/x", "postgresql+psycopg://***@db:5432/x"),
        ("http://token@host/", "http://***@host/"),
        ("https://host/a@b", "https://host/a@b"),
        ("mail me@host", "mail me@host"),
        ("hf_ is a prefix", "hf_ is a prefix"),
        ("LoRA on key and value: rank 8", "LoRA on key and value: rank 8"),
    ],
)
def test_texts(text, expected):
    assert Redactor().text(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("login failed: password=abc&x=1", "login failed: password=***&x=1"),
        ("{'token': 'abc'}", "{'token': ***}"),
        ("KeyError: 'query'", "KeyError: 'query'"),
    ],
)
def test_messages_of_libraries(text, expected):
    assert Redactor().message(text) == expected


def test_a_short_secret_does_not_eat_words():
    assert Redactor.of({"token": "a"}).text("a rank") == "a rank"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/alice/data", "~/data"),
        ("in /Users/alice.", "in ~"),
        ('{"a": "C:\\\\Users\\\\bob\\\\x"}', '{"a": "~\\\\x"}'),
        ("file:///home/alice/x", "file://~/x"),
        ("sqlite:////home/alice/mlflow.db", "sqlite:///~/mlflow.db"),
        ("my/home/page", "my/home/page"),
        ("https://host/users/x", "https://host/users/x"),
    ],
)
def test_home_folders_are_nobody_s(text, expected):
    assert Redactor().text(text) == expected
    assert Redactor().secret(text) == text


def test_the_home_of_this_user_wherever_it_is(monkeypatch):
    monkeypatch.setenv("HOME", "/data/people/alice")
    redact._homes.cache_clear()
    assert Redactor().text("/data/people/alice/x, /data/people/alice2/x") == "~/x, /data/people/alice2/x"
    redact._homes.cache_clear()


def test_params_are_no_secrets_by_their_name():
    assert Redactor().texts({"lora.init.key": "gaussian"}) == {"lora.init.key": "gaussian"}
