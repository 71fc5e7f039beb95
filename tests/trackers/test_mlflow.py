"""A search in a real MLflow store: written live, filled from the ledger, gone on with; each way the same."""

import contextlib
import json
import os
import shutil
import sqlite3
import threading
from collections import Counter
from pathlib import Path

import pytest

from autopeft.errors import EnvironmentFault, UsageError
from autopeft.history import History
from autopeft.trackers import _store
from autopeft.trackers.mlflow import MLflow
from tests.reports import histories as h
from tests.trackers.stores import follow, note, run_folder, runs

NOTHING = {"runs": 0, "params": 0, "metrics": 0, "tags": 0, "artifacts": 0}
CANARY = "canary-Zq7Xw2"
PICTURE = b"\x89PNG the front"


def artifacts(history, folder):
    """What the app gives, in small."""
    front = [record.number for record in history.front()]
    (folder / "front.png").write_bytes(PICTURE)
    (folder / "front.json").write_text(json.dumps({"verdict": f"The front is {front}.", "front": front}))
    (folder / "report.html").write_text(f"<p>{history.config.get('note', '')}</p>")
    return {
        "00_pareto/pareto.png": folder / "front.png",
        "00_pareto/pareto.json": folder / "front.json",
        "00_pareto/pareto.html": folder / "report.html",
    }


def tracker(folder, **options):
    return MLflow(folder, **{"describe": h.describe, "artifacts": artifacts, "finish_seconds": 280, **options})


def uri(folder):
    return f"sqlite:///{folder.parent / 'mlflow.db'}"


def rows(folder):
    """How many rows each table of the store has."""
    with sqlite3.connect(folder.parent / "mlflow.db") as store:
        return {
            table: store.execute(f"select count(*) from {table}").fetchone()[0]
            for table in ("runs", "metrics", "params", "tags", "experiments", "experiment_tags")
        }


def test_filled_once_it_is_whole_and_twice_it_is_the_same(tmp_path):
    folder = run_folder(tmp_path)
    history = History(h.confirmed(h.search(24), seeds=1))
    first = tracker(folder).fill(history)
    found, before = runs(uri(folder)), rows(folder)
    roles = [run["tags"]["autopeft.role"] for run in found.values()]
    assert roles.count("search") == 1
    assert roles.count("trial") == len(history.trials)
    assert roles.count("replicate") == len(history.confirmations)
    assert first["runs"] == len(found)
    assert first["metrics"] == sum(len(run["points"]) for run in found.values())
    parent = "search-tpe-01234567"
    assert all(run["tags"]["mlflow.parentRunId"] == parent for name, run in found.items() if name != parent)
    assert note(uri(folder), parent).splitlines()[2] == f"The front is {[r.number for r in history.front()]}."

    assert tracker(folder).fill(history) == NOTHING
    assert (rows(folder), runs(uri(folder))) == (before, found)


def test_live_and_filled_are_the_same(tmp_path):
    events = h.search(14)
    live, filled = run_folder(tmp_path / "live"), run_folder(tmp_path / "filled")
    assert not follow(tracker(live), events).records[-1].told_seconds
    tracker(filled).fill(History(events))
    assert runs(uri(live)) == runs(uri(filled))
    assert tracker(live).fill(History(events)) == NOTHING


def test_gone_on_with_after_the_driver_died(tmp_path):
    """The trial that was running when it died runs again: same values, later. Each point is there once."""
    events = h.search(8)
    cut = 1 + max(index for index, event in enumerate(events) if event["event"] == "report" and event["number"] == 4)
    number = 4
    rerun = [dict(event, seconds=event["seconds"] + 60) for event in events[cut - 2 : cut]]
    assert {event["number"] for event in rerun} == {number}
    whole = [*events[:cut], {"event": "rerun", "number": number, "seconds": 60.0}, *rerun,
             *(dict(event, seconds=event["seconds"] + 60) for event in events[cut:])]  # fmt: skip
    folder = run_folder(tmp_path)
    follow(tracker(folder), whole[:cut])
    interrupted = runs(uri(folder))
    name = next(name for name in interrupted if name.startswith("trial-004"))
    assert interrupted[name]["status"] == "KILLED"
    assert interrupted["search-tpe-01234567"]["tags"]["autopeft.state"] == "interrupted"

    follow(tracker(folder), whole, start=cut)
    found, expected = runs(uri(folder)), run_folder(tmp_path / "uninterrupted")
    tracker(expected).fill(History(whole))
    wanted = runs(uri(expected))
    assert found.keys() == wanted.keys()
    for run in found:
        assert [point[:3] for point in found[run]["points"]] == [point[:3] for point in wanted[run]["points"]]
        found[run].pop("points"), wanted[run].pop("points")
    assert found == wanted
    assert tracker(folder).fill(History(whole)) == NOTHING


