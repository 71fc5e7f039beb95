"""An export whose base is here is loaded and used without the network; one whose base is not asks for it."""

from __future__ import annotations

import socket

import pytest
import transformers
from huggingface_hub import constants
from models import bert

from autopeft.errors import EnvironmentFault
from autopeft.training.offline import from_disk_first


@pytest.fixture
def asked(monkeypatch):
    """Addresses that something connects to, the hub's switches off. Nothing answers."""
    seen = []

    def connect(self, address):
        seen.append(address)
        raise ConnectionRefusedError("nobody here")

    def resolve(host, *_, **__):
        seen.append(host)
        raise socket.gaierror("no name service here")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return seen


def test_a_folder_is_read_without_the_network(tmp_path, asked):
    model = bert(tmp_path)
    for reader in (
        transformers.AutoConfig,
        transformers.AutoTokenizer,
        transformers.AutoModelForSequenceClassification,
    ):
        assert from_disk_first(model, None, lambda reader=reader: reader.from_pretrained(model)) is not None
    assert asked == []
    assert constants.HF_HUB_OFFLINE is False, "as it was before"


@pytest.mark.parametrize(
    ("model", "revision", "expected"), [("me/base", "c0ffee", [True, False]), ("me/base", None, [False])]
)
def test_what_is_not_here_is_asked_for(asked, model, revision, expected):
    seen = []

    def call():
        seen.append(constants.HF_HUB_OFFLINE)
        if constants.HF_HUB_OFFLINE:
            raise EnvironmentFault("not in the cache")
        return "found"

    assert from_disk_first(model, revision, call) == "found"
    assert seen == expected


def test_other_errors_are_not_tried_twice(tmp_path):
    calls = []

    def call():
        calls.append(1)
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        from_disk_first(str(tmp_path), None, call)
    assert calls == [1]
