"""Prints what a pyproject.toml asks for, to be installed before the code: requirements.py PYPROJECT [EXTRA ...]."""

import sys
import tomllib
from pathlib import Path

content = tomllib.loads(Path(sys.argv[1]).read_text())
project = content["project"]
wanted = [*content["build-system"]["requires"], *project["dependencies"]]
for extra in sys.argv[2:]:
    wanted += project["optional-dependencies"][extra]
print("\n".join(wanted))