def test_a_larger_budget_leaves_params_as_they_were(tmp_path):
    """MLflow refuses another value for a param; what is meant now stands in a tag."""
    folder, events = run_folder(tmp_path), h.search(4)
    tracker(folder).fill(History(events))
    config = {**events[0]["config"], "budget": {"trials": 60}}
    resumed = History([*events, {"event": "resume", "config": config, "changes": {}, "seconds": 9.0}])
    assert tracker(folder).fill(resumed)["params"] == 0
    parent = runs(uri(folder))["search-tpe-01234567"]
    assert parent["params"]["budget"] == "trials 40"
    assert parent["tags"]["autopeft.budget"] == "trials 60"


def test_no_secret_leaves(tmp_path, capsys, monkeypatch):
    folder = run_folder(tmp_path)
    monkeypatch.setenv("HF_TOKEN", f"hf_{CANARY.replace('-', '')}env")
    hf = "hf_" + "Canary7Xw2Zq"
    events = h.search(6)
    events[0]["config"] = {
        **events[0]["config"],
        "note": f"{CANARY} {hf}",
        "model": {"path": f"https://me:{CANARY}@host/model", "token": CANARY},
        "data": {"train": "train.csv", "api_key": CANARY},
    }
    events[0]["dataset"] = {**events[0]["dataset"], "origin": {"hub": f"https://me:{CANARY}@host/data"}}
    events[1]["params"] = {**events[1]["params"], "hub_token": CANARY}
    events[4] = h.tell(0, {}, "FAILED", f"cannot load https://me:{CANARY}@host: token={CANARY}, {hf}")
    follow(tracker(folder, describe=lambda params: f"{params['method']} {CANARY}"), events)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sum("config.resolved.yaml" in path.name for path in files) == 1
    for path in files:
        assert CANARY.encode() not in path.read_bytes(), path
        assert hf.encode() not in path.read_bytes(), path
    out, err = capsys.readouterr()
    assert CANARY not in out + err
    assert "token: '***'" in next(path for path in files if path.name == "config.resolved.yaml").read_text()


def test_artifacts_are_logged_once_and_again_when_they_change(tmp_path):
    folder = run_folder(tmp_path)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    asked = []

    def adapters(record):
        asked.append(record.number)
        return adapter if record.number == history.front()[0].number else None

    history = History(h.search(12)[:-1])
    assert tracker(folder, adapters=adapters).fill(history)["artifacts"] == 3 + 1 + 2
    assert asked == [record.number for record in history.front()], "front members only"
    (root,) = (folder.parent / "mlartifacts").iterdir()
    logged = sorted(str(Path(*path.relative_to(root).parts[2:])) for path in root.rglob("*") if path.is_file())
    assert logged == sorted([
        "00_pareto/pareto.png", "00_pareto/pareto.json", "00_pareto/pareto.html", "config.resolved.yaml",
        "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
    ])  # fmt: skip
    (picture,) = root.rglob("pareto.png")
    assert picture.read_bytes() == PICTURE
    (adapter / "adapter_model.safetensors").write_bytes(b"other weights")
    assert tracker(folder, adapters=adapters).fill(history)["artifacts"] == 1
    assert tracker(folder, adapters=adapters).fill(history) == NOTHING


