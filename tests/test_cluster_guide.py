"""CLUSTER.md: its scripts and YAML can be read, and its configs hold what they may. What it shows is not run here."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from ruamel.yaml import YAML

from autopeft.executors.ray_tune import RayTune
from tests.test_readme import PROJECT

GUIDE = (PROJECT / "CLUSTER.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("script", blocks("sh"))
def test_shell_can_be_parsed(script):
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_configs_make_an_executor():
    configs = [content for block in blocks("yaml") if "executor" in (content := YAML(typ="safe").load(block))]
    assert len(configs) == 3
    for content in configs:
        assert content.keys() <= {"executor", "training"}
        options = dict(content["executor"])
        assert options.pop("name") == "ray_tune"
        assert RayTune(**options).address


def test_keys_of_the_table_are_keys():
    table = re.findall(r"^\| `(\w+)` \|", GUIDE, re.MULTILINE)
    assert len(table) == 4
    RayTune(**dict.fromkeys(table[:2], 1), resources_per_trial={"memory": 8e9}, slots=2)


def test_kubernetes_workers_and_head_have_the_same_environment():
    (job,) = [content for block in blocks("yaml") if "kind" in (content := YAML(typ="safe").load(block))]
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    head, worker = (
        group["template"]["spec"]["containers"][0]
        for group in (cluster["headGroupSpec"], cluster["workerGroupSpecs"][0])
    )
    assert head["image"] == worker["image"] and head["env"] == worker["env"]
