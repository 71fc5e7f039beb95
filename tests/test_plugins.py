"""Finding plugins: ours by their files, other people's by their entry points, and what is wrong with either."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autopeft import plugins
from autopeft.errors import EnvironmentFault, UnknownName, UsageError

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a package with entry points on the path, as pip leaves it there."""
    site = tmp_path / "site"
    forget = (plugins.names, plugins.entry_points, plugins._ours)

    def install(package: str, group: str, points: str, code: str) -> None:
        info = site / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[autopeft.{group}]\n{points}\n")
        (site / f"{package}.py").write_text(code)
        for cache in forget:
            cache.cache_clear()

    monkeypatch.syspath_prepend(str(site))
    yield install
    for cache in forget:
        cache.cache_clear()
    for package in ("theirs", "others"):
        sys.modules.pop(package, None)


SAMPLER = """
class Mine:
    def __init__(self, space, objectives, sizes):
        self.space = space
    def ask(self, number, seed):
        return self.space.defaults()[0]
    def begin(self, record):
        pass
    def tell(self, record):
        pass
"""


def test_a_file_is_a_plugin_and_a_helper_is_none() -> None:
    assert plugins.names("samplers") == ("fixed", "nsga2", "random", "tpe")
    assert plugins.load("samplers", "random").__name__ == "RandomSampler"


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_file_of_every_kind_ends_in_its_plugin(kind: str) -> None:
    assert plugins.names(kind)
    for name in plugins.names(kind):
        assert plugins.load(kind, name).__module__ == f"autopeft.{kind}.{name}"


def test_a_package_from_outside_brings_one(install: Install) -> None:
    install("theirs", "samplers", "mine = theirs:Mine", SAMPLER)
    assert "mine" in plugins.names("samplers")
    assert "theirs" not in sys.modules, "listing names imports nothing"
    assert plugins.load("samplers", "mine").__name__ == "Mine"
    assert "mine" not in plugins.names("stoppers")


def test_a_plugin_from_outside_passes_its_familys_contract(install: Install) -> None:
    from autopeft import testing

    install("theirs", "samplers", "mine = theirs:Mine", SAMPLER)
    testing.check_sampler(plugins.load("samplers", "mine"))


def test_a_name_that_nobody_has(install: Install) -> None:
    install("theirs", "samplers", "annealing = theirs:Mine", SAMPLER)
    with pytest.raises(UnknownName) as fault:
        plugins.load("samplers", "anealing")
    assert str(fault.value) == (
        "no sampler called 'anealing'. Did you mean 'annealing'? There are: annealing, fixed, nsga2, random, tpe"
    )


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import a_module_that_is_not_there", "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("", "AttributeError: module 'theirs' has no attribute 'Mine'"),
    ],
)
def test_a_broken_one_is_named_with_its_package(install: Install, code: str, why: str) -> None:
    install("theirs", "samplers", "mine = theirs:Mine", code)
    assert plugins.load("samplers", "tpe"), "the others work on"
    with pytest.raises(EnvironmentFault) as fault:
        plugins.load("samplers", "mine")
    assert str(fault.value) == (
        f"sampler 'mine', which comes with the package 'theirs', cannot be loaded: {why}. "
        "Repair or uninstall that package"
    )


def test_one_name_from_two_packages_is_neithers(install: Install) -> None:
    install("theirs", "samplers", "mine = theirs:Mine", SAMPLER)
    install("others", "samplers", "mine = others:Mine\ntpe = others:Mine", SAMPLER)
    with pytest.raises(UsageError, match=r"'mine' comes with the package 'others' and with the package 'theirs'") as e:
        plugins.load("samplers", "mine")
    assert str(e.value).endswith("uninstall one")
    with pytest.raises(UsageError, match=r"sampler 'tpe' comes with autopeft and with the package 'others'"):
        plugins.load("samplers", "tpe")


def test_listing_and_loading_all_imports_no_framework() -> None:
    code = (
        "import sys; from autopeft import plugins\n"
        "for kind in plugins.KINDS:\n"
        "    for name in plugins.names(kind): plugins.load(kind, name)\n"
        "print(sorted({'torch', 'peft', 'ray', 'optuna', 'mlflow', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