def test_the_front_is_drawn_while_the_search_runs(tmp_path, monkeypatch):
    """From the thread's own fold: what it sees does not change under it."""
    monkeypatch.setattr("autopeft.trackers.mlflow.PERIOD_SECONDS", 0.05)
    monkeypatch.setattr("autopeft.trackers.mlflow.FIRST_SHOW_SECONDS", 0.0)
    folder, events, drawn = run_folder(tmp_path), h.search(30), threading.Event()

    def draw(history, target):
        if history is not live and not drawn.is_set() and len(history.front()) >= 1:
            drawn.set()
        return artifacts(history, target)

    live = History(events[:1])
    following = tracker(folder, artifacts=draw, show_every=5)
    following.start(live)
    for event in events[1:]:
        live.apply(event)
        following.handle(event)
    assert drawn.wait(300)
    following.finish()
    assert not following.is_behind


def test_a_trial_costs_three_calls(tmp_path, monkeypatch):
    """One makes its run, one logs all its metrics, params and tags, one ends it; a server gets as many requests."""
    from mlflow import MlflowClient

    calls = Counter()
    for name, call in vars(MlflowClient).items():
        if callable(call) and not name.startswith("_"):

            def counted(self, *args, _name=name, _call=call, **kwargs):
                calls[_name] += 1
                return _call(self, *args, **kwargs)

            monkeypatch.setattr(MlflowClient, name, counted)
    history = History(h.search(24))
    tracker(run_folder(tmp_path), artifacts=None).fill(history)
    trials = len(history.trials)
    assert calls["create_run"] == 1 + trials
    assert calls["set_terminated"] == 1 + trials
    assert calls["log_batch"] <= 2 + trials
    assert calls.total() - 3 * trials <= 15, calls


@pytest.mark.parametrize("is_last_answered", [True, False])
def test_a_lost_answer_makes_no_twin(tmp_path, monkeypatch, is_last_answered):
    """MLflow's client repeats a request whose answer is lost, and the server makes a run each time."""
    from mlflow import MlflowClient

    create, made = MlflowClient.create_run, []

    def repeated(self, *args, **kwargs):
        made.append(create(self, *args, **kwargs))
        if len(made) in (1, 5):  # the search's own run, and a trial's
            made.append(create(self, *args, **kwargs))
            if not is_last_answered:
                raise ConnectionError("no answer")
        return made[-1]

    folder, history = run_folder(tmp_path), History(h.search(8))
    monkeypatch.setattr(MlflowClient, "create_run", repeated)
    for _ in range(1 if is_last_answered else 2):
        with contextlib.nullcontext() if is_last_answered else pytest.raises(EnvironmentFault, match="no answer"):
            tracker(folder).fill(history)
    if not is_last_answered:
        tracker(folder).fill(history)
    found = runs(uri(folder))
    assert len(made) == len(found) + 2
    assert {run["tags"].get("mlflow.parentRunId") for run in found.values()} == {None, "search-tpe-01234567"}
    assert tracker(folder).fill(history) == NOTHING


def test_many_points_and_params_go_in_several_calls(tmp_path):
    folder, events = run_folder(tmp_path), [h.header()]
    params = {"method": "lora", **{f"lora.rank.part{n}": n for n in range(250)}}
    events += [h.ask(0, params, 10.0), *(h.report(0, n, train_loss=1 / n) for n in range(1, 2000))]
    history = History(events)
    assert tracker(folder, artifacts=None).fill(history)["metrics"] >= 1999
    (trial,) = (run for name, run in runs(uri(folder)).items() if name.startswith("trial"))
    assert len(trial["params"]) == 252
    assert len([point for point in trial["points"] if point[0] == "train/loss"]) == 1999
    assert tracker(folder, artifacts=None).fill(history) == NOTHING


def test_a_deleted_experiment_is_explained(tmp_path):
    from mlflow import MlflowClient

    folder, history = run_folder(tmp_path), History(h.search(2))
    client = MlflowClient(tracking_uri=uri(folder))
    client.delete_experiment(client.create_experiment("mine"))
    with pytest.raises(UsageError, match=r"was deleted.*mlflow experiments restore"):
        tracker(folder, experiment="mine").fill(history)


