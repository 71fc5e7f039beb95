"""CONTRIBUTING.md's examples, as a package from outside: written from the diffs, found by entry points, held to the
contracts, and searched with."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from models import bert, write_texts

import autopeft
from autopeft import plugins, testing
from autopeft.errors import Refused
from autopeft.naming import describe
from autopeft.trial import Status

CONTRIBUTING = Path(__file__).resolve().parent.parent / "CONTRIBUTING.md"
DIFF = re.compile(r"```diff\n--- /dev/null\n\+\+\+ b/(\S+)\n@@\n(.*?)```", re.DOTALL)
CACHES = (plugins.names, plugins.entry_points, plugins._ours)
SUBJECTS = {subject.name: subject for subject in testing.method_subjects()}


def examples() -> dict[str, str]:
    """File → its content, of every diff of the document."""
    text = CONTRIBUTING.read_text(encoding="utf-8")
    assert text.count("```diff") == len(DIFF.findall(text)), "each diff makes a file from nothing"
    return {name: "".join(line[1:] for line in lines.splitlines(keepends=True)) for name, lines in DIFF.findall(text)}


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The package on the path, with its metadata, as pip leaves it there."""
    site = tmp_path_factory.mktemp("site")
    for name, content in examples().items():
        (site / name).parent.mkdir(exist_ok=True)
        (site / name).write_text(content, encoding="utf-8")
    (site / "theirs" / "__init__.py").touch()
    project = tomllib.loads((site / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{name} = {at}\n" for name, at in points.items()) for group, points in groups]
    (info / "entry_points.txt").write_text("\n".join(lines))
    sys.path.insert(0, str(site))
    for cache in CACHES:
        cache.cache_clear()
    yield site
    sys.path.remove(str(site))
    for cache in CACHES:
        cache.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "theirs"]:
        del sys.modules[name]


@pytest.mark.parametrize("check", testing.METHOD_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("subject", ["bert", "vit"])
def test_the_method_keeps_its_contract(check, subject):
    check("shift", SUBJECTS[subject])


def test_the_method_is_refused_where_it_cannot_act():
    with pytest.raises(Refused, match="no linear layer"):
        testing.check_method_count_is_exact("shift", SUBJECTS["mobilenet"])


def test_the_method_has_a_name_and_stands_twice_in_a_recipe():
    from autopeft.training.recipe import count

    params = {"method": "shift@low+shift@high", "shift@low.layers": "first_1", "shift@high.layers": "1-2"}
    assert describe(params, 3) == "shift in the first layer + shift in layers 1–2"
    bert_ = SUBJECTS["bert"]
    assert count(bert_.meta, bert_.view, params) == count(bert_.meta, bert_.view, {"method": "shift"})
    both = count(bert_.meta, bert_.view, {"method": "shift@a+shift@b"})["adapter_parameters"]
    assert both == 2 * count(bert_.meta, bert_.view, {"method": "shift"})["adapter_parameters"]


def test_the_sampler_keeps_its_contract():
    testing.check_sampler(plugins.load("samplers", "nearby"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(folder of a model, CSV with labels, CSV with numbers)."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "model").mkdir()
    labels = write_texts(folder / "labels.csv", 120)
    rows = labels.read_text().splitlines()[1:]
    numbers = folder / "numbers.csv"
    numbers.write_text(
        "\n".join(["text,stars", *(row.replace("positive", "5").replace("negative", "1") for row in rows)])
    )
    return bert(folder / "model"), str(labels), str(numbers)


def task_subject(name, data):
    model, labels, numbers = data
    shares = {"validation_share": 0.2, "test_share": 0.2}
    if name == "text_score":
        return testing.TaskSubject(name, {"train": numbers, "text": "text", "score": "stars", **shares}, model)
    return testing.TaskSubject(name, {"train": labels, "text": "text", "label": "label", **shares}, model)


@pytest.mark.parametrize("check", testing.TASK_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ["worst_class", "text_score"])
def test_the_tasks_keep_their_contract(check, name, data):
    check(task_subject(name, data))


@pytest.mark.parametrize(("task", "metric"), [("text_score", "mae"), ("worst_class", "worst_recall")])
def test_a_search_with_all_of_them(task, metric, data, tmp_path, installed, monkeypatch):
    """By names in a config: its own method, sampler, task and metric; then exported and predicted with."""
    subject = task_subject(task, data)
    config = {
        "model": subject.model,
        "task": task,
        "data": dict(subject.data),
        "space": {
            "method": ["head", "shift", "shift@low+shift@high"],
            "shift": {"layers": {"choice": ["all", "first_1"], "default": "all"}, "lr": 1e-2},
            "shift@low": {"layers": "first_1"},
            "shift@high": {"layers": "last_1", "lr": {"float": [1e-3, 1e-1], "log": True, "default": 1e-2}},
        },
        "training": {"epochs": 2, "batch_size": 16},
        "sampler": "nearby",
        "executor": "serial",
        "trackers": [],
        "budget": {"trials": 5},
        "runs": str(tmp_path / "runs"),
    }
    run = autopeft.run(config)
    assert run.history.objectives[0].metric == metric
    complete = [record for record in run.history.records if record.status is Status.COMPLETE]
    assert [r.error for r in run.history.records if r.status in (Status.FAILED, Status.OUT_OF_MEMORY)] == []
    assert {"shift", "shift@low+shift@high"} <= {record.params["method"] for record in complete}
    assert all(metric in record.metrics for record in complete)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(installed), *sys.path]))  # of the process that verifies it
    number = next(record.number for record in complete if record.params["method"] == "shift@low+shift@high")
    run.export(f"trial={number}", to=tmp_path / "adapter")
    predicted = autopeft.load(tmp_path / "adapter").predict({"text": ["a fine day", "a dull film"]})
    assert predicted.columns[0] == ("score" if task == "text_score" else "label")
