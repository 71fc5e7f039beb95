"""Row "secrets in logs": planted secrets are in nothing that a search, or what follows it, writes or shows."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from autopeft import config
from autopeft.errors import ConfigError
from autopeft.redact import Redactor, printable, shareable
from tests.security.stranger import call, write_rows, write_search

PLANTED = {
    "HF_TOKEN": "hf_CanaryHub7Xw2Zq9",
    "MLFLOW_TRACKING_USERNAME": "somebody",
    "MLFLOW_TRACKING_PASSWORD": "canary-mlflow-Zq7Xw2",
    "RAY_AUTH_TOKEN": "canaryray" * 7,
    "AWS_SECRET_ACCESS_KEY": "canary/aws+Zq7Xw2",
    "PGPASSWORD": "canary-postgres-Zq7",
    "DATABASE_URL": "postgresql://me:canary%2Durl%2DZq7@127.0.0.1/x",
}
SECRETS = [*(value for name, value in PLANTED.items() if name.endswith(("TOKEN", "PASSWORD", "KEY"))),
           "canary%2Durl%2DZq7", "canary-url-Zq7"]  # fmt: skip
# A metric that fails once, after the baseline and a trial, with all that a library could put into its message.
SCORES = """
import os
calls = []
def cost(predicted, expected):
    calls.append(1)
    if len(calls) == 3:
        url = os.environ["DATABASE_URL"].replace("%2D", "-")
        raise ConnectionError(f"cannot reach {url}: {dict(os.environ)}")
    return 1.0
"""


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """The folder of a search with the secrets planted, and all that the commands printed."""
    folder = tmp_path_factory.mktemp("secrets")
    write_rows(folder / "rows.csv")
    (folder / "scores.py").write_text(SCORES)
    write_search(
        folder, metrics={"cost": "scores.py:cost"}, trackers=["console", "mlflow"], budget={"trials": 3},
        space={"method": ["head"], "head": {"lr": {"float": [1e-3, 1.0], "default": 1e-2}}},
    )  # fmt: skip
    said = []
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PLANTED.items():
            patch.setenv(name, value)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        run = "runs/r"
        for words in (
            ("check", "my.yaml"),
            ("search", "my.yaml", "--name", "r"),
            ("trials", run),
            ("front", run, "--json"),
            ("report", run),
            ("leaderboard", run, "--output", "board.md"),
            ("confirm", run, "--seeds", "1", "--pick", "best"),
            ("track", run),
            ("export", run, "--pick", "best", "--to", "out"),
            ("watch", run),
            ("doctor",),
            ("predict", "out", "rows.csv", "--output", "answers.csv"),
        ):
            code, text = call(*words, cwd=folder)
            assert code == 0, text
            said.append(text)
    return folder, "\n".join(said)


def test_the_secrets_were_on_their_way(searched):
    """The failed trial's error had all of them."""
    folder, said = searched
    ledger = (folder / "runs" / "r" / "ledger.jsonl").read_text()
    for text in (ledger, said, (folder / "runs" / "r" / "report.md").read_text().replace("\\", "")):
        assert "cannot reach postgresql://***@127.0.0.1/x" in text
    assert "'MLFLOW_TRACKING_PASSWORD': '***'" in ledger


def test_no_secret_is_in_a_file_of_a_search(searched):
    """Ledger, config, reports, pictures, cards, MLflow's database and artifacts, caches, exports."""
    folder, _ = searched
    files = [path for path in folder.rglob("*") if path.is_file() and path.parts[-2] != "model"]
    names = {path.name for path in files}
    assert {"ledger.jsonl", "config.yaml", "report.html", "report.md", "mlflow.db", "front.png", "README.md", "board.md",
            "answers.csv", "config.resolved.yaml"} <= names  # fmt: skip
    for path in files:
        data = path.read_bytes()
        data += gzip.decompress(data) if path.suffix == ".gz" else b""
        assert not [secret for secret in SECRETS if secret.encode() in data], path


def test_no_secret_is_in_what_a_search_prints(searched):
    _, said = searched
    assert not [secret for secret in SECRETS if secret in said]


CANARY = "canary-Zq7Xw2-secret"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trackers.1.uri", f"http://me:{CANARY}@127.0.0.1:5000"),
        ("trackers.1.uri", f"postgresql+psycopg://me:{CANARY}@127.0.0.1/x"),
        ("model.path", f"https://me:{CANARY}@host/model"),
        ("model.revision", "hf_CanaryHub7Xw2Zq9"),
        ("data.hub_token", CANARY),
        ("task.api_key", CANARY),
        ("executor.password", CANARY),
    ],
)
def test_a_secret_in_a_config_is_refused_and_kept_nowhere(tmp_path, key, value):
    write_rows(tmp_path / "rows.csv")
    path = write_search(tmp_path, trackers=["console", {"name": "mlflow"}])
    for words in (("check", path), ("search", path)):
        code, said = call(*words, "--set", f"{key}={value}", cwd=tmp_path)
        assert code == 2
        assert f"{key}: holds a secret, which the run's files would keep: put it into the environment" in said
        assert CANARY not in said
        assert "hf_Canary" not in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "value", ["http://me@127.0.0.1:5000", "sqlite:///x.db", "https://host/a:b@c", "runs/token", "tokens", "my-key"]
)
def test_what_is_no_secret_in_a_config(tmp_path, value):
    write_rows(tmp_path / "rows.csv")
    path = write_search(tmp_path)
    config.load(path, [f"runs={value}", "data.text=text"])


def test_a_run_of_an_earlier_version_with_a_secret_goes_on(tmp_path):
    """It was written before configs with secrets were refused; its views mask it."""
    write_rows(tmp_path / "rows.csv")
    path = write_search(tmp_path)
    resolved = config.resolve(config.load(path))
    uri = f"http://me:{CANARY}@127.0.0.1:5000"
    resolved["trackers"] = [{"name": "mlflow", "uri": uri}]
    assert config.from_resolved(resolved, ["budget.trials=9"]).trackers[0].options["uri"] == uri
    with pytest.raises(ConfigError, match=r"trackers\.0\.uri: holds a secret"):
        config.from_resolved(resolved, [f"trackers.0.uri={uri}"])


def test_the_environment_s_secrets_are_masked_wherever_they_stand(monkeypatch):
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    text = " ".join(SECRETS)
    assert "anary" not in shareable(text)
    assert "anary" not in Redactor.of({"seed": 0}).text(text)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "tokenizers")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(Path("/run/secrets/token")))
    assert Redactor.of(None).text("tokenizers /run/secrets/token tokens") == "tokenizers /run/secrets/token tokens"


def test_tokens_of_a_text_are_no_secret():
    """`data.tokens` names a column."""
    resolved = {"data": {"tokens": "tokens", "tags": "ner_tags"}, "task": {"new_tokens": 64}}
    assert Redactor().data(resolved) == resolved
    assert Redactor.of(resolved).text("of tokens") == "of tokens"


def test_nothing_that_is_printed_steers_the_terminal():
    assert printable("a\x1b]0;b\x07\x9bc\u202ed\r\n\te") == "a?]0;b??c?d?\n\te".replace(
        "?", "\N{REPLACEMENT CHARACTER}"
    )