def test_two_never_write_one_search(tmp_path):
    folder = run_folder(tmp_path)
    with _store.sole_writer(folder), pytest.raises(UsageError, match="another process"):
        tracker(folder).fill(History(h.search(2)))


def test_uris(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "runs" / "a"
    monkeypatch.chdir(tmp_path)
    default = f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert _store.tracking_uri(None, folder) == default
    assert _store.tracking_uri(None, Path("runs/a")) == default
    assert _store.tracking_uri("sqlite:///x.db", folder) == f"sqlite:///{tmp_path}/x.db"
    assert _store.tracking_uri("http://host:5000", folder) == "http://host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other")
    assert _store.tracking_uri(None, folder) == "http://other"
    assert _store.tracking_uri("http://host:5000", folder) == "http://host:5000"


@pytest.mark.parametrize("name", ["exp #3 (100%)?", "50%20off", "a?b=c&d"])
def test_a_folder_of_any_name_holds_its_own_database(tmp_path, name):
    folder = tmp_path / name / "runs" / "demo-1"
    folder.mkdir(parents=True)
    shutil.copyfile(run_folder(tmp_path / "plain").parent / "mlflow.db", folder.parent / "mlflow.db")
    address = _store.tracking_uri(None, folder)
    assert _store.sqlite_path(address) == folder.parent / "mlflow.db"
    assert _store.tracking_uri(address, folder) == address
    tracker(folder).fill(History(h.search(3)))
    assert len(runs(address)) == 4
    assert {path.name for path in tmp_path.iterdir()} == {name, "plain"}
    assert (folder.parent / "mlartifacts").is_dir()


def test_a_working_folder_of_any_name_has_tables_made_in_it(tmp_path, monkeypatch):
    """MLflow writes the place of its first experiment into a statement; by default that is in the working folder."""
    folder = tmp_path / 'it\'s "a":b' / "runs" / "demo-1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder.parent.parent)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv(_store.ARTIFACT_ROOT, raising=False)
    tracker(folder).fill(History(h.search(2)))
    assert len(runs(_store.tracking_uri(None, folder))) == 3
    assert _store.ARTIFACT_ROOT not in os.environ


def test_a_question_mark_is_refused_where_sqlalchemy_cannot_say_it(tmp_path, monkeypatch):
    monkeypatch.setattr(_store, "_is_unquoted", lambda: False)
    with pytest.raises(UsageError, match=r"cannot keep its database at .*a\?b/mlflow.db"):
        _store.tracking_uri(None, tmp_path / "a?b" / "demo-1")
    assert _store.tracking_uri(None, Path("/a%b/demo-1")) == "sqlite:////a%b/mlflow.db"


def test_the_command_opens_this_search(tmp_path, monkeypatch):
    folder, history = run_folder(tmp_path / "a b"), History(h.search(3))
    tracker(folder).fill(history)
    command = MLflow(folder).open_command(history)
    assert f"mlflow ui --backend-store-uri 'sqlite:///{folder.parent}/mlflow.db'" in command
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri(folder))
    experiment = client.get_experiment_by_name("autopeft/text_classification/mini").experiment_id
    run = client.search_runs([experiment], "tags.`autopeft.role` = 'search'")[0].info.run_id
    assert command.endswith(f"/#/experiments/{experiment}/runs/{run}?workflowType=machine_learning")


def test_the_command_of_a_server_that_is_down_is_its_address(tmp_path):
    command = MLflow(tmp_path / "a", uri=f"http://me:{CANARY}@127.0.0.1:1").open_command(History(h.search(1)))
    assert command == "http://127.0.0.1:1/#/experiments?workflowType=machine_learning"


def test_what_requests_import_is_there_before_the_thread_begins(tmp_path, monkeypatch):
    """Half imported in that thread, IPython ended a search whose front was being drawn."""
    asked = []
    monkeypatch.setattr(_store, "import_module", asked.append)
    _store.import_mlflow(f"sqlite:///{tmp_path}/x.db")
    assert asked == []
    _store.import_mlflow("http://127.0.0.1:9")
    assert asked == ["IPython"]

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(_store, "import_module", missing)
    _store.import_mlflow("https://127.0.0.1:9")
