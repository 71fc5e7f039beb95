"""`autopeft …` as a process of its own, that has what is slow to import: forked from a server that imported it once.

Everything else is as a shell starts it: environment, folder, process group, output and exit code are its own.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

SLOW = ["torch", "transformers.models.bert.modeling_bert", "transformers.models.vit.modeling_vit", "sklearn.metrics"]
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(SLOW)


def start(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A process that calls `target`, a function of a module."""
    process = _SERVER.Process(target=target, args=arguments)
    process.start()
    return process


def start_autopeft(*words: str, cwd: Path, env: Mapping[str, str] | None = None, output: Path) -> BaseProcess:
    """Starts a command, in a process group of its own; what it prints goes to `output`.stdout and .stderr."""
    return start(_main, words, str(cwd), dict(os.environ if env is None else env), str(output))


def autopeft(
    *words: str, cwd: Path, env: Mapping[str, str] | None = None, check: bool = True, timeout: float = 280
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end; `check` asserts that it went well."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "printed"
        process = start_autopeft(*words, cwd=cwd, env=env, output=output)
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(words, timeout)
        said, complained = (Path(f"{output}.{stream}").read_text() for stream in ("stdout", "stderr"))
    assert process.exitcode is not None
    assert not check or process.exitcode == 0, complained
    return subprocess.CompletedProcess(words, process.exitcode, said, complained)


def _main(words: list[str], cwd: str, environment: dict[str, str], output: str) -> None:
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, stream in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{output}.{stream}", os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["autopeft", *words]
    from autopeft.cli import main

    try:
        main()
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
