"""The documents name what is there: files, commands, config keys."""

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
README = (PROJECT / "README.md").read_text()


def tree():
    block = README[README.index("```\nautopeft/") :].split("```")[1]
    folder = ""
    for line in block.strip().splitlines():
        names = re.split(r"\s{2,}", re.sub(r"^[├└]── ", "", line))[0].split(", ")
        if line[0] not in "├└":
            folder = names[0] if names[0].endswith("/") else ""
            yield names[0]
        else:
            yield from (folder + name for name in names)


@pytest.mark.parametrize("path", sorted(set(tree())))
def test_each_file_of_the_tree_exists(path):
    assert (PROJECT / path).exists()


def test_each_module_of_the_package_is_in_the_tree():
    named = {Path(path).name for path in tree()}
    for path in (PROJECT / "autopeft").iterdir():
        if path.name not in ("__init__.py", "__main__.py", "__pycache__"):
            assert path.name in named or f"{path.name}/" in README, path.name


def test_each_command_exists():
    from typer.main import get_command

    from autopeft.cli import cli

    commands = get_command(cli).commands
    for name in re.findall(
        r"autopeft (init|check|plan|search|resume|confirm|export|predict|track|leaderboard|report)", README
    ):
        assert name in commands
    for verb in re.findall(r"\./dev ([\w-]+)", README):
        assert re.search(rf"^ +(\S+\|)*{verb}(\|\S+)*\)", (PROJECT / "dev").read_text(), re.MULTILINE), verb


def test_each_config_key_is_documented():
    from autopeft.config import Config

    for name in Config.model_fields:
        assert name == "stem" or f"`{name}`" in README, name


def test_no_figure_of_the_tree_is_a_machine_path():
    for path in PROJECT.glob("*.md"):
        assert not re.search(r"/(home|root|tmp)/[a-z]", path.read_text()), path.name
