"""Row "YAML": a tag that would run code is refused, wherever the product reads YAML."""

from __future__ import annotations

import pytest

from autopeft import config, spaces, yaml_file
from autopeft.errors import ConfigError

TAGS = [
    "!!python/object/apply:os.system ['touch mark']",
    "!!python/object/new:subprocess.Popen [['touch', 'mark']]",
    "!!python/name:os.system",
    "!!python/module:os",
]


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_that_would_run_code_is_refused(tmp_path, monkeypatch, tag):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(f"model: {tag}\n")
    (tmp_path / "space.yaml").write_text(f"method: {tag}\n")
    with pytest.raises(ConfigError, match="is no YAML"):
        config.load(tmp_path / "my.yaml")
    with pytest.raises(ConfigError, match="is no YAML"):
        yaml_file.read(spaces.find("space.yaml", tmp_path), "space.yaml")
    with pytest.raises(ConfigError):
        config.load({"model": "digits", "task": "digits", "data": {}}, [f"seed={tag}"])
    assert not (tmp_path / "mark").exists()
